/*
 * ab_activityworker.h
 *	  The worker that writes activity to table branch.activity.
 */
#ifndef AB_ACTIVITYWORKER_H
#define AB_ACTIVITYWORKER_H

#include "ab_compat.h"

/* In the postmaster. */
extern void ab_activityworker_register(void);

#endif							/* AB_ACTIVITYWORKER_H */
