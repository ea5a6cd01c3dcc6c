/*
 * ab_sql_registry.c
 *	  What people say about branches: when they expire, whether they are protected,
 *	  when they are suspended, how they are labelled.
 *
 * Backends in the control database.  Arguments are checked here and written to table
 * branch.registry, in the caller's transaction, under AccessShareLock on the database
 * object to its end: deleting and resetting the branch wait for that.
 */
#include "ab_sql_registry.h"

#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_events.h"
#include "ab_file.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_storagefiles.h"

PG_FUNCTION_INFO_V1(ab_sql_protect);
PG_FUNCTION_INFO_V1(ab_sql_unprotect);
PG_FUNCTION_INFO_V1(ab_sql_set_expiration);
PG_FUNCTION_INFO_V1(ab_sql_set_suspend_timeout);
PG_FUNCTION_INFO_V1(ab_sql_set_labels);
PG_FUNCTION_INFO_V1(ab_sql_set_default);
PG_FUNCTION_INFO_V1(ab_sql_default_parent);

/* ---- values ---- */

static void
set_field(AbRegistryRow *row, AbRegistryField field, Datum value)
{
	row->value[field] = value;
	row->isnull[field] = false;
}

/* In microseconds, with months of 30 days, as the server compares intervals. */
static double
interval_usecs(const Interval *i)
{
	return (double) i->time + ((double) i->month * DAYS_PER_MONTH + i->day) * USECS_PER_DAY;
}

static Datum
time_after(Interval *span, const char *argument, const char *hint)
{
	if (interval_usecs(span) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be longer than zero", argument),
				 errhint("%s", hint)));
	return TimestampTzGetDatum(ab_sql_time_from(GetCurrentTimestamp(), span, 1, argument));
}

static Datum
checked_suspend_timeout(Interval *span, const char *argument)
{
	double		seconds = interval_usecs(span) / USECS_PER_SEC;

	if (seconds < 0 || seconds > INT_MAX / 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is out of range", argument),
				 errdetail("It can be 0 to %d seconds; 0: never.", INT_MAX / 1000),
				 errhint("Null stands for the default.")));
	return IntervalPGetDatum(span);
}

static Datum
checked_labels(Jsonb *labels)
{
	if (!JB_ROOT_IS_OBJECT(labels))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"labels\" must be a JSON object"),
				 errhint("For example: {\"team\": \"search\"}.")));
	return JsonbPGetDatum(labels);
}

uint32
ab_sql_registry_arguments(FunctionCallInfo fcinfo, int first, AbRegistryRow *row)
{
	uint32		fields = 0;

	for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
		row->isnull[i] = true;
	if (!PG_ARGISNULL(first))
		set_field(row, AB_REGISTRY_EXPIRES_AT,
				  time_after(PG_GETARG_INTERVAL_P(first), "expires_in",
						  "Leave it out for a branch that does not expire."));
	if (ab_sql_bool(fcinfo, first + 1, false))
		set_field(row, AB_REGISTRY_PROTECTED_UNTIL, TimestampTzGetDatum(DT_NOEND));
	if (!PG_ARGISNULL(first + 2))
		set_field(row, AB_REGISTRY_SUSPEND_TIMEOUT,
				  checked_suspend_timeout(PG_GETARG_INTERVAL_P(first + 2), "suspend_timeout"));
	if (!PG_ARGISNULL(first + 3))
	{
		Jsonb	   *labels = PG_GETARG_JSONB_P(first + 3);

		(void) checked_labels(labels);
		if (JB_ROOT_COUNT(labels) > 0)
			set_field(row, AB_REGISTRY_LABELS, JsonbPGetDatum(labels));
	}
	for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
		if (!row->isnull[i])
			fields |= AB_REGISTRY_BIT(i);
	return fields;
}

/* ---- the branch ---- */

/* It may be replaced while we wait for the lock: then the new one is meant. */
Oid
ab_sql_lock_branch(const char *name, const char *verb)
{
	ab_prevent_read_only("changing a branch");
	for (;;)
	{
		Oid			db = ab_find_own_branch(name, verb);

		if (!OidIsValid(db))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_DATABASE),
					 errmsg("branch \"%s\" does not exist", name),
					 errhint("The view branch.branches lists those that do.")));
		LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
		if (ab_find_own_branch(name, verb) == db)
			return db;
		UnlockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	}
}

/* A field that is null already is not written: there may be no row. */
static void
put(Oid db, AbRegistryField field, Datum value, bool isnull)
{
	AbRegistryRow row;

	if (isnull && (!ab_registry_get(db, &row) || row.isnull[field]))
		return;
	ab_registry_put_field(db, field, value, isnull);
}

/* Report the change of a branch, and answer with its row. */
static Datum
finish(const char *event, Oid db, const char *name, const char *detail)
{
	AbOriginHeader header;
	char	   *parent = NULL;

	if (ab_storage_read_origin(db, &header))
		parent = ab_database_name(header.parent_db);
	ab_event(event, db, name, parent, detail);
	return ab_sql_branch_row(db, name);
}

