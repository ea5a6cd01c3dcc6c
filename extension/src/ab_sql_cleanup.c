/*
 * ab_sql_cleanup.c
 *	  branch.cleanup, cleanup_inactive_branches, auto_cleanup_branches, and the locks
 *	  of jobs.
 *
 * Backends in the control database, with the rights of whoever may call them: a branch
 * that is not the caller's is skipped.
 */
#include "ab_compat.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_catalogrows.h"
#include "ab_cleanup.h"
#include "ab_joblock.h"
#include "ab_settings.h"
#include "ab_sql.h"

PG_FUNCTION_INFO_V1(ab_sql_cleanup);
PG_FUNCTION_INFO_V1(ab_sql_cleanup_inactive_branches);
PG_FUNCTION_INFO_V1(ab_sql_auto_cleanup_branches);
PG_FUNCTION_INFO_V1(ab_sql_job_lock);
PG_FUNCTION_INFO_V1(ab_sql_job_unlock);

/* Their locks are held to the end of the transaction. */
#define CLEANUP_LIMIT 1000

/* In a NOTICE. */
#define NAMES_SHOWN 5

/* Not used for the interval that is an argument; if there is none, for what is set. */
static AbUnused
unused_for(FunctionCallInfo fcinfo, int n)
{
	AbUnused	unused = {.now = GetCurrentTimestamp(), .as_set = true};

	if (n == PG_NARGS() || PG_ARGISNULL(n))
		return unused;
	unused.as_set = false;
	unused.before = ab_sql_time_from(unused.now, PG_GETARG_INTERVAL_P(n), -1, "unused_for");
	if (unused.before > unused.now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"unused_for\" must not be negative")));
	return unused;
}

Datum
ab_sql_cleanup(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		dry_run;
	int			limit = CLEANUP_LIMIT;
	ListCell   *lc;

	ab_require_control_database();
	dry_run = ab_sql_bool(fcinfo, 0, false);
	if (!PG_ARGISNULL(2))
		limit = PG_GETARG_INT32(2);
	if (limit <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_branches\" must be positive")));
	if (!dry_run)
		ab_prevent_read_only("branch.cleanup()");
	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, ab_cleanup(unused_for(fcinfo, 1), dry_run, limit))
	{
		AbExpired  *e = lfirst(lc);
		Datum		values[4];
		bool		nulls[4] = {false};

		values[0] = CStringGetTextDatum(e->name);
		values[1] = CStringGetTextDatum(e->deleted ? "delete" : "skip");
		values[2] = CStringGetTextDatum(e->reason);
		values[3] = TimestampTzGetDatum(e->last_used);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* ---- as the agents' functions have it ---- */

static void
report_skipped(List *due)
{
	StringInfoData names;
	int			skipped = 0;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, due)
	{
		const AbExpired *e = lfirst(lc);

		if (!e->deleted && ++skipped <= NAMES_SHOWN)
			appendStringInfo(&names, "%s\"%s\": %s", skipped > 1 ? "; " : "",
							 e->name, e->reason);
	}
	if (skipped > NAMES_SHOWN)
		appendStringInfoString(&names, "; and others");
	if (skipped > 0)
		ereport(NOTICE,
				(errmsg_plural("%d unused branch is not deleted",
							   "%d unused branches are not deleted", skipped, skipped),
				 errdetail_internal("%s", names.data),
				 errhint("branch.cleanup(dry_run => true) lists them all.")));
}

static int32
clean_up(FunctionCallInfo fcinfo, const char *function)
{
	bool		dry_run = ab_sql_bool(fcinfo, 0, false);
	int32		n = 0;
	List	   *due;
	ListCell   *lc;

	if (!dry_run)
		ab_prevent_read_only(function);
	due = ab_cleanup(unused_for(fcinfo, PG_NARGS()), dry_run, CLEANUP_LIMIT);
	foreach(lc, due)
		n += ((AbExpired *) lfirst(lc))->deleted;
	report_skipped(due);
	if (n == CLEANUP_LIMIT)
		ereport(NOTICE,
				(errmsg("there may be more unused branches"),
				 errdetail("One transaction deletes %d.", CLEANUP_LIMIT),
				 errhint("Call %s again.", function)));
	return n;
}

Datum
ab_sql_cleanup_inactive_branches(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	PG_RETURN_INT32(clean_up(fcinfo, "cleanup_inactive_branches()"));
}

/* What a scheduler calls: it does not matter which of two runs does the work. */
Datum
ab_sql_auto_cleanup_branches(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	if (!ab_joblock_take("cleanup", false))
	{
		ereport(NOTICE,
				(errmsg("unused branches are being deleted by another session")));
		PG_RETURN_INT32(0);
	}
	PG_RETURN_INT32(clean_up(fcinfo, "auto_cleanup_branches()"));
}

/* ---- locks of jobs ---- */

Datum
ab_sql_job_lock(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	PG_RETURN_BOOL(ab_joblock_take(text_to_cstring(PG_GETARG_TEXT_PP(0)), true));
}

Datum
ab_sql_job_unlock(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	PG_RETURN_BOOL(ab_joblock_release(text_to_cstring(PG_GETARG_TEXT_PP(0))));
}
