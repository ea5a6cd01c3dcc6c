/*
 * ab_sql_events.c
 *	  branch.events_after, and events that are not the library's.
 *
 * Backends in the control database.  No locks but those of ordinary queries.
 */
#include "ab_compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "ab_eventorder.h"
#include "ab_events.h"
#include "ab_settings.h"
#include "ab_sql.h"

PG_FUNCTION_INFO_V1(ab_sql_events_after);
PG_FUNCTION_INFO_V1(ab_sql_event);

static void
check_arguments(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"id\" must not be null"),
				 errhint("Pass the id of the last event that you have got, or 0.")));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_rows\" must not be null"),
				 errhint("Leave it out for at most 1000 events.")));
	if (PG_GETARG_INT32(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_rows\" must not be negative")));
}

/*
 * The view is read with the caller's rights.  Its snapshot has to be newer than the
 * answer to what is settled.
 */
Datum
ab_sql_events_after(PG_FUNCTION_ARGS)
{
	static const char query[] =
	"SELECT * FROM branch.events AS e WHERE e.id OPERATOR(pg_catalog.>) $1"
	" AND e.id OPERATOR(pg_catalog.<=) $2 ORDER BY e.id LIMIT $3";
	Oid			types[3] = {INT8OID, INT8OID, INT4OID};
	Datum		values[3];
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	check_arguments(fcinfo);
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("branch.events_after cannot be called in a transaction with isolation level REPEATABLE READ or SERIALIZABLE"),
				 errdetail("What it must not miss may have been committed after the transaction's snapshot."),
				 errhint("Use READ COMMITTED.")));
	PreventCommandDuringRecovery("branch.events_after()");
	values[0] = PG_GETARG_DATUM(0);
	values[1] = Int64GetDatum(ab_eventorder_settled(ab_events_sequence()));
	values[2] = PG_GETARG_DATUM(1);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(query, 3, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed");
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
	return (Datum) 0;
}

/* For the extension's own functions; nobody else may call it. */
Datum
ab_sql_event(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	ab_event(text_to_cstring(PG_GETARG_TEXT_PP(0)), PG_GETARG_OID(1),
			 text_to_cstring(PG_GETARG_TEXT_PP(2)), NULL,
			 text_to_cstring(PG_GETARG_TEXT_PP(3)));
	PG_RETURN_VOID();
}
