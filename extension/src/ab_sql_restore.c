/*
 * ab_sql_restore.c
 *	  What becomes of rows of the extension's tables that pg_restore brings back.
 *
 * Backends in the control database: a trigger before each row that comes into a table
 * which pg_dump writes.  What the library writes itself is only completed.  Of other
 * rows those are left out that mean nothing here: OIDs say something in the cluster
 * only whose system identifier stands beside them, and of a branch only while it is
 * the same.  Where names stand beside the OIDs, these are looked for instead.
 *
 * Takes ShareRowExclusiveLock on branch.quota_list (ab_quotaload.c says why); a crash
 * leaves nothing: these are tables.
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_agentrole.h"
#include "ab_hidden.h"
#include "ab_origin.h"
#include "ab_quota.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_storagefiles.h"

PG_FUNCTION_INFO_V1(ab_sql_cluster);
PG_FUNCTION_INFO_V1(ab_sql_restored_row);

typedef struct Row
{
	Relation	rel;
	TupleDesc	desc;
	HeapTuple	tuple;
	bool		elsewhere;		/* written by another cluster */
} Row;

Datum
ab_sql_cluster(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64((int64) GetSystemIdentifier());
}

/* ---- columns ---- */

static int
column(const Row *row, const char *name)
{
	int			attr = SPI_fnumber(row->desc, name);

	if (attr <= 0)
		elog(ERROR, "table \"%s\" has no column \"%s\"", RelationGetRelationName(row->rel), name);
	return attr;
}

static Datum
get(const Row *row, const char *name, bool *isnull)
{
	return heap_getattr(row->tuple, column(row, name), row->desc, isnull);
}

static Oid
get_oid(const Row *row, const char *name)
{
	bool		isnull;
	Datum		value = get(row, name, &isnull);

	return isnull ? InvalidOid : DatumGetObjectId(value);
}

static char *
get_text(const Row *row, const char *name)
{
	bool		isnull;
	Datum		value = get(row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static void
put(Row *row, const char *name, Datum value, bool isnull)
{
	int			attr = column(row, name);

	row->tuple = heap_modify_tuple_by_cols(row->tuple, row->desc, 1, &attr, &value, &isnull);
}

/* ---- rows about branches and snapshots ---- */

/*
 * Columns db and origin_at: the branch is there and still the same, or the plain
 * database is there, of which origin_at says nothing (it is older than any branch).
 */
static bool
is_of_database(const Row *row)
{
	AbOriginHeader origin;
	Oid			db = get_oid(row, "db");
	bool		isnull;
	TimestampTz origin_at = DatumGetTimestampTz(get(row, "origin_at", &isnull));

	/* the files of a deleted one may still be there */
	if (row->elsewhere || !SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db)))
		return false;
	if (ab_storage_read_origin(db, &origin))
		return origin.created_at == origin_at;
	return origin_at < 0;
}

/*
 * The branch may have been recovered since.  Its agent's role is one that was made here
 * (branch.agent_roles is not dumped: a role of which nothing tells that it is a living
 * agent's would lose its rights).
 */
static void
settle_registry(Row *row)
{
	Oid			role = get_oid(row, "agent_role");

	if (!ab_database_is_deleted(get_oid(row, "db")))
	{
		put(row, "deleted_at", (Datum) 0, true);
		put(row, "deleted_by", (Datum) 0, true);
		put(row, "deleted_name", (Datum) 0, true);
		put(row, "deleted_allowconn", (Datum) 0, true);
	}
	if (OidIsValid(role) && ab_agent_is_role(role))
		ab_agent_roles_remember(1, &role);
}

static bool
is_of_snapshot(Row *row)
{
	char	   *text = get_text(row, "id");
	AbSnapId	id;
	AbHiddenAge age;

	/* the constraint speaks of that */
	if (text == NULL)
		return true;
	return !row->elsewhere && ab_snapid_parse(text, &id) && ab_hidden_read_age(id, &age);
}

/* The state that the next merge begins with; without it, it compares with the one before. */
static void
settle_merge(Row *row)
{
	char	   *text = get_text(row, "source_snapshot");
	AbSnapId	id;
	AbHiddenAge age;

	if (text != NULL && !(ab_snapid_parse(text, &id) && ab_hidden_read_age(id, &age)))
		put(row, "source_snapshot", (Datum) 0, true);
}

/* A plain database that is gone, as the control database that was lost itself. */
static bool
is_worth_no_word(const Row *row, const char *kind)
{
	bool		isnull;

	return !row->elsewhere && strcmp(kind, "branch") == 0 &&
		DatumGetTimestampTz(get(row, "origin_at", &isnull)) < 0;
}

/* Says so for the first one of a statement. */
static void
tell_left_out(FunctionCallInfo fcinfo, const Row *row, const char *kind)
{
	static bool said = true;

	if (fcinfo->flinfo->fn_extra != NULL || is_worth_no_word(row, kind))
		return;
	fcinfo->flinfo->fn_extra = &said;
	ereport(WARNING,
			(errmsg("rows of table \"branch.%s\" are left out", RelationGetRelationName(row->rel)),
			 row->elsewhere ?
			 errdetail("They are about branches of another cluster.") :
			 errdetail("They are about branches and snapshots that are not there any more.")));
}

