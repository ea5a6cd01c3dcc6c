/*
 * ab_sql_branchrow.c
 *	  One row of view branch.branches, as an answer.
 *
 * Backends in the control database; reads what the functions in the view read, with no
 * locks but theirs.  The view itself has a plan of twenty nodes: to set that up took
 * four times the instructions of creating a branch.  What a column means stands in the
 * view (sql/20_views.sql); test_answers_are_rows_of_the_view holds the two together.
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/pg_lsn.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "ab_activityflush.h"
#include "ab_default.h"
#include "ab_manifest.h"
#include "ab_registry.h"
#include "ab_size.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_storagefiles.h"

#define MAX_COLUMNS 32

/* Columns are given in their order. */
typedef struct BranchRow
{
	TupleDesc	desc;
	int			n;				/* given so far */
	Datum		values[MAX_COLUMNS];
	bool		nulls[MAX_COLUMNS];
} BranchRow;

/* What is known of a branch, from one place each. */
typedef struct Known
{
	Oid			db;
	char	   *name;			/* that it had, if it is deleted */
	Oid			owner;
	bool		invalid;
	bool		deleted;
	AbOriginHeader origin;
	AbRegistryRow registry;		/* all null if it has none */
	AbActivity	activity;
	bool		active;			/* activity is known */
} Known;

static void
put(BranchRow *row, const char *column, Datum value, bool isnull)
{
	if (row->n >= Min(row->desc->natts, MAX_COLUMNS) ||
		strcmp(NameStr(TupleDescAttr(row->desc, row->n)->attname), column) != 0)
		elog(ERROR, "view branch.branches does not have column \"%s\" in place %d",
			 column, row->n + 1);
	row->values[row->n] = value;
	row->nulls[row->n] = isnull;
	row->n++;
}

static void
put_name(BranchRow *row, const char *column, const char *name)
{
	Name		value = palloc0(NAMEDATALEN);

	if (name != NULL)
		namestrcpy(value, name);
	put(row, column, NameGetDatum(value), name == NULL);
}

static void
put_remembered(BranchRow *row, const char *column, const Known *k, AbRegistryField field)
{
	put(row, column, k->registry.value[field], k->registry.isnull[field]);
}

static bool
look_up(Oid db, Known *k)
{
	HeapTuple	tuple;
	Form_pg_database form;

	if (!ab_storage_read_origin(db, &k->origin) || !ab_sql_may_see(db))
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_database) GETSTRUCT(tuple);
	k->db = db;
	k->owner = form->datdba;
	k->invalid = form->datconnlimit < -1;
	k->deleted = ab_deleted_name_is_reserved(NameStr(form->datname));
	k->name = k->deleted ? ab_deleted_old_name(db) : pstrdup(NameStr(form->datname));
	ReleaseSysCache(tuple);

	if (!ab_registry_get(db, &k->registry))
		memset(k->registry.isnull, true, sizeof(k->registry.isnull));
	k->active = ab_activityflush_read(db, &k->activity);
	return true;
}

static void
put_origin(BranchRow *row, const Known *k)
{
	AbManifestHeader m;
	bool		readable = ab_manifest_read_header(k->origin.snapshot, &m);

	put(row, "parent_id", ObjectIdGetDatum(k->origin.parent_db), false);
	put_name(row, "parent_name", ab_name_or_old_name(k->origin.parent_db));
	put(row, "parent_lsn", LSNGetDatum(k->origin.snapshot.lsn), false);
	put(row, "parent_timestamp", TimestampTzGetDatum(readable ? m.taken_at : 0), !readable);
	put(row, "depth", Int32GetDatum((int32) k->origin.depth), false);
}

static const char *
state_of(const Known *k)
{
	if (k->invalid)
		return "invalid";
	if (k->deleted)
		return "deleted";
	return k->active && k->activity.suspended_at != 0 ? "suspended" : "ready";
}

static void
put_state(BranchRow *row, const Known *k)
{
	put(row, "current_state", CStringGetTextDatum(state_of(k)), false);
	put(row, "is_default",
		BoolGetDatum(!k->deleted && strcmp(k->name, ab_default_parent_name()) == 0), false);
}

