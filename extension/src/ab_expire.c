/*
 * ab_expire.c
 *	  Deleting branches whose time is over: those that have expired, and others for
 *	  ab_cleanup.c.
 *
 * Backends that call branch.expire() or branch.cleanup() in the control database, and
 * the sweeper; with the rights of whoever does.  Each branch is deleted in a
 * subtransaction of its own, under the locks of a deletion, and after another look: its
 * time may have been prolonged, or it may have been protected, while we waited for them.
 */
#include "ab_expire.h"

#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/timestamp.h"

#include "ab_attempt.h"
#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_lifecycle.h"
#include "ab_registry.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

/* ---- which ---- */

/* When did it expire?  False: it has not, or is deleted or gone. */
static bool
expired_at(Oid db, TimestampTz *when)
{
	AbRegistryRow row;

	if (!ab_registry_get(db, &row) || row.isnull[AB_REGISTRY_EXPIRES_AT] ||
		ab_database_is_deleted(db))
		return false;
	*when = DatumGetTimestampTz(row.value[AB_REGISTRY_EXPIRES_AT]);
	return *when <= GetCurrentTimestamp();
}

static bool
has_expired(Oid db, void *arg)
{
	TimestampTz when;

	return expired_at(db, &when);
}

static void
add_expired(List **list, Oid db)
{
	AbOriginHeader origin;
	char	   *name = ab_database_name(db);
	TimestampTz when;
	AbExpired  *e;

	if (name == NULL || !expired_at(db, &when) || !ab_storage_read_origin(db, &origin))
		return;
	e = palloc0(sizeof(AbExpired));
	e->db = db;
	e->name = name;
	e->depth = origin.depth;
	e->reason = psprintf("it expired at %s", timestamptz_to_str(when));
	*list = lappend(*list, e);
}

int
ab_deepest_first(const ListCell *a, const ListCell *b)
{
	const AbExpired *x = lfirst(a);
	const AbExpired *y = lfirst(b);

	if (x->depth != y->depth)
		return x->depth > y->depth ? -1 : 1;
	return strcmp(x->name, y->name);
}

static List *
list_expired(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *list = NIL;
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("SELECT r.db FROM branch.registry AS r"
						  " WHERE r.expires_at <= clock_timestamp() AND r.deleted_at IS NULL",
						  0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		db = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(caller);

		add_expired(&list, DatumGetObjectId(db));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	list_sort(list, ab_deepest_first);
	return list;
}

/* ---- whether ---- */

/* Its living branches; in a dry run those that would be deleted first do not count. */
static List *
children_left(const AbExpired *e, List *expired)
{
	List	   *left = NIL;
	ListCell   *lc;

	foreach(lc, ab_children(e->db, false))
	{
		bool		going = ab_database_is_deleted(lfirst_oid(lc));
		ListCell   *other;

		foreach(other, expired)
		{
			const AbExpired *o = lfirst(other);

			going |= o->db == lfirst_oid(lc) && o->deleted;
		}
		if (!going)
			left = lappend_oid(left, lfirst_oid(lc));
	}
	return left;
}

/* Why it stays, as far as that can be said without a lock; NULL: it goes. */
static char *
why_not(const AbExpired *e, List *expired)
{
	TimestampTz until;
	List	   *children;

	if (ab_registry_protected(e->db, &until))
		return pstrdup("it is protected");
	children = children_left(e, expired);
	if (children != NIL)
		return psprintf("it has branches: %s", ab_name_list(children));
	return NULL;
}

/* ---- deleting ---- */

typedef struct Deletion
{
	const AbWhyDue *why;
	AbExpired  *e;
} Deletion;

/* The lock first: what is found under it stays true, and no session is ended before. */
static void
delete_it(void *arg)
{
	const AbWhyDue *why = ((Deletion *) arg)->why;
	AbExpired  *e = ((Deletion *) arg)->e;

	if (ab_find_own_branch(e->name, "delete") != e->db)
		return;
	ab_lock_branch_name(e->name);
	LockSharedObject(DatabaseRelationId, e->db, 0, AccessExclusiveLock);
	if (ab_find_own_branch(e->name, "delete") != e->db ||
		!why->still_due(e->db, why->arg))
		return;
	ab_check_not_template(e->db, e->name);
	if (!ab_lock_for_delete(e->db, e->name, "delete", false, true))
		return;
	ab_event(why->event, e->db, e->name, NULL, NULL);
	ab_delete_locked(e->db, e->name, false);
	e->deleted = true;
}

static void
attempt(const AbWhyDue *why, AbExpired *e)
{
	Deletion	deletion = {why, e};
	ErrorData  *edata = ab_attempt(delete_it, &deletion);

	if (edata != NULL)
	{
		e->deleted = false;
		e->reason = edata->message;
	}
	else if (!e->deleted)
		e->reason = pstrdup("it has been changed meanwhile");
}

List *
ab_delete_due(List *due, const AbWhyDue *why, bool dry_run, int limit)
{
	ListCell   *lc;

	foreach(lc, due)
	{
		AbExpired  *e = lfirst(lc);
		char	   *reason = why_not(e, due);

		CHECK_FOR_INTERRUPTS();
		if (reason != NULL)
			e->reason = reason;
		else if (dry_run)
			e->deleted = true;
		else
			attempt(why, e);
		if (e->deleted && --limit == 0)
			return list_truncate(due, foreach_current_index(lc) + 1);
	}
	return due;
}

List *
ab_expire(bool dry_run, int limit)
{
	static const AbWhyDue why = {"expired", has_expired, NULL};

	if (!ab_tables_installed())
		return NIL;
	return ab_delete_due(list_expired(), &why, dry_run, limit);
}
