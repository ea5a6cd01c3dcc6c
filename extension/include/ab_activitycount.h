/*
 * ab_activitycount.h
 *	  Counting what this session does (ab_activitycount.c).
 */
#ifndef AB_ACTIVITYCOUNT_H
#define AB_ACTIVITYCOUNT_H

#include "ab_activity.h"

/* In the postmaster. */
extern void ab_activitycount_install(void);

#endif							/* AB_ACTIVITYCOUNT_H */