static void
put_protection(BranchRow *row, const Known *k)
{
	TimestampTz until = DatumGetTimestampTz(k->registry.value[AB_REGISTRY_PROTECTED_UNTIL]);
	bool		protected = !k->registry.isnull[AB_REGISTRY_PROTECTED_UNTIL] &&
		until > GetCurrentStatementStartTimestamp();

	put(row, "protected", BoolGetDatum(protected), false);
	put(row, "protected_until", TimestampTzGetDatum(until),
		!protected || TIMESTAMP_IS_NOEND(until));
}

static void
put_times(BranchRow *row, const Known *k)
{
	bool		unnamed = k->registry.isnull[AB_REGISTRY_CREATED_AT];
	bool		own = k->active && k->activity.origin_at == k->origin.created_at;

	put(row, "created_at", unnamed ? TimestampTzGetDatum(k->origin.created_at) :
		k->registry.value[AB_REGISTRY_CREATED_AT], false);
	put_name(row, "created_by", GetUserNameFromId(k->owner, true));
	put_remembered(row, "last_reset_at", k, AB_REGISTRY_RESET_AT);
	put(row, "last_active_at", TimestampTzGetDatum(k->activity.last_active),
		!own || TIMESTAMP_IS_NOBEGIN(k->activity.last_active));
	put_remembered(row, "expires_at", k, AB_REGISTRY_EXPIRES_AT);
}

static void
put_suspend_timeout(BranchRow *row, const Known *k)
{
	Datum		seconds = (Datum) 0;
	bool		isnull = k->registry.isnull[AB_REGISTRY_SUSPEND_TIMEOUT];

	if (!isnull)
	{
		seconds = DirectFunctionCall2(extract_interval, CStringGetTextDatum("epoch"),
									  k->registry.value[AB_REGISTRY_SUSPEND_TIMEOUT]);
		seconds = DirectFunctionCall1(numeric_int4, DirectFunctionCall1(numeric_ceil, seconds));
	}
	put(row, "suspend_timeout_seconds", seconds, isnull);
}

/*
 * pinned_bytes is left out: it is the one column that looks at all snapshots, for which
 * a creation must not wait.
 */
static void
put_sizes(BranchRow *row, const Known *k)
{
	int64		logical;
	int64		own;
	bool		readable = ab_size_both(k->db, &logical, &own);

	put(row, "logical_bytes", Int64GetDatum(logical), !readable);
	put(row, "own_bytes", Int64GetDatum(own), false);
	put(row, "pinned_bytes", (Datum) 0, true);
}

static void
put_labels(BranchRow *row, const Known *k)
{
	bool		none = k->registry.isnull[AB_REGISTRY_LABELS];

	put(row, "labels", none ? DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")) :
		k->registry.value[AB_REGISTRY_LABELS], false);
}

static TupleDesc
row_type(void)
{
	Oid			view = get_relname_relid("branches", get_namespace_oid("branch", false));

	return lookup_rowtype_tupdesc(get_rel_type_id(view), -1);
}

Datum
ab_sql_branch_row(Oid db, const char *name)
{
	BranchRow	row = {.n = 0};
	Known		k = {.db = InvalidOid};
	HeapTuple	tuple;

	if (!look_up(db, &k))
		ab_sql_raise_unseen(psprintf("branch \"%s\"", name));
	row.desc = row_type();
	put(&row, "id", ObjectIdGetDatum(db), false);
	put_name(&row, "name", k.name);
	put_origin(&row, &k);
	put_state(&row, &k);
	put_protection(&row, &k);
	put_times(&row, &k);
	put_suspend_timeout(&row, &k);
	put_sizes(&row, &k);
	put_labels(&row, &k);
	put_remembered(&row, "deleted_at", &k, AB_REGISTRY_DELETED_AT);
	put_remembered(&row, "deleted_by", &k, AB_REGISTRY_DELETED_BY);
	if (row.n != row.desc->natts)
		elog(ERROR, "view branch.branches has more than %d columns", row.n);
	tuple = heap_form_tuple(row.desc, row.values, row.nulls);
	ReleaseTupleDesc(row.desc);
	return HeapTupleGetDatum(tuple);
}
