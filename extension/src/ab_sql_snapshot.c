/*
 * ab_sql_snapshot.c
 *	  branch.snapshot, drop_snapshot, gc.
 *
 * Backends in the control database.  A named snapshot is a row of
 * branch.named_snapshots and lives as long as that; the lock on the hidden database,
 * which ab_snapshot_get() takes and keeps, protects it until the row is committed
 * (ab_hidden.c looks for it under the opposite lock).
 */
#include "ab_compat.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/inval.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_agentrole.h"
#include "ab_base.h"
#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_events.h"
#include "ab_eventsync.h"
#include "ab_gather.h"
#include "ab_gc.h"
#include "ab_hidden.h"
#include "ab_registry.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_snapnames.h"
#include "ab_snapshot.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_sql_quota.h"
#include "ab_sql_snapshot.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_snapshot);
PG_FUNCTION_INFO_V1(ab_sql_drop_snapshot);
PG_FUNCTION_INFO_V1(ab_sql_gc);

/* ---- named snapshots ---- */

/* A name that could be an id would make "which snapshot" ambiguous. */
void
ab_sql_check_snapshot_name(const char *name)
{
	AbSnapId	id;

	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a snapshot must not be empty")));
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("snapshot name \"%s\" is too long", name),
				 errdetail("It has %zu bytes, and a name can have %d.",
						   strlen(name), NAMEDATALEN - 1)));
	if (ab_snapid_parse(name, &id))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("snapshot name \"%s\" is reserved", name),
				 errdetail("Names of this form are ids of snapshots.")));
}

TimestampTz
ab_sql_keep_until(const Interval *keep)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until = ab_sql_time_from(now, keep, 1, "keep");

	if (until <= now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"keep\" must be positive")));
	return until;
}

static void
raise_duplicate(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("snapshot \"%s\" already exists", name),
			 errhint("Choose another name, or use branch.drop_snapshot first.")));
}

static bool
snapshot_name_exists(const char *name)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};
	bool		exists;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	exists = ab_tables_execute("SELECT 1 FROM branch.named_snapshots WHERE name = $1"
							   " AND (keep_until IS NULL OR keep_until > clock_timestamp())",
							   1, types, values, NULL) > 0;
	SPI_finish();
	return exists;
}

