/*
 * ab_sql_schedule.c
 *	  branch.schedule_snapshots, unschedule_snapshots, take_scheduled_snapshots.
 *
 * Backends in the control database.  A schedule is a row of branch.schedules; any
 * scheduler that calls branch.take_scheduled_snapshots() often enough makes it work.
 * One such call at a time: an advisory lock, which a second call does not wait for.
 *
 * A run takes all snapshots first and writes names afterwards, since the control
 * database can be one of the parents and must not be written before.  Each step is a
 * subtransaction of its own; the snapshots stay protected until the run commits.
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_attempt.h"
#include "ab_catalogrows.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_snapshot.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_schedule_snapshots);
PG_FUNCTION_INFO_V1(ab_sql_unschedule_snapshots);
PG_FUNCTION_INFO_V1(ab_sql_take_scheduled_snapshots);

#define RUN_LOCK_KEY	0x41425343	/* "ABSC" */
#define RUN_LOCK_CLASS	0xAB	/* users' advisory locks have 1 and 2 here */

/* A name is <prefix>-YYYYMMDDTHHMMSSZ. */
#define STAMP_LENGTH	17
#define STAMP_FORMAT	"%Y%m%dT%H%M%SZ"

/* ---- making and dropping schedules ---- */

static char *
choose_prefix(const char *given, const char *parent)
{
	int			max = NAMEDATALEN - 1 - STAMP_LENGTH;
	char	   *prefix;

	if (given == NULL)
	{
		prefix = pstrdup(parent);
		prefix[pg_mbcliplen(prefix, strlen(prefix), max)] = '\0';
		return prefix;
	}
	ab_sql_check_snapshot_name(given);
	if (strlen(given) > max)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("name prefix \"%s\" is too long", given),
				 errdetail("It has %zu bytes, and with the time behind it %d fit into a name.",
						   strlen(given), max)));
	return pstrdup(given);
}

/* It must get us further than a scheduler can follow. */
static void
check_every(const Interval *every)
{
	TimestampTz now = GetCurrentTimestamp();

	if (ab_sql_time_from(now, every, 1, "every") < now + USECS_PER_MINUTE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"every\" must be at least one minute")));
}

/* The first one is due at once; one that is changed not later than it was. */
static void
put_schedule(Oid parent, const char *prefix, const Interval *every, const Interval *keep)
{
	Oid			types[5] = {OIDOID, TEXTOID, INTERVALOID, INTERVALOID, OIDOID};
	Datum		values[5];

	values[0] = ObjectIdGetDatum(parent);
	values[1] = CStringGetTextDatum(prefix);
	values[2] = IntervalPGetDatum(every);
	values[3] = IntervalPGetDatum(keep);
	values[4] = ObjectIdGetDatum(GetUserId());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("INSERT INTO branch.schedules AS s"
							 " (parent_id, name_prefix, every, keep, created_by, next_at)"
							 " VALUES ($1, $2, $3, $4, $5, clock_timestamp())"
							 " ON CONFLICT (parent_id, name_prefix) DO UPDATE"
							 " SET every = excluded.every, keep = excluded.keep,"
							 " created_by = excluded.created_by,"
							 " next_at = least(s.next_at, clock_timestamp() + excluded.every)",
							 5, types, values, NULL);
	SPI_finish();
}

