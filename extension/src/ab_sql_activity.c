/*
 * ab_sql_activity.c
 *	  branch._activity(): what clients did in each database, up to this moment.
 *
 * Backends in the control database.  Table and shared memory are read together
 * (ab_activityflush.h).
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_activityflush.h"
#include "ab_settings.h"
#include "ab_sql.h"

PG_FUNCTION_INFO_V1(ab_sql_activity_all);
PG_FUNCTION_INFO_V1(ab_sql_activity);

#define ACTIVITY_COLUMNS 10		/* without the database's OID */

static void
fill(const AbActivity *a, Datum *values, bool *nulls)
{
	memset(nulls, false, ACTIVITY_COLUMNS);
	values[0] = TimestampTzGetDatum(a->origin_at);
	values[1] = TimestampTzGetDatum(a->since);
	values[2] = TimestampTzGetDatum(a->last_active);
	nulls[2] = TIMESTAMP_IS_NOBEGIN(a->last_active);
	values[3] = Int64GetDatum(a->pending.sessions);
	values[4] = Int64GetDatum(a->pending.requests);
	values[5] = Int64GetDatum(a->pending.active_us);
	values[6] = Int64GetDatum(a->pending.rows);
	values[7] = Int64GetDatum(a->pending.bytes);
	values[8] = TimestampTzGetDatum(a->suspended_at);
	nulls[8] = a->suspended_at == 0;
	values[9] = Int32GetDatum(a->sessions);
}

Datum
ab_sql_activity_all(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	AbActivity *all;
	int			n;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	all = ab_activityflush_read_all(&n);
	for (int i = 0; i < n; i++)
	{
		Datum		values[ACTIVITY_COLUMNS + 1];
		bool		nulls[ACTIVITY_COLUMNS + 1];

		CHECK_FOR_INTERRUPTS();
		if (!ab_sql_may_see(all[i].db))
			continue;
		values[0] = ObjectIdGetDatum(all[i].db);
		nulls[0] = false;
		fill(&all[i], values + 1, nulls + 1);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Datum
ab_sql_activity(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	AbActivity	total;
	TupleDesc	desc;
	Datum		values[ACTIVITY_COLUMNS];
	bool		nulls[ACTIVITY_COLUMNS];

	ab_require_control_database();
	if (!ab_sql_may_see(db) || !ab_activityflush_read(db, &total))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	fill(&total, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