/* A name whose time is over is free, even if no sweep has come by yet. */
void
ab_sql_name_snapshot(const char *name, AbSnapId id, Oid source, const char *source_name,
					 const TimestampTz *until)
{
	Oid			types[6] = {TEXTOID, TEXTOID, OIDOID, TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[6];
	char		nulls[7] = "      ";
	char		text[AB_SNAPID_TEXT_LEN + 1];
	uint64		n;

	ab_sql_check_snapshot_quota(source);
	ab_snapid_format(id, text);
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(text);
	values[2] = ObjectIdGetDatum(source);
	values[3] = CStringGetTextDatum(source_name);
	values[4] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[5] = (Datum) 0;
	if (until)
		values[5] = TimestampTzGetDatum(*until);
	else
		nulls[5] = 'n';

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("INSERT INTO branch.named_snapshots AS n"
						  " (name, id, source_id, source_name, created_by, keep_until)"
						  " VALUES ($1, $2, $3, $4, $5, $6)"
						  " ON CONFLICT (name) DO UPDATE SET id = excluded.id,"
						  " source_id = excluded.source_id, source_name = excluded.source_name,"
						  " created_at = excluded.created_at, created_by = excluded.created_by,"
						  " keep_until = excluded.keep_until, closed_at = NULL, warned_at = NULL"
						  " WHERE n.keep_until <= clock_timestamp()",
						  6, types, values, nulls);
	SPI_finish();
	if (n == 0)
		raise_duplicate(name);
	ab_snapnames_report("snapshot_taken", name, source, source_name);
}

/* A snapshot that is as old as its source cannot be kept for long if that is old. */
static void
check_age(AbSnapId id, const char *dbname)
{
	AbHiddenAge age;

	if (!ab_hidden_read_age(id, &age) || age.used < AB_HIDDEN_AGE_WARN)
		return;
	ereport(age.used < AB_HIDDEN_AGE_CLOSE ? WARNING : ERROR,
			(errcode(age.used < AB_HIDDEN_AGE_CLOSE ? ERRCODE_WARNING :
					 ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 age.used < AB_HIDDEN_AGE_CLOSE ?
			 errmsg("a snapshot of database \"%s\" can be branched for a short time only", dbname) :
			 errmsg("a snapshot of database \"%s\" cannot be kept", dbname),
			 errdetail("The transaction ids of the database are at %.0f %% of the age that autovacuum allows; at %.0f %% snapshots are closed.",
					   age.used * 100, AB_HIDDEN_AGE_CLOSE * 100),
			 errhint("Run VACUUM (FREEZE) in the database, and take a snapshot then.")));
}

AbSnapId
ab_sql_take_snapshot(Oid db, const char *dbname, bool kept)
{
	AbHiddenAge age;
	AbSnapId	id;

	ab_lock_parent(db, dbname);
	id = ab_snapshot_get(db, false);
	if (!kept)
		return id;

	/* VACUUM (FREEZE) changes nothing that would ask for a new one by itself */
	AcceptInvalidationMessages();
	if (ab_hidden_read_age(id, &age) && age.used >= AB_HIDDEN_AGE_UNNAMED &&
		ab_hidden_source_is_younger(db, &age))
		id = ab_snapshot_get(db, true);
	check_age(id, dbname);
	return id;
}

/* branch.snapshot(parent, name, keep): without a name and a time it is not kept. */
Datum
ab_sql_snapshot(PG_FUNCTION_ARGS)
{
	static const char by_name[] =
	"SELECT s FROM branch.snapshots AS s WHERE s.name OPERATOR(pg_catalog.=) $1";
	static const char by_id[] =
	"SELECT s FROM branch.snapshots AS s WHERE s.id OPERATOR(pg_catalog.=) $1"
	" ORDER BY s.name NULLS FIRST";
	char	   *parent_name;
	char	   *name;
	TimestampTz until = 0;
	bool		has_keep = !PG_ARGISNULL(2);
	char		text[AB_SNAPID_TEXT_LEN + 1];
	AbSnapId	id;
	Oid			parent;

	ab_require_control_database();
	parent_name = ab_sql_text(fcinfo, 0);
	if (parent_name == NULL)
		parent_name = ab_default_parent_name();
	name = ab_sql_text(fcinfo, 1);
	if (name)
		ab_sql_check_snapshot_name(name);
	if (has_keep)
		until = ab_sql_keep_until(PG_GETARG_INTERVAL_P(2));

	ab_prevent_read_only("branch.snapshot()");
	parent = ab_find_parent(parent_name);
	ab_check_parent_rights(parent, parent_name);
	if (name && snapshot_name_exists(name))
		raise_duplicate(name);

	id = ab_sql_take_snapshot(parent, parent_name, name || has_keep);
	ab_snapid_format(id, text);
	if (name == NULL && !has_keep)
		PG_RETURN_DATUM(ab_sql_row(by_id, TEXTOID, CStringGetTextDatum(text),
								   psprintf("snapshot \"%s\"", text)));
	if (name == NULL)
		name = psprintf("%s-%s", text, timestamptz_to_str(until));
	ab_sql_name_snapshot(name, id, parent, parent_name, has_keep ? &until : NULL);
	PG_RETURN_DATUM(ab_sql_row(by_name, TEXTOID, CStringGetTextDatum(name),
							   psprintf("snapshot \"%s\"", name)));
}

/* The source of a named snapshot, and its name then; false if there is none such. */
static bool
find_name(const char *name, Oid *source, char **source_name)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};
	MemoryContext caller = CurrentMemoryContext;
	bool		isnull;
	bool		found;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	found = ab_tables_execute("SELECT source_id, source_name FROM branch.named_snapshots"
							  " WHERE name = $1 FOR UPDATE",
							  1, types, values, NULL) > 0;
	if (found)
	{
		*source = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 1, &isnull));
		*source_name = MemoryContextStrdup(caller,
										   SPI_getvalue(SPI_tuptable->vals[0],
														SPI_tuptable->tupdesc, 2));
	}
	SPI_finish();
	return found;
}

