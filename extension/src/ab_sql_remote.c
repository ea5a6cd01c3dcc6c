/*
 * ab_sql_remote.c
 *	  Sessions in other databases for PL/Python and SQL: branch._remote_*.
 *
 * Backends in the control database.  A session is named by its number, which only the
 * role that opened it can use; everything else is ab_remote.h's.  Sessions of merges are
 * opened and used while a function of the extension runs, and never by others: what such a
 * one has left open ends with the transaction.
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "ab_remote.h"
#include "ab_settings.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_sql_python.h"
#include "ab_storagefiles.h"

PG_FUNCTION_INFO_V1(ab_sql_remote_open);
PG_FUNCTION_INFO_V1(ab_sql_remote_open_book);
PG_FUNCTION_INFO_V1(ab_sql_remote_open_target);
PG_FUNCTION_INFO_V1(ab_sql_sides_ahead);
PG_FUNCTION_INFO_V1(ab_sql_remote_run);
PG_FUNCTION_INFO_V1(ab_sql_remote_columns);
PG_FUNCTION_INFO_V1(ab_sql_remote_fetch);
PG_FUNCTION_INFO_V1(ab_sql_remote_query);
PG_FUNCTION_INFO_V1(ab_sql_remote_send_each);
PG_FUNCTION_INFO_V1(ab_sql_remote_rows_each);
PG_FUNCTION_INFO_V1(ab_sql_remote_copy);
PG_FUNCTION_INFO_V1(ab_sql_remote_gather);
PG_FUNCTION_INFO_V1(ab_sql_remote_commit);
PG_FUNCTION_INFO_V1(ab_sql_remote_save);
PG_FUNCTION_INFO_V1(ab_sql_remote_close);
PG_FUNCTION_INFO_V1(ab_sql_remote_rows);

/* ---- arguments ---- */

static Oid
find_database(const char *name)
{
	Oid			db = get_database_oid(name, true);

	if (!OidIsValid(db))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database \"%s\" does not exist", name),
				 errhint("The view branch.branches lists the branches.")));
	return db;
}

static int
parse_isolation(const char *value)
{
	if (value == NULL)
		return -1;
	if (strcmp(value, "read committed") == 0)
		return XACT_READ_COMMITTED;
	if (strcmp(value, "repeatable read") == 0)
		return XACT_REPEATABLE_READ;
	if (strcmp(value, "serializable") == 0)
		return XACT_SERIALIZABLE;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"isolation\": \"%s\"", value),
			 errhint("It can be read committed, repeatable read or serializable.")));
}

static AbRemote *
session_of(int number)
{
	AbRemote   *session = ab_remote_find(number);

	if (session == NULL ||
		(ab_remote_purpose(session) != AB_REMOTE_FOR_ANYTHING && !ab_sql_python_is_running()))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no such session in another database"),
				 errdetail("A session ends with the transaction or savepoint that opened it, and is its role's alone.")));
	return session;
}

static AbRemote *
get_session(FunctionCallInfo fcinfo)
{
	ab_require_control_database();
	return session_of(PG_ARGISNULL(0) ? 0 : PG_GETARG_INT32(0));
}

/* ---- rows ---- */

/* As a text[], nulls being null. */
static Datum
row_datum(AbRemote *session)
{
	int			n;
	const int  *lengths;
	char	  **texts = ab_remote_values(session, &lengths);
	Datum	   *values;
	bool	   *nulls;
	int			dims[1];
	int			lbs[1] = {1};

	(void) ab_remote_columns(session, &n);
	if (n == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	values = palloc(sizeof(Datum) * n);
	nulls = palloc(sizeof(bool) * n);
	for (int i = 0; i < n; i++)
	{
		nulls[i] = texts[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 :
			PointerGetDatum(cstring_to_text_with_len(texts[i], lengths[i]));
	}
	dims[0] = n;
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, lbs, TEXTOID, -1,
											  false, TYPALIGN_INT));
}

