/*
 * ab_tables.c
 *	  Access to the extension's tables on behalf of their owner.
 *
 * Backends, the keeper and its sweeper, all in the control database.  Ordinary
 * table locks only.  A crash leaves nothing: these are tables.
 */
#include "ab_tables.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define PROTECTS "closed_at IS NULL AND (keep_until IS NULL OR keep_until > clock_timestamp())"

/*
 * The base of the next merge between two databases, as long as there are both; also what
 * a merge has seen whose conflicts may still be decided.  One of listed tables is the base
 * of each of these until that is merged again.
 */
#define LATER_MERGE \
	"SELECT 1 FROM branch.merge_log AS l" \
	" WHERE least(l.source_id, l.target_id) = least(m.source_id, m.target_id)" \
	" AND greatest(l.source_id, l.target_id) = greatest(m.source_id, m.target_id)" \
	" AND l.id > m.id AND l.state = 'merged' AND l.source_snapshot IS NOT NULL"

#define MERGED(columns) \
	"SELECT " columns " FROM branch.merge_log AS m" \
	" JOIN pg_database AS s ON s.oid = m.source_id" \
	" JOIN pg_database AS t ON t.oid = m.target_id" \
	" WHERE m.source_snapshot IS NOT NULL AND (m.state IN ('committing', 'merged')" \
	" OR m.state = 'conflicts' AND EXISTS (SELECT 1 FROM branch.merge_changes AS c" \
	" WHERE c.merge_id = m.id))" \
	" AND NOT EXISTS (" LATER_MERGE \
	" AND (m.state = 'conflicts' OR l.options -> 'tables' IS NULL))" \
	" AND (m.options -> 'tables' IS NULL OR EXISTS (" \
	"SELECT 1 FROM jsonb_array_elements(m.options -> 'tables') AS e (one) WHERE NOT EXISTS (" \
	LATER_MERGE " AND l.options -> 'tables' @> jsonb_build_array(e.one))))"

#define MERGED_SNAPSHOTS MERGED("m.source_snapshot AS id")

bool
ab_tables_installed(void)
{
	return OidIsValid(get_extension_oid("agent_branch", true));
}

Oid
ab_tables_owner(void)
{
	Oid			relid;
	HeapTuple	tuple;
	Oid			owner;

	relid = get_relname_relid(AB_NAMED_TABLE, get_namespace_oid("branch", false));
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"branch.%s\" does not exist", AB_NAMED_TABLE),
				 errhint("Run DROP EXTENSION agent_branch and CREATE EXTENSION agent_branch again.")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * No PG_TRY: both the user id and the settings are put back by the abort of the
 * (sub)transaction, which is the only way an error can take from here.
 */
uint64
ab_tables_execute(const char *sql, int nargs, Oid *types, Datum *values,
				   const char *nulls)
{
	Oid			save_user;
	int			save_context;
	int			guc_level;
	int			ret;

	GetUserIdAndSecContext(&save_user, &save_context);
	SetUserIdAndSecContext(ab_tables_owner(),
						   save_context | SECURITY_LOCAL_USERID_CHANGE);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	ret = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (ret < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s", SPI_result_code_string(ret));
	AtEOXact_GUC(true, guc_level);
	SetUserIdAndSecContext(save_user, save_context);
	return SPI_processed;
}

/* Does a query, of which the only parameter is a snapshot's text, give a row? */
static bool
any_of_snapshot(const char *sql, AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	bool		any;

	if (!ab_tables_installed())
		return false;
	ab_snapid_format(id, text);
	values[0] = CStringGetTextDatum(text);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	any = ab_tables_execute(sql, 1, types, values, NULL) > 0;
	SPI_finish();
	return any;
}

bool
ab_tables_snapshot_kept(AbSnapId id)
{
	return any_of_snapshot("SELECT 1 FROM branch." AB_NAMED_TABLE
						   " WHERE id = $1 AND " PROTECTS, id);
}

bool
ab_tables_is_merge_base(AbSnapId id)
{
	return any_of_snapshot(MERGED_SNAPSHOTS " AND m.source_snapshot = $1", id);
}

List *
ab_tables_kept_snapshots(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;
	uint64		n;

	if (!ab_tables_installed())
		return NIL;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	n = ab_tables_execute("SELECT id FROM branch." AB_NAMED_TABLE " WHERE " PROTECTS
						  " UNION " MERGED_SNAPSHOTS,
						  0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *text = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);
		AbSnapId	id;

		if (text != NULL && ab_snapid_parse(text, &id))
		{
			MemoryContext old = MemoryContextSwitchTo(caller);
			AbSnapId   *copy = palloc(sizeof(AbSnapId));

			*copy = id;
			result = lappend(result, copy);
			MemoryContextSwitchTo(old);
		}
	}
	SPI_finish();
	return result;
}

static TimestampTz
timestamp_column(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, desc, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* From a query of name, id, source_id, closed_at, warned_at. */
static List *
named_snapshots(const char *sql)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;
	uint64		n;

	if (!ab_tables_installed())
		return NIL;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute(sql, 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(caller);
		AbNamedSnapshot *s = palloc0(sizeof(AbNamedSnapshot));
		bool		isnull;

		s->name = SPI_getvalue(tuple, desc, 1);
		s->source_db = DatumGetObjectId(SPI_getbinval(tuple, desc, 3, &isnull));
		s->closed_at = timestamp_column(tuple, desc, 4);
		s->warned_at = timestamp_column(tuple, desc, 5);
		if (ab_snapid_parse(SPI_getvalue(tuple, desc, 2), &s->id))
			result = lappend(result, s);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return result;
}

List *
ab_tables_names(void)
{
	return named_snapshots("SELECT name, id, source_id, closed_at, warned_at"
						   " FROM branch." AB_NAMED_TABLE " ORDER BY name");
}

List *
ab_tables_merge_bases(void)
{
	return named_snapshots(MERGED("CAST(m.id AS text), m.source_snapshot, m.source_id,"
								  " CAST(NULL AS timestamptz), CAST(NULL AS timestamptz)")
						   " ORDER BY m.id");
}

void
ab_tables_prune_merges(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("DELETE FROM branch.merge_changes AS c USING branch.merge_log AS m,"
							 " CAST(current_setting('agent_branch.merge_retention') AS interval)"
							 " AS kept WHERE c.merge_id = m.id AND kept > '0'"
							 " AND m.started_at < clock_timestamp() - kept",
							 0, NULL, NULL, NULL);
	SPI_finish();
}
