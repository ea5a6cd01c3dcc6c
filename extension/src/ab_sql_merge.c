/*
 * ab_sql_merge.c
 *	  branch._merge_lock: one merge at a time; branch._merge_snapshot: the state of a
 *	  database that is merged into another one; branch._merge_over: the target has it;
 *	  branch._require_merge: whose it is; branch._written_by_merges: that nobody else writes
 *	  it down.
 *
 * Backends in the control database.  The snapshot is taken as the owner of the extension's
 * tables would take it: who merges needs no right to branch, only those that are checked
 * here.  The lock on its hidden row, which lasts until the transaction ends, keeps it until
 * the row of the merge names it (ab_tables.c).
 */
#include "ab_compat.h"

#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_mergelock.h"
#include "ab_remote.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_python.h"
#include "ab_sql_snapshot.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_merge_lock);
PG_FUNCTION_INFO_V1(ab_sql_merge_snapshot);
PG_FUNCTION_INFO_V1(ab_sql_merge_over);
PG_FUNCTION_INFO_V1(ab_sql_require_merge);
PG_FUNCTION_INFO_V1(ab_sql_written_by_merges);

/* Is the caller let in, and does it own the database? */
static bool
check_side(Oid db, char **name)
{
	Oid			user = GetUserId();

	*name = get_database_name(db);
	if (*name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", db)));
	ab_check_no_snapshot(*name);
	if (pg_database_aclcheck(db, user, ACL_CONNECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", *name),
				 errdetail("Role \"%s\" may not connect to it.",
						   GetUserNameFromId(user, true))));
	return pg_database_ownercheck(db, user);
}

static void
check_may_merge(Oid source, Oid target, char **source_name)
{
	char	   *target_name;
	bool		owns_target = check_side(target, &target_name);
	bool		owns_source = check_side(source, source_name);

	if (!owns_source && !owns_target)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to merge database \"%s\" into database \"%s\"",
						*source_name, target_name),
				 errdetail("Role \"%s\" owns neither of them.",
						   GetUserNameFromId(GetUserId(), true)),
				 errhint("Have the owner of one of them merge, or a superuser.")));
}

/*
 * Whoever could take it at any time could hold up others' merges.  One that takes a merge back
 * locks the target alone, and has seen to it that the merge is the caller's.
 */
Datum
ab_sql_merge_lock(PG_FUNCTION_ARGS)
{
	Oid			source = PG_GETARG_OID(0);
	Oid			target = PG_GETARG_OID(1);
	char	   *name;

	ab_require_control_database();
	if (!ab_sql_python_is_running())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to lock databases for a merge"),
				 errdetail("Only functions of the extension that merge do so."),
				 errhint("branch.merge() merges.")));
	if (source != target)
		check_may_merge(source, target, &name);
	ab_mergelock_take(source, target);
	PG_RETURN_VOID();
}

Datum
ab_sql_merge_snapshot(PG_FUNCTION_ARGS)
{
	Oid			source = PG_GETARG_OID(0);
	char		text[AB_SNAPID_TEXT_LEN + 1];
	char	   *name;
	AbSnapId	id;
	Oid			user;
	int			context;

	ab_require_control_database();
	ab_prevent_read_only("branch.merge()");
	check_may_merge(source, PG_GETARG_OID(1), &name);

	/* the abort of the (sub)transaction puts the user id back, too */
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(ab_tables_owner(), context | SECURITY_LOCAL_USERID_CHANGE);
	id = ab_sql_take_snapshot(source, name, true);
	SetUserIdAndSecContext(user, context);
	ab_snapid_format(id, text);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}

static char *
text_column(int column)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);
}

/*
 * Writes down that the target's transaction has committed, and tells.  The merge must be
 * the caller's; one whose end is written down already is left as it is.
 */
Datum
ab_sql_merge_over(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2] = {PG_GETARG_DATUM(0), ObjectIdGetDatum(GetUserId())};

	ab_require_control_database();
	ab_prevent_read_only("branch.merge()");
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (ab_tables_execute("UPDATE branch.merge_log SET state = 'merged',"
						  " finished_at = clock_timestamp()"
						  " WHERE id = $1 AND merged_by = $2 AND state = 'committing'"
						  " AND pg_xact_status(target_xid) = 'committed'"
						  " RETURNING source_id, source_name, json_strip_nulls(json_build_object("
						  "'merge_id', id, 'target', target_name, 'rows',"
						  " rows_inserted + rows_updated + rows_deleted, 'reverts', reverts))",
						  2, types, values, NULL) > 0)
	{
		bool		isnull;
		Oid			source = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
															SPI_tuptable->tupdesc, 1, &isnull));

		ab_event("merged", source, text_column(2), NULL, text_column(3));
	}
	SPI_finish();
	PG_RETURN_VOID();
}

/* 42501 for a merge that others have made, or nobody. */
Datum
ab_sql_require_merge(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2];

	ab_require_control_database();
	ab_sql_require(fcinfo, 0, "merge_id");
	values[0] = PG_GETARG_DATUM(0);
	values[1] = ObjectIdGetDatum(GetUserId());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (ab_tables_execute("SELECT 1 FROM branch.merge_log"
						  " WHERE id = $1 AND pg_has_role($2, merged_by, 'USAGE')",
						  2, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the current role has made no merge " INT64_FORMAT,
						DatumGetInt64(values[0])),
				 errhint("The view branch.merges lists merges; who merged sees the conflicts.")));
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * Before statements that write the tables of merges.  Users have the privileges, because it is
 * with their rights that merges are written down, by sessions in which nothing else is run;
 * elsewhere it is for those who restore a dump.
 */
Datum
ab_sql_written_by_merges(PG_FUNCTION_ARGS)
{
	Relation	table;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("branch._written_by_merges() must be called as a trigger")));
	table = ((TriggerData *) fcinfo->context)->tg_relation;
	if (!ab_remote_is_book() && !has_privs_of_role(GetUserId(), table->rd_rel->relowner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to write table \"branch.%s\"",
						RelationGetRelationName(table)),
				 errdetail("Only functions of the extension that merge do so."),
				 errhint("branch.merge() merges.")));
	return PointerGetDatum(NULL);
}