/*
 * Only the name goes; branches of the snapshot live on, and the snapshot is given
 * back by gc once it has none.
 */
Datum
ab_sql_drop_snapshot(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	Oid			source = InvalidOid;
	char	   *source_name;
	char	   *name;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	ab_prevent_read_only("branch.drop_snapshot()");
	if (!find_name(name, &source, &source_name))
	{
		if (!ab_sql_bool(fcinfo, 1, false))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("snapshot \"%s\" does not exist", name),
					 errhint("The view branch.snapshots lists those that do.")));
		ereport(NOTICE,
				(errmsg("snapshot \"%s\" does not exist, skipping", name)));
		PG_RETURN_VOID();
	}
	if (!superuser() &&
		(!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(source)) ||
		 !pg_database_ownercheck(source, GetUserId())))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to drop snapshot \"%s\"", name),
				 errhint("Superusers and the owner of the database it was taken of can drop it.")));

	values[0] = CStringGetTextDatum(name);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("DELETE FROM branch.named_snapshots WHERE name = $1",
							 1, types, values, NULL);
	SPI_finish();
	ab_snapnames_report("snapshot_dropped", name, source, source_name);
	PG_RETURN_VOID();
}

/* ---- garbage collection ---- */

/* Rows and roles of databases that are no more. */
static void
forget_gone_databases(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("DELETE FROM branch.schedules AS s WHERE NOT EXISTS"
							 " (SELECT 1 FROM pg_database AS d WHERE d.oid = s.parent_id)",
							 0, NULL, NULL, NULL);
	SPI_finish();
	ab_registry_forget();
	ab_agent_roles_sweep();
}

static void
put_items(ReturnSetInfo *rsinfo, List *items)
{
	ListCell   *lc;

	foreach(lc, items)
	{
		AbGcItem   *item = lfirst(lc);
		Datum		values[3];
		bool		nulls[3] = {false, false, false};

		values[0] = CStringGetTextDatum(item->kind);
		values[1] = CStringGetTextDatum(item->name);
		values[2] = Int64GetDatum(item->bytes);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

Datum
ab_sql_gc(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		dry_run;

	ab_require_control_database();
	dry_run = ab_sql_bool(fcinfo, 0, false);
	PreventCommandDuringRecovery("branch.gc()");
	if (!dry_run)
		ab_prevent_read_only("branch.gc()");
	InitMaterializedSRF(fcinfo, 0);
	ab_request_first_sweep();
	/* their storage is given back when that is committed, by the sweeper or the next run */
	put_items(rsinfo, ab_purge_due(dry_run));
	if (!dry_run)
		ab_base_sweep(true);
	put_items(rsinfo, ab_sweep_orphans(dry_run));
	if (!dry_run)
		ab_snapnames_expire();
	put_items(rsinfo, ab_retire_snapshots(dry_run, true, ab_tables_kept_snapshots()));
	if (!dry_run)
	{
		/* deleted branches whose files were needed until now, and what these held */
		put_items(rsinfo, ab_sweep_orphans(false));
		put_items(rsinfo, ab_retire_snapshots(false, true, ab_tables_kept_snapshots()));
		forget_gone_databases();
	}
	ab_hidden_warn(true);
	if (!dry_run)
	{
		ab_gather();
		ab_tables_prune_merges();
		(void) ab_eventsync_compare();
		while (ab_eventsync_prune(true) > 0)
			CHECK_FOR_INTERRUPTS();
	}
	return (Datum) 0;
}
