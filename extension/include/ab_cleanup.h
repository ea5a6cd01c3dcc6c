/*
 * ab_cleanup.h
 *	  Deleting branches that nobody uses any more.
 */
#ifndef AB_CLEANUP_H
#define AB_CLEANUP_H

#include "ab_expire.h"

/* How long is too long. */
typedef struct AbUnused
{
	TimestampTz now;
	bool		as_set;			/* agent_branch.cleanup_after, of each branch */
	TimestampTz before;			/* otherwise: if used last before that */
} AbUnused;

/*
 * Delete branches that were not used for long, as ab_expire() does it; what says that a
 * branch was used is branch._activity(), for one that never was its creation.  The default
 * parent stays.
 */
extern List *ab_cleanup(AbUnused unused, bool dry_run, int limit);

#endif							/* AB_CLEANUP_H */