Datum
ab_sql_schedule_snapshots(PG_FUNCTION_ARGS)
{
	static const char by_key[] =
	"SELECT s FROM branch.snapshot_schedules AS s"
	" WHERE pg_catalog.concat(s.parent_id, '/', s.name_prefix) OPERATOR(pg_catalog.=) $1";
	char	   *name;
	char	   *prefix;
	Oid			parent;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "parent");
	ab_sql_require(fcinfo, 1, "every");
	ab_sql_require(fcinfo, 2, "keep");
	check_every(PG_GETARG_INTERVAL_P(1));
	(void) ab_sql_keep_until(PG_GETARG_INTERVAL_P(2));
	prefix = choose_prefix(ab_sql_text(fcinfo, 3), name);

	ab_prevent_read_only("branch.schedule_snapshots()");
	parent = ab_find_parent(name);
	ab_check_parent_rights(parent, name);
	put_schedule(parent, prefix, PG_GETARG_INTERVAL_P(1), PG_GETARG_INTERVAL_P(2));
	PG_RETURN_DATUM(ab_sql_row(by_key, TEXTOID,
							   CStringGetTextDatum(psprintf("%u/%s", parent, prefix)),
							   psprintf("schedule \"%s\"", prefix)));
}

/* All schedules of a parent, or one; how many. */
Datum
ab_sql_unschedule_snapshots(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {OIDOID, TEXTOID};
	Datum		values[2] = {0, 0};
	char		nulls[3] = "  ";
	char	   *name;
	char	   *prefix;
	uint64		n;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "parent");
	prefix = ab_sql_text(fcinfo, 1);
	ab_prevent_read_only("branch.unschedule_snapshots()");
	values[0] = ObjectIdGetDatum(ab_find_parent(name));
	if (!pg_database_ownercheck(DatumGetObjectId(values[0]), GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_DATABASE, name);
	if (prefix)
		values[1] = CStringGetTextDatum(prefix);
	else
		nulls[1] = 'n';

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("DELETE FROM branch.schedules"
						  " WHERE parent_id = $1 AND name_prefix = coalesce($2, name_prefix)",
						  2, types, values, nulls);
	SPI_finish();
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("no such snapshots of database \"%s\" are scheduled", name),
				 errhint("The view branch.snapshot_schedules lists what is.")));
	PG_RETURN_INT32((int32) n);
}

/* ---- taking those that are due ---- */

typedef struct Due
{
	Oid			parent;
	char	   *prefix;
	Interval	keep;
	Oid			creator;
	char	   *parent_name;	/* set when taken */
	AbSnapId	id;				/* same */
	char	   *name;			/* set when named */
	char	   *error;			/* or why not */
} Due;

static bool
lock_run(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, InvalidOid, RUN_LOCK_KEY, 0, RUN_LOCK_CLASS);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

static List *
list_due(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *list = NIL;
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("SELECT s.parent_id, s.name_prefix, s.keep, s.created_by"
						  " FROM branch.schedules AS s"
						  " JOIN pg_database AS d ON d.oid = s.parent_id"
						  " WHERE s.next_at <= clock_timestamp()"
						  " AND NOT starts_with(d.datname, 'agent_branch_deleted_')"
						  " ORDER BY s.next_at, s.parent_id, s.name_prefix",
						  0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(caller);
		Due		   *due = palloc0(sizeof(Due));
		bool		isnull;

		due->parent = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		due->prefix = SPI_getvalue(tuple, desc, 2);
		due->keep = *DatumGetIntervalP(SPI_getbinval(tuple, desc, 3, &isnull));
		due->creator = DatumGetObjectId(SPI_getbinval(tuple, desc, 4, &isnull));
		list = lappend(list, due);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return list;
}

/*
 * From here on with the rights of who made the schedule; the end of the step puts the
 * caller back.
 */
static void
become_creator(const Due *due)
{
	Oid			user;
	int			context;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(due->creator)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the role that scheduled it does not exist any more"),
				 errhint("Schedule the snapshots again.")));
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(due->creator, context | SECURITY_LOCAL_USERID_CHANGE);
}

static void
take(void *arg)
{
	Due		   *due = arg;
	char	   *name = get_database_name(due->parent);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", due->parent)));
	become_creator(due);
	ab_check_parent_rights(due->parent, name);
	due->id = ab_sql_take_snapshot(due->parent, name, true);
	due->parent_name = MemoryContextStrdup(GetMemoryChunkContext(due), name);
}

