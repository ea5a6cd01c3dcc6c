/*
 * ab_sql.c
 *	  What the functions that SQL calls have in common.
 *
 * Backends in the control database.  No locks but those of ordinary queries.
 */
#include "ab_sql.h"

#include <sys/stat.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/syscache.h"

#include "ab_file.h"

void
ab_sql_require(FunctionCallInfo fcinfo, int n, const char *argument)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null", argument)));
}

char *
ab_sql_text(FunctionCallInfo fcinfo, int n)
{
	if (n >= PG_NARGS() || PG_ARGISNULL(n))
		return NULL;
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

char *
ab_sql_required_text(FunctionCallInfo fcinfo, int n, const char *argument)
{
	ab_sql_require(fcinfo, n, argument);
	return ab_sql_text(fcinfo, n);
}

bool
ab_sql_bool(FunctionCallInfo fcinfo, int n, bool when_null)
{
	return PG_ARGISNULL(n) ? when_null : PG_GETARG_BOOL(n);
}

/* The server adds months first, then days: each step has to lead to a time. */
TimestampTz
ab_sql_time_from(TimestampTz from, const Interval *span, int sign, const char *argument)
{
	double		part[3] = {
		(double) span->month * 31 * USECS_PER_DAY,
		(double) span->day * USECS_PER_DAY,
		(double) span->time
	};
	double		first = from;
	double		last = from;

	for (int i = 0; i < 3; i++)
	{
		first += Min(part[i] * sign, 0);
		last += Max(part[i] * sign, 0);
	}
	if (first < MIN_TIMESTAMP || last >= END_TIMESTAMP)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is out of range", argument),
				 errdetail("From now on it leads beyond the times that there are."),
				 errhint("Give an interval nearer to zero.")));
	return DatumGetTimestampTz(DirectFunctionCall2(sign < 0 ? timestamptz_mi_interval :
												   timestamptz_pl_interval,
												   TimestampTzGetDatum(from),
												   IntervalPGetDatum(span)));
}

/*
 * The plan is saved and generic: planning such a query takes longer than running it.  At
 * most a handful of queries, all of them literals, so the address identifies one.
 */
static SPIPlanPtr
saved_plan(const char *query, Oid type)
{
	static struct
	{
		const char *query;
		SPIPlanPtr	plan;
	}			plans[8];

	for (int i = 0; i < lengthof(plans); i++)
	{
		SPIPlanPtr	plan;

		if (plans[i].query == query)
			return plans[i].plan;
		if (plans[i].query != NULL)
			continue;
		plan = SPI_prepare_cursor(query, 1, &type, CURSOR_OPT_GENERIC_PLAN);
		if (plan == NULL)
			elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "SPI_keepplan failed");
		plans[i].plan = plan;
		plans[i].query = query;
		return plan;
	}
	elog(ERROR, "too many different queries");
}

void
ab_sql_raise_unseen(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to see %s", what)));
}

Datum
ab_sql_row(const char *query, Oid type, Datum value, const char *what)
{
	Datum		row = (Datum) 0;
	bool		isnull = true;
	int			ret;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	ret = SPI_execute_plan(saved_plan(query, type), &value, NULL, false, 1);
	if (ret != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(ret));
	if (SPI_processed > 0)
		row = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (isnull)
		ab_sql_raise_unseen(what);
	row = SPI_datumTransfer(row, false, -1);
	SPI_finish();
	return row;
}

bool
ab_sql_may_see(Oid db)
{
	Oid			user = GetUserId();

	if (has_privs_of_role(user, ROLE_PG_READ_ALL_STATS))
		return true;
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db)))
		return false;
	return pg_database_ownercheck(db, user) ||
		pg_database_aclcheck(db, user, ACL_CONNECT) == ACLCHECK_OK;
}

int64
ab_sql_file_bytes(AbSnapId id, const char *suffix)
{
	char	   *path = ab_snapshot_path(id, suffix);
	struct stat st;
	int64		bytes = 0;

	if (stat(path, &st) == 0)
		bytes = (int64) st.st_blocks * 512;
	pfree(path);
	return bytes;
}