/* n, if not 0, comes before it. */
static void
put_row(AbRemote *session, ReturnSetInfo *rsinfo, int n, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum		values[2] = {Int32GetDatum(n), row_datum(session)};
	bool		nulls[2] = {false, false};
	int			first = n == 0 ? 1 : 0;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values + first, nulls + first);
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
}

/* Up to so many rows; all if negative.  What comes after the last is taken as well. */
static void
fetch(AbRemote *session, FunctionCallInfo fcinfo, int64 max_rows, int n)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "remote row",
												  ALLOCSET_DEFAULT_SIZES);

	while (max_rows != 0 && !ab_remote_is_ready(session))
	{
		switch (ab_remote_next(session))
		{
			case AB_REMOTE_ROW:
				put_row(session, rsinfo, n, context);
				max_rows--;
				break;
			case AB_REMOTE_COLUMNS:
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("more than one of the statements returns rows"),
						 errhint("Run them one after the other.")));
				break;
			default:
				break;
		}
	}
	MemoryContextDelete(context);
}

/* Until there are rows to fetch, or everything is done. */
static bool
run_until_rows(AbRemote *session)
{
	for (;;)
	{
		switch (ab_remote_next(session))
		{
			case AB_REMOTE_COLUMNS:
				return true;
			case AB_REMOTE_READY:
				return false;
			default:
				break;
		}
	}
}

/* ---- functions ---- */

Datum
ab_sql_remote_open(PG_FUNCTION_ARGS)
{
	AbRemoteOptions options = {AB_REMOTE_AS_SET, -1, false};
	char	   *name;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "db");
	if (!PG_ARGISNULL(1))
		options.access = PG_GETARG_BOOL(1) ? AB_REMOTE_READ_ONLY : AB_REMOTE_READ_WRITE;
	options.isolation = parse_isolation(ab_sql_text(fcinfo, 2));
	PG_RETURN_INT32(ab_remote_number(ab_remote_open(find_database(name), &options)));
}

static void
require_own_function(void)
{
	ab_require_control_database();
	if (!ab_sql_python_is_running())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to open a session of a merge"),
				 errdetail("Only functions of the extension that merge do so."),
				 errhint("branch.merge() merges.")));
}

Datum
ab_sql_remote_open_book(PG_FUNCTION_ARGS)
{
	AbRemoteOptions options = {
		.access = AB_REMOTE_READ_WRITE,
		.purpose = AB_REMOTE_FOR_BOOK
	};

	require_own_function();
	options.isolation = parse_isolation(ab_sql_required_text(fcinfo, 0, "isolation"));
	PG_RETURN_INT32(ab_remote_number(ab_remote_open(MyDatabaseId, &options)));
}

Datum
ab_sql_remote_open_target(PG_FUNCTION_ARGS)
{
	AbRemoteOptions options = {
		.access = AB_REMOTE_READ_WRITE,
		.isolation = XACT_READ_COMMITTED,
		.purpose = AB_REMOTE_FOR_TARGET
	};

	require_own_function();
	PG_RETURN_INT32(ab_remote_number(ab_remote_open(find_database(ab_sql_required_text(fcinfo, 0, "db")),
													&options)));
}

/* InvalidOid: it has none, or none that is connected to by its own name. */
static Oid
parent_of(Oid db)
{
	AbOriginHeader origin;

	if (!ab_storage_read_origin(db, &origin) || ab_database_is_deleted(origin.parent_db) ||
		!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(origin.parent_db)))
		return InvalidOid;
	return origin.parent_db;
}

/*
 * Sessions that a comparison of two databases, as opening.py has it, will ask for, where it
 * is known already which they are: they connect while PL/Python starts.  What is wrong with
 * the arguments is for the comparison to say.
 */
