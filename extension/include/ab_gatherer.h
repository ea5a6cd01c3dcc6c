/*
 * ab_gatherer.h
 *	  The worker that gathers origins when there are many new ones.
 */
#ifndef AB_GATHERER_H
#define AB_GATHERER_H

#include "ab_compat.h"

/* The keeper: start it if that is due.  Milliseconds until it should be asked again, or -1. */
extern long ab_gatherer_tend(void);

#endif							/* AB_GATHERER_H */
