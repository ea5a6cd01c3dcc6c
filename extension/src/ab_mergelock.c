/*
 * ab_mergelock.c
 *	  One merge into a database at a time, and none out of it meanwhile.
 *
 * Backends in the control database: who merges locks the target, and the source in shared
 * mode.  Workers in the target: theirs is another lock, because who merges waits for them;
 * it is for a worker that still commits when the process that merged was killed.  Advisory
 * locks of a class that users' own do not have, which go with the transaction.
 */
#include "ab_compat.h"

#include "ab_mergelock.h"

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"

static void
take(Oid inside, Oid db, LOCKMODE mode)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, inside, AB_MERGELOCK_KEY, db, AB_MERGELOCK_CLASS);
	(void) LockAcquire(&tag, mode, false, false);
}

/* The server's own text does not say what was waited for. */
static void
take_or_tell(Oid db, LOCKMODE mode)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *name = get_database_name(db);

	PG_TRY();
	{
		take(InvalidOid, db, mode);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		error->message = psprintf("could not begin to merge, because database \"%s\" is being merged",
								  name ? name : "?");
		error->detail = psprintf("That was not over within %d ms (lock_timeout).", LockTimeout);
		error->hint = "pg_locks has who merges; its transaction has to end.";
		ReThrowError(error);
	}
	PG_END_TRY();
}

/* In the order of their OIDs, so that nobody waits in a circle. */
void
ab_mergelock_take(Oid source, Oid target)
{
	if (source < target)
		take_or_tell(source, ShareLock);
	take_or_tell(target, ExclusiveLock);
	if (source > target)
		take_or_tell(source, ShareLock);
}

void
ab_mergelock_take_inside(void)
{
	take(MyDatabaseId, MyDatabaseId, ExclusiveLock);
}