Datum
ab_sql_sides_ahead(PG_FUNCTION_ARGS)
{
	static const AbRemoteOptions options = {AB_REMOTE_READ_ONLY, XACT_REPEATABLE_READ, false};
	char	   *source = ab_sql_text(fcinfo, 0);
	char	   *target = ab_sql_text(fcinfo, 1);
	Oid			dbs[2];

	ab_require_control_database();
	dbs[1] = source ? get_database_oid(source, true) : InvalidOid;
	if (!OidIsValid(dbs[1]) || !PG_ARGISNULL(2))
		PG_RETURN_BOOL(false);
	dbs[0] = target ? get_database_oid(target, true) : parent_of(dbs[1]);
	if (!OidIsValid(dbs[0]))
		PG_RETURN_BOOL(false);
	for (int i = 0; i < 2; i++)
		ab_remote_open_ahead(dbs[i], &options);
	PG_RETURN_BOOL(true);
}

/* Rows of what was run before are thrown away. */
static void
send(AbRemote *session, const char *statements, int flags)
{
	while (!ab_remote_is_ready(session))
		(void) ab_remote_next(session);
	ab_remote_send(session, statements, flags);
}

/* True: there are rows to fetch. */
static bool
run(AbRemote *session, const char *statements, int flags)
{
	send(session, statements, flags);
	return run_until_rows(session);
}

Datum
ab_sql_remote_run(PG_FUNCTION_ARGS)
{
	AbRemote   *session = get_session(fcinfo);
	char	   *statements = ab_sql_required_text(fcinfo, 1, "statements");
	int			flags = ab_sql_bool(fcinfo, 2, false) ? AB_REMOTE_SAVEPOINT : 0;

	if (run(session, statements, flags))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(ab_remote_tag(session)));
}

Datum
ab_sql_remote_columns(PG_FUNCTION_ARGS)
{
	AbRemote   *session = get_session(fcinfo);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			n;
	const AbRemoteColumn *columns = ab_remote_columns(session, &n);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {false, false, false};

		values[0] = CStringGetTextDatum(columns[i].name);
		values[1] = ObjectIdGetDatum(columns[i].type);
		values[2] = Int32GetDatum(columns[i].typmod);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Datum
ab_sql_remote_fetch(PG_FUNCTION_ARGS)
{
	AbRemote   *session = get_session(fcinfo);
	int64		max_rows = PG_ARGISNULL(1) ? -1 : PG_GETARG_INT32(1);

	if (max_rows < 0 && !PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_rows\" must not be negative")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	fetch(session, fcinfo, max_rows, 0);
	return (Datum) 0;
}

/* Run a query and give all its rows. */
Datum
ab_sql_remote_query(PG_FUNCTION_ARGS)
{
	AbRemote   *session = get_session(fcinfo);
	char	   *query = ab_sql_required_text(fcinfo, 1, "query");

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (run(session, query, 0))
		fetch(session, fcinfo, -1, 0);
	return (Datum) 0;
}

static Datum *
elements_of(ArrayType *array, Oid type, int len, bool byval, int *n)
{
	Datum	   *elements;

	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays must be one-dimensional and without nulls")));
	deconstruct_array(array, type, len, byval, TYPALIGN_INT, &elements, NULL, n);
	return elements;
}

/* Have one run in each session, side by side; what comes of it is fetched later. */
Datum
ab_sql_remote_send_each(PG_FUNCTION_ARGS)
{
	int			n;
	int			nqueries;
	Datum	   *numbers;
	Datum	   *queries;

	ab_require_control_database();
	numbers = elements_of(PG_GETARG_ARRAYTYPE_P(0), INT4OID, sizeof(int32), true, &n);
	queries = elements_of(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, &nqueries);
	if (n != nqueries)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	for (int i = 0; i < n; i++)
		send(session_of(DatumGetInt32(numbers[i])), TextDatumGetCString(queries[i]), 0);
	PG_RETURN_VOID();
}

/* What was sent last to each session gives; the sessions' rows one after the other. */
Datum
ab_sql_remote_rows_each(PG_FUNCTION_ARGS)
{
	int			n;
	Datum	   *numbers;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	numbers = elements_of(PG_GETARG_ARRAYTYPE_P(0), INT4OID, sizeof(int32), true, &n);
	for (int i = 0; i < n; i++)
	{
		AbRemote   *session = session_of(DatumGetInt32(numbers[i]));

		if (!ab_remote_is_ready(session) && run_until_rows(session))
			fetch(session, fcinfo, -1, i + 1);
	}
	return (Datum) 0;
}

/* Arguments number 0 and 2: two sessions that nothing is to come of any more. */
static void
get_two_sessions(FunctionCallInfo fcinfo, AbRemote **from, AbRemote **to)
{
	*from = get_session(fcinfo);
	*to = session_of(PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2));
	if (*from == *to)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a session is named twice")));
	while (!ab_remote_is_ready(*from))
		(void) ab_remote_next(*from);
	while (!ab_remote_is_ready(*to))
		(void) ab_remote_next(*to);
}