/* {"key": "time"}, or {"key": null} where there is no end. */
static char *
time_detail(const char *key, bool isnull, TimestampTz time)
{
	char		text[MAXDATELEN + 1];

	if (isnull || TIMESTAMP_IS_NOEND(time))
		return psprintf("{\"%s\": null}", key);
	JsonEncodeDateTime(text, TimestampTzGetDatum(time), TIMESTAMPTZOID, NULL);
	return psprintf("{\"%s\": \"%s\"}", key, text);
}

/* ---- protection ---- */

Datum
ab_sql_protect(PG_FUNCTION_ARGS)
{
	Datum		until = TimestampTzGetDatum(DT_NOEND);
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	if (!PG_ARGISNULL(1))
		until = time_after(PG_GETARG_INTERVAL_P(1), "lease",
						"Leave it out for a protection that does not end by itself.");
	db = ab_sql_lock_branch(name, "protect");
	put(db, AB_REGISTRY_PROTECTED_UNTIL, until, false);
	PG_RETURN_DATUM(finish("protected", db, name,
						   time_detail("until", false, DatumGetTimestampTz(until))));
}

Datum
ab_sql_unprotect(PG_FUNCTION_ARGS)
{
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	db = ab_sql_lock_branch(name, "unprotect");
	put(db, AB_REGISTRY_PROTECTED_UNTIL, (Datum) 0, true);
	PG_RETURN_DATUM(finish("unprotected", db, name, NULL));
}

/* ---- expiration, suspension, labels ---- */

Datum
ab_sql_set_expiration(PG_FUNCTION_ARGS)
{
	bool		never = PG_ARGISNULL(1) || TIMESTAMP_IS_NOEND(PG_GETARG_TIMESTAMPTZ(1));
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	if (!never && PG_GETARG_TIMESTAMPTZ(1) <= GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"expires_at\" must be in the future"),
				 errhint("Null stands for never; branch.delete() deletes a branch now.")));
	db = ab_sql_lock_branch(name, "change");
	put(db, AB_REGISTRY_EXPIRES_AT, never ? (Datum) 0 : PG_GETARG_DATUM(1), never);
	PG_RETURN_DATUM(finish("expiration_set", db, name,
						   time_detail("expires_at", never, PG_GETARG_TIMESTAMPTZ(1))));
}

Datum
ab_sql_set_suspend_timeout(PG_FUNCTION_ARGS)
{
	Datum		timeout = (Datum) 0;
	const char *detail = "{\"seconds\": null}";
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	if (!PG_ARGISNULL(1))
	{
		timeout = checked_suspend_timeout(PG_GETARG_INTERVAL_P(1), "t");
		detail = psprintf("{\"seconds\": %.0f}",
						  interval_usecs(PG_GETARG_INTERVAL_P(1)) / USECS_PER_SEC);
	}
	db = ab_sql_lock_branch(name, "change");
	put(db, AB_REGISTRY_SUSPEND_TIMEOUT, timeout, PG_ARGISNULL(1));
	PG_RETURN_DATUM(finish("suspend_timeout_set", db, name, detail));
}

Datum
ab_sql_set_labels(PG_FUNCTION_ARGS)
{
	Datum		labels;
	char	   *text;
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"labels\" must not be null"),
				 errhint("{} takes all labels away.")));
	labels = checked_labels(PG_GETARG_JSONB_P(1));
	db = ab_sql_lock_branch(name, "change");
	put(db, AB_REGISTRY_LABELS, labels, false);
	text = JsonbToCString(NULL, &DatumGetJsonbP(labels)->root, -1);
	PG_RETURN_DATUM(finish("labels_set", db, name, psprintf("{\"labels\": %s}", text)));
}

/* ---- the default parent ---- */

/* A database that is not a branch can be it, too, but has no row in branch.branches. */
Datum
ab_sql_set_default(PG_FUNCTION_ARGS)
{
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	ab_prevent_read_only("branch.set_default()");
	if (!pg_database_ownercheck(MyDatabaseId, GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set the default parent"),
				 errdetail("Role \"%s\" does not own database \"%s\".",
						   GetUserNameFromId(GetUserId(), false), ab_control_database),
				 errhint("Any role can have one of its own: ALTER ROLE ... SET agent_branch.default_parent.")));
	db = ab_find_parent(name);
	ab_default_parent_set(name);
	if (ab_origin_exists(db))
		PG_RETURN_DATUM(finish("default_set", db, name, NULL));
	ab_event("default_set", db, name, NULL, NULL);
	PG_RETURN_NULL();
}

Datum
ab_sql_default_parent(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	PG_RETURN_TEXT_P(cstring_to_text(ab_default_parent_name()));
}
