/*
 * ab_cleanup.c
 *	  Deleting branches that nobody uses any more.
 *
 * Backends that call branch.cleanup() or the functions made of it, in the control
 * database.  Looks at all branches without a lock; whether one is still unused is asked
 * again under the lock of its deletion, when no session can come any more.  A crash
 * leaves what was committed.
 */
#include "ab_cleanup.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/timestamp.h"

#include "ab_branchsetting.h"
#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

/*
 * With the activity of all databases or of one; an old one of another database that had
 * the OID is not the branch's.
 */
#define LAST_USED(activity) \
	"SELECT d.oid, coalesce(a.last_active_at, o.created_at)" \
	" FROM pg_database AS d" \
	" CROSS JOIN LATERAL branch._origin(d.oid) AS o" \
	" LEFT JOIN " activity " AND a.origin_at = o.created_at" \
	" WHERE o.depth >= 1"
#define OF_ALL	LAST_USED("branch._activity() AS a ON a.db = d.oid")
#define OF_ONE	LAST_USED("LATERAL branch._activity_of(d.oid) AS a ON true")

/* ---- which ---- */

static bool
is_unused(const AbUnused *unused, Oid db, TimestampTz last_used)
{
	int			after;

	if (!unused->as_set)
		return last_used < unused->before;
	after = ab_branchsetting(db, AB_BRANCH_CLEANUP_AFTER);
	return after > 0 && last_used < unused->now - after * USECS_PER_SEC;
}

static void
add_branch(List **list, Oid db, TimestampTz last_used)
{
	AbOriginHeader origin;
	char	   *name = ab_database_name(db);
	AbExpired  *e;

	if (name == NULL || ab_database_is_deleted(db) || !ab_storage_read_origin(db, &origin))
		return;
	e = palloc0(sizeof(AbExpired));
	e->db = db;
	e->name = name;
	e->depth = origin.depth;
	e->last_used = last_used;
	e->reason = psprintf("it has not been used since %s", timestamptz_to_str(last_used));
	*list = lappend(*list, e);
}

static List *
list_unused(const AbUnused *unused)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *list = NIL;
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute(OF_ALL, 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		Oid			db = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		TimestampTz last = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
		MemoryContext old;

		if (!is_unused(unused, db, last))
			continue;
		old = MemoryContextSwitchTo(caller);
		add_branch(&list, db, last);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	list_sort(list, ab_deepest_first);
	return list;
}

/* arg: AbUnused */
static bool
still_unused(Oid db, void *arg)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(db)};
	bool		still = false;

	if (ab_database_is_deleted(db))
		return false;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (ab_tables_execute(OF_ONE " AND d.oid = $1", 1, types, values, NULL) == 1)
	{
		bool		isnull;
		Datum		last = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull);

		still = is_unused(arg, db, DatumGetTimestampTz(last));
	}
	SPI_finish();
	return still;
}

/* ---- deleting them ---- */

/* The default parent is not told apart by ab_delete_due(): take it out, and say so. */
static List *
split_default(List *due, AbExpired **is_default)
{
	char	   *parent = ab_default_parent_name();
	ListCell   *lc;

	foreach(lc, due)
	{
		AbExpired  *e = lfirst(lc);

		if (strcmp(e->name, parent) != 0)
			continue;
		*is_default = e;
		e->reason = pstrdup("it is the default parent");
		return foreach_delete_current(due, lc);
	}
	return due;
}

List *
ab_cleanup(AbUnused unused, bool dry_run, int limit)
{
	AbWhyDue	why = {"cleaned_up", still_unused, &unused};
	AbExpired  *is_default = NULL;
	List	   *due;

	if (!ab_tables_installed())
		return NIL;
	due = split_default(list_unused(&unused), &is_default);
	due = ab_delete_due(due, &why, dry_run, limit);
	return is_default ? lappend(due, is_default) : due;
}