/* Rows of one session into a temporary table of another. */
Datum
ab_sql_remote_copy(PG_FUNCTION_ARGS)
{
	AbRemote   *from;
	AbRemote   *to;
	char	   *query;
	char	   *table;

	get_two_sessions(fcinfo, &from, &to);
	query = ab_sql_required_text(fcinfo, 1, "query");
	table = ab_sql_required_text(fcinfo, 3, "temporary_table");
	PG_RETURN_INT64(ab_remote_copy(from, psprintf("COPY (%s) TO STDOUT", query), to, table));
}

/* Rows of one session as lines, kept by statements of another. */
Datum
ab_sql_remote_gather(PG_FUNCTION_ARGS)
{
	AbRemote   *from;
	AbRemote   *to;
	char	   *query;
	char	   *head;
	int64		next;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	get_two_sessions(fcinfo, &from, &to);
	query = ab_sql_required_text(fcinfo, 1, "query");
	head = ab_sql_required_text(fcinfo, 3, "head");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(ab_remote_gather(from, psprintf("COPY (%s) TO STDOUT", query),
											   to, head,
											   PG_ARGISNULL(4) ? 1 : PG_GETARG_INT64(4), &next));
	values[1] = Int64GetDatum(next);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

Datum
ab_sql_remote_commit(PG_FUNCTION_ARGS)
{
	AbRemote   *session = get_session(fcinfo);

	while (!ab_remote_is_ready(session))
		(void) ab_remote_next(session);
	ab_remote_commit(session);
	ab_remote_close(session);
	PG_RETURN_VOID();
}

Datum
ab_sql_remote_save(PG_FUNCTION_ARGS)
{
	AbRemote   *session = get_session(fcinfo);

	while (!ab_remote_is_ready(session))
		(void) ab_remote_next(session);
	ab_remote_save(session);
	PG_RETURN_VOID();
}

Datum
ab_sql_remote_close(PG_FUNCTION_ARGS)
{
	int			n;
	Datum	   *numbers;
	AbRemote  **sessions;

	ab_require_control_database();
	numbers = elements_of(PG_GETARG_ARRAYTYPE_P(0), INT4OID, sizeof(int32), true, &n);
	sessions = palloc_array(AbRemote *, n);
	for (int i = 0; i < n; i++)
	{
		sessions[i] = session_of(DatumGetInt32(numbers[i]));
		for (int j = 0; j < i; j++)
			if (sessions[j] == sessions[i])
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("a session is named twice")));
	}
	ab_remote_close_each(sessions, n);
	PG_RETURN_VOID();
}

Datum
ab_sql_remote_rows(PG_FUNCTION_ARGS)
{
	AbRemoteOptions options = {AB_REMOTE_READ_ONLY, XACT_REPEATABLE_READ, false};
	char	   *name;
	char	   *query;
	AbRemote   *session;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "db");
	query = ab_sql_required_text(fcinfo, 1, "query");
	session = ab_remote_open(find_database(name), &options);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	ab_remote_send(session, query, 0);
	if (run_until_rows(session))
		fetch(session, fcinfo, -1, 0);
	ab_remote_close(session);
	return (Datum) 0;
}