/* ---- rows with names ---- */

static char *
name_of(bool database, Oid oid)
{
	if (!OidIsValid(oid))
		return NULL;
	return database ? get_database_name(oid) : GetUserNameFromId(oid, true);
}

/*
 * Make OID and name agree.  Who renames leaves the name here behind until the sweeper
 * comes, so within one cluster the OID decides as long as there is something of it.
 */
static bool
settle_name(Row *row, char **args, bool restored)
{
	bool		database = strcmp(args[0], "database") == 0;
	Oid			oid = get_oid(row, args[1]);
	char	   *written = get_text(row, args[2]);
	char	   *name = row->elsewhere ? NULL : name_of(database, oid);

	if (!OidIsValid(oid))
		return true;			/* of all of them */
	if (restored && name == NULL && written != NULL)
	{
		oid = database ? get_database_oid(written, true) : get_role_oid(written, true);
		name = written;
	}
	if (restored && (name == NULL || !OidIsValid(oid)))
	{
		ereport(WARNING,
				(errmsg("a row of table \"branch.%s\" is left out", RelationGetRelationName(row->rel)),
				 errdetail("There is no %s \"%s\".", args[0], written ? written : "?"),
				 errhint("Restore roles and databases before the control database, or have it said again.")));
		return false;
	}
	if (name == NULL)
		return true;			/* dropped a moment ago */
	put(row, args[1], ObjectIdGetDatum(oid), false);
	put(row, args[2], CStringGetTextDatum(name), false);
	return true;
}

static bool
settle_names(Row *row, int nargs, char **args, bool restored)
{
	for (int i = 0; i + 2 < nargs; i += 3)
		if (!settle_name(row, args + i, restored))
			return false;
	return true;
}

static int64
limit(const Row *row, const char *name)
{
	bool		isnull;
	Datum		value = get(row, name, &isnull);

	if (isnull)
		return AB_NO_LIMIT;
	return strcmp(name, "max_own_bytes") == 0 ? DatumGetInt64(value) : DatumGetInt32(value);
}

/* In force from commit on, as one that branch.set_quota() sets. */
static void
apply_quota(const Row *row)
{
	AbQuotaKey	key;
	AbQuotaLimits limits;

	key.role = get_oid(row, "role_id");
	key.parent = get_oid(row, "parent_id");
	limits.branches = limit(row, "max_branches");
	limits.own_bytes = limit(row, "max_own_bytes");
	limits.per_minute = limit(row, "max_creations_per_minute");
	limits.snapshots = limit(row, "max_snapshots");
	LockRelationOid(RelationGetRelid(row->rel), ShareRowExclusiveLock);
	ab_quota_change(key, &limits);
}

/* ---- the trigger ---- */

static bool
settle(FunctionCallInfo fcinfo, Row *row, int nargs, char **args)
{
	bool		stays = !row->elsewhere;

	if (strcmp(args[0], "branch") == 0)
		stays = is_of_database(row);
	else if (strcmp(args[0], "registry") == 0)
	{
		stays = is_of_database(row);
		if (stays)
			settle_registry(row);
	}
	else if (strcmp(args[0], "snapshot") == 0)
		stays = is_of_snapshot(row);
	else if (strcmp(args[0], "merge") == 0)
		settle_merge(row);
	else if (strcmp(args[0], "here") != 0)
	{
		if (!settle_names(row, nargs, args, true))
			return false;
		if (strcmp(RelationGetRelationName(row->rel), "quota_list") == 0)
			apply_quota(row);
		stays = true;
	}
	if (!stays)
		tell_left_out(fcinfo, row, args[0]);
	return stays;
}

/*
 * Arguments: 'branch' (columns db, origin_at), 'registry', 'snapshot' (column id), 'merge',
 * 'here' (whatever this cluster wrote stays), or triples: 'database' or 'role', the column of the OID,
 * the column of the name.  Before INSERT, and UPDATE too where there are names.
 */
Datum
ab_sql_restored_row(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	Row			row;
	bool		isnull;
	int			nargs;
	char	  **args;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) || data->tg_trigger->tgnargs == 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("branch._restored_row() is for the extension's own tables")));
	nargs = data->tg_trigger->tgnargs;
	args = data->tg_trigger->tgargs;
	row.rel = data->tg_relation;
	row.desc = RelationGetDescr(data->tg_relation);
	row.tuple = TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple : data->tg_trigtuple;
	row.elsewhere = DatumGetInt64(get(&row, "system_id", &isnull)) != (int64) GetSystemIdentifier();

	/* the library's own statements have this set (ab_tables.c) */
	if (InLocalUserIdChange() || !TRIGGER_FIRED_BY_INSERT(data->tg_event))
		(void) settle_names(&row, nargs, args, false);
	else if (!settle(fcinfo, &row, nargs, args))
		return PointerGetDatum(NULL);
	else if (row.elsewhere)
		put(&row, "system_id", Int64GetDatum((int64) GetSystemIdentifier()), false);
	return PointerGetDatum(row.tuple);
}
