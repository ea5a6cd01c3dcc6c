/*
 * ab_cleanup.h
 *	  Deleting branches that nobody uses any more.
 */
#ifndef AB_CLEANUP_H
#define AB_CLEANUP_H

#include "ab_expire.h"

/*
 * Delete branches that were used last before that time, as ab_expire() does it; what
 * says that a branch was used is branch._activity(), for one that never was its
 * creation.  The default parent stays.
 */
extern List *ab_cleanup(TimestampTz before, bool dry_run, int limit);

#endif							/* AB_CLEANUP_H */
