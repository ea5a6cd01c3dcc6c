/*
 * ab_keeper.h
 *	  The keeper: one background worker in the control database that commits hidden
 *	  rows on request (ab_request.h) and sweeps what crashes and deletes leave.
 */
#ifndef AB_KEEPER_H
#define AB_KEEPER_H

#include "ab_compat.h"

extern void ab_keeper_register(void);	/* RegisterBackgroundWorker, from _PG_init */

#endif							/* AB_KEEPER_H */
