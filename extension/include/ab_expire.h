/*
 * ab_expire.h
 *	  Deleting branches whose time is over.
 */
#ifndef AB_EXPIRE_H
#define AB_EXPIRE_H

#include "ab_types.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

typedef struct AbExpired
{
	Oid			db;
	char	   *name;
	uint32		depth;
	bool		deleted;		/* or would be */
	char	   *reason;			/* why, or why not */
	TimestampTz last_used;		/* only in ab_cleanup.c's lists */
} AbExpired;

/*
 * Delete branches that have expired, children before their parents, recoverably, and
 * end the sessions in them (ab_sessions.h).  Protected ones stay, and those that have
 * branches; so does what fails.  At most limit are deleted.  Returns a list of
 * AbExpired *.  Needs a transaction.
 */
extern List *ab_expire(bool dry_run, int limit);

/* Why branches are deleted: their event, and whether that is still so (under the lock). */
typedef struct AbWhyDue
{
	const char *event;
	bool		(*still_due) (Oid db, void *arg);
	void	   *arg;
} AbWhyDue;

/*
 * The same for a list of AbExpired * that the caller has made and sorted with
 * ab_deepest_first().  Returns it up to the last one that was deleted, if limit was reached.
 */
extern List *ab_delete_due(List *due, const AbWhyDue *why, bool dry_run, int limit);
extern int	ab_deepest_first(const ListCell *a, const ListCell *b);

#endif							/* AB_EXPIRE_H */
