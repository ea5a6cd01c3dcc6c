/*
 * ab_sql_registry.c
 *	  What people say about branches: when they expire, whether they are protected,
 *	  when they are suspended, how they are labelled.
 *
 * Backends in the control database.  Arguments are checked here and written to table
 * branch.registry, in the caller's transaction.
 */
#include "ab_sql_registry.h"

#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "ab_sql.h"

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
expiry_in(Interval *span)
{
	if (interval_usecs(span) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"expires_in\" must be longer than zero"),
				 errhint("Leave it out for a branch that does not expire.")));
	return DirectFunctionCall2(timestamptz_pl_interval,
							   TimestampTzGetDatum(GetCurrentTimestamp()),
							   IntervalPGetDatum(span));
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
		set_field(row, AB_REGISTRY_EXPIRES_AT, expiry_in(PG_GETARG_INTERVAL_P(first)));
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
