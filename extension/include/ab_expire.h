/*
 * ab_expire.h
 *	  Deleting branches whose time is over.
 */
#ifndef AB_EXPIRE_H
#define AB_EXPIRE_H

#include "ab_types.h"

#include "nodes/pg_list.h"

typedef struct AbExpired
{
	Oid			db;
	char	   *name;
	uint32		depth;
	bool		deleted;		/* or would be */
	char	   *reason;			/* why, or why not */
} AbExpired;

/*
 * Delete branches that have expired, children before their parents, recoverably, and
 * end the sessions in them (ab_sessions.h).  Protected ones stay, and those that have
 * branches; so does what fails.  At most limit are deleted.  Returns a list of
 * AbExpired *.  Needs a transaction.
 */
extern List *ab_expire(bool dry_run, int limit);

#endif							/* AB_EXPIRE_H */