static char *
stamped(const char *prefix)
{
	pg_time_t	now = timestamptz_to_time_t(GetCurrentTimestamp());
	char		stamp[STAMP_LENGTH];

	pg_strftime(stamp, sizeof(stamp), STAMP_FORMAT, pg_gmtime(&now));
	return psprintf("%s-%s", prefix, stamp);
}

/* Name it, and say when the next one is due: if some were missed, they are not made up for. */
static void
name_it(void *arg)
{
	Due		   *due = arg;
	Oid			types[3] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[3];
	TimestampTz until = ab_sql_keep_until(&due->keep);
	char	   *name = stamped(due->prefix);

	become_creator(due);
	ab_sql_name_snapshot(name, due->id, due->parent, due->parent_name, &until);
	values[0] = ObjectIdGetDatum(due->parent);
	values[1] = CStringGetTextDatum(due->prefix);
	values[2] = CStringGetTextDatum(name);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("UPDATE branch.schedules"
							 " SET last_at = clock_timestamp(), last_name = $3, last_error = NULL,"
							 " next_at = CASE WHEN next_at + every > clock_timestamp()"
							 " THEN next_at + every ELSE clock_timestamp() + every END"
							 " WHERE parent_id = $1 AND name_prefix = $2",
							 3, types, values, NULL);
	SPI_finish();
	due->name = MemoryContextStrdup(GetMemoryChunkContext(due), name);
}

static void
report_failure(Due *due, ErrorData *edata)
{
	char	   *parent = get_database_name(due->parent);

	due->error = edata->message;
	ereport(WARNING,
			(errcode(edata->sqlerrcode),
			 errmsg("could not take the scheduled snapshot \"%s\" of database \"%s\": %s",
					due->prefix, parent ? parent : "(dropped)", edata->message),
			 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
			 edata->hint ? errhint("%s", edata->hint) : 0));
}

/* One step for one schedule; what fails is reported, and the others go on. */
static void
attempt(void (*step) (void *), Due *due)
{
	ErrorData  *edata = ab_attempt(step, due);

	if (edata != NULL)
		report_failure(due, edata);
}

/* The next run tries again. */
static void
remember_error(const Due *due)
{
	Oid			types[3] = {OIDOID, TEXTOID, TEXTOID};
	Datum		values[3];

	values[0] = ObjectIdGetDatum(due->parent);
	values[1] = CStringGetTextDatum(due->prefix);
	values[2] = CStringGetTextDatum(due->error);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("UPDATE branch.schedules SET last_error = $3"
							 " WHERE parent_id = $1 AND name_prefix = $2",
							 3, types, values, NULL);
	SPI_finish();
}

static void
put_taken(ReturnSetInfo *rsinfo, const Due *due)
{
	char		id[AB_SNAPID_TEXT_LEN + 1];
	Datum		values[3];
	bool		nulls[3] = {false};

	ab_snapid_format(due->id, id);
	values[0] = CStringGetTextDatum(due->parent_name);
	values[1] = CStringGetTextDatum(due->name);
	values[2] = CStringGetTextDatum(id);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

Datum
ab_sql_take_scheduled_snapshots(PG_FUNCTION_ARGS)
{
	List	   *due;
	ListCell   *lc;

	ab_require_control_database();
	ab_prevent_read_only("branch.take_scheduled_snapshots()");
	InitMaterializedSRF(fcinfo, 0);
	if (!lock_run())
	{
		ereport(NOTICE,
				(errmsg("scheduled snapshots are being taken by another session")));
		return (Datum) 0;
	}
	due = list_due();
	foreach(lc, due)
		attempt(take, lfirst(lc));
	foreach(lc, due)
	{
		Due		   *d = lfirst(lc);

		if (AbSnapIdIsValid(d->id))
			attempt(name_it, d);
		if (d->error)
			remember_error(d);
		else
			put_taken((ReturnSetInfo *) fcinfo->resultinfo, d);
	}
	return (Datum) 0;
}
