/*
 * ab_sql_run.c
 *	  branch.run_on_all: statements in every branch that the caller may connect to.
 *
 * A backend in the control database.  Each branch has a session of its own
 * (ab_remote.h), several at once; this process waits for all of them, and what one
 * comes to, error or not, is a row of the answer.  A cancel ends those that run; what
 * other branches have committed by then stays.
 */
#include "ab_compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_remote.h"
#include "ab_settings.h"
#include "ab_sql.h"

PG_FUNCTION_INFO_V1(ab_sql_run_on_all);

#define MAX_PARALLEL 1000

/* Rows beyond that are counted only. */
#define MAX_RESULT_BYTES (1024 * 1024)

/* So many messages of one session, then those of the next. */
#define MESSAGES_PER_TURN 256

enum
{
	COLUMN_NAME,
	COLUMN_OK,
	COLUMN_COMMAND,
	COLUMN_ROWS_AFFECTED,
	COLUMN_RESULT,
	COLUMN_SQLSTATE,
	COLUMN_MESSAGE,
	COLUMN_DETAIL,
	COLUMN_HINT,
	COLUMN_DURATION,
	NCOLUMNS
};

typedef struct Branch
{
	Oid			db;
	char	   *name;
} Branch;

/* A branch that is being worked on. */
typedef struct Visit
{
	const Branch *branch;		/* NULL: free */
	AbRemote   *session;
	TimestampTz started_at;
	MemoryContext context;		/* of the rows */
	JsonbParseState *rows;		/* NULL: no statement has given rows */
	int			nrows;
	Size		bytes;
	char		tag[64];
} Visit;

typedef struct Run
{
	const char *sql;
	int			max_rows;
	ReturnSetInfo *rsinfo;
	MemoryContext context;
	Branch	   *branches;
	int			nbranches;
	int			next;			/* the first not visited yet */
	Visit	   *visits;
	int			nvisits;
	int			nbusy;
} Run;

/* ---- what a branch came to ---- */

static void
put(Run *run, const Datum *values, const bool *nulls)
{
	tuplestore_putvalues(run->rsinfo->setResult, run->rsinfo->setDesc,
						 unconstify(Datum *, values), unconstify(bool *, nulls));
}

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = text == NULL;
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

static void
set_duration(Datum *values, bool *nulls, TimestampTz started_at)
{
	Interval   *duration = palloc0(sizeof(Interval));

	duration->time = GetCurrentTimestamp() - started_at;
	values[COLUMN_DURATION] = IntervalPGetDatum(duration);
	nulls[COLUMN_DURATION] = false;
}

static void
put_error(Run *run, const Branch *branch, const ErrorData *error, TimestampTz started_at)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS];

	memset(nulls, true, sizeof(nulls));
	set_text(values, nulls, COLUMN_NAME, branch->name);
	values[COLUMN_OK] = BoolGetDatum(false);
	nulls[COLUMN_OK] = false;
	set_text(values, nulls, COLUMN_SQLSTATE, unpack_sql_state(error->sqlerrcode));
	set_text(values, nulls, COLUMN_MESSAGE, error->message);
	set_text(values, nulls, COLUMN_DETAIL, error->detail);
	set_text(values, nulls, COLUMN_HINT, error->hint);
	set_duration(values, nulls, started_at);
	put(run, values, nulls);
}

/* The number at the end of "INSERT 0 5"; false if there is none. */
static bool
tag_rows(const char *tag, int64 *rows)
{
	const char *last = strrchr(tag, ' ');

	if (last == NULL || last[1] < '0' || last[1] > '9')
		return false;
	*rows = strtoi64(last + 1, NULL, 10);
	return true;
}

static void
put_success(Run *run, Visit *visit)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS];
	int64		rows;

	memset(nulls, true, sizeof(nulls));
	set_text(values, nulls, COLUMN_NAME, visit->branch->name);
	values[COLUMN_OK] = BoolGetDatum(true);
	nulls[COLUMN_OK] = false;
	set_text(values, nulls, COLUMN_COMMAND, visit->tag);
	if (tag_rows(visit->tag, &rows))
	{
		values[COLUMN_ROWS_AFFECTED] = Int64GetDatum(rows);
		nulls[COLUMN_ROWS_AFFECTED] = false;
	}
	if (visit->rows != NULL)
	{
		JsonbValue *array = pushJsonbValue(&visit->rows, WJB_END_ARRAY, NULL);

		values[COLUMN_RESULT] = JsonbPGetDatum(JsonbValueToJsonb(array));
		nulls[COLUMN_RESULT] = false;
	}
	set_duration(values, nulls, visit->started_at);
	put(run, values, nulls);
}

/* ---- rows as JSON ---- */

/* NaN and the infinities are no numbers in JSON. */
static bool
is_json_number(const char *text)
{
	if (*text == '-')
		text++;
	return *text >= '0' && *text <= '9';
}

static void
json_value(JsonbValue *value, Oid type, char *text)
{
	value->type = jbvString;
	value->val.string.val = text;
	value->val.string.len = strlen(text);
	switch (type)
	{
		case BOOLOID:
			value->type = jbvBool;
			value->val.boolean = text[0] == 't';
			break;
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
			if (!is_json_number(text))
				break;
			value->type = jbvNumeric;
			value->val.numeric =
				DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(text),
													ObjectIdGetDatum(InvalidOid),
													Int32GetDatum(-1)));
			break;
		case JSONBOID:
			{
				Jsonb	   *jb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																	CStringGetDatum(text)));

				value->type = jbvBinary;
				value->val.binary.data = &jb->root;
				value->val.binary.len = VARSIZE(jb) - VARHDRSZ;
				break;
			}
		default:
			break;
	}
}

static void
push_value(Visit *visit, const AbRemoteColumn *column, char *text)
{
	JsonbValue	key;
	JsonbValue	value;

	key.type = jbvString;
	key.val.string.val = column->name;
	key.val.string.len = strlen(column->name);
	(void) pushJsonbValue(&visit->rows, WJB_KEY, &key);
	if (text == NULL)
		value.type = jbvNull;
	else
		json_value(&value, column->type, pstrdup(text));
	(void) pushJsonbValue(&visit->rows, WJB_VALUE, &value);
}

static void
start_rows(Visit *visit)
{
	MemoryContext old;

	MemoryContextReset(visit->context);
	old = MemoryContextSwitchTo(visit->context);
	visit->rows = NULL;
	visit->nrows = 0;
	visit->bytes = 0;
	(void) pushJsonbValue(&visit->rows, WJB_BEGIN_ARRAY, NULL);
	MemoryContextSwitchTo(old);
}

static void
take_row(Run *run, Visit *visit)
{
	int			n;
	const AbRemoteColumn *columns = ab_remote_columns(visit->session, &n);
	const int  *lengths;
	char	  **values = ab_remote_values(visit->session, &lengths);
	MemoryContext old;

	if (visit->nrows >= run->max_rows || visit->bytes > MAX_RESULT_BYTES)
		return;
	for (int i = 0; i < n; i++)
		visit->bytes += strlen(columns[i].name) + lengths[i];
	if (visit->bytes > MAX_RESULT_BYTES)
		return;

	old = MemoryContextSwitchTo(visit->context);
	(void) pushJsonbValue(&visit->rows, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < n; i++)
		push_value(visit, &columns[i], values[i]);
	(void) pushJsonbValue(&visit->rows, WJB_END_OBJECT, NULL);
	MemoryContextSwitchTo(old);
	visit->nrows++;
}

/* ---- visits ---- */

/*
 * A session in the branch, or the error why there is none; both null: there is no free worker
 * now, and others of ours are at work.
 */
static AbRemote *
open_session(Run *run, const Branch *branch, ErrorData **error)
{
	AbRemoteOptions options = {AB_REMOTE_AS_SET, -1, true};
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	AbRemote   *volatile session = NULL;

	*error = NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		session = run->nbusy > 0 ? ab_remote_try_open(branch->db, &options) :
			ab_remote_open(branch->db, &options);
		if (session != NULL)
			ab_remote_send(session, run->sql, 0);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		if ((*error)->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		session = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return session;
}

/*
 * Begin the next branch.  Without a free worker it waits for one of the others to
 * end; if there is none of ours, the first branch makes it an error, and any
 * other one a row.
 */
static bool
begin_visit(Run *run, Visit *visit)
{
	const Branch *branch = &run->branches[run->next];
	TimestampTz now = GetCurrentTimestamp();
	ErrorData  *error;
	AbRemote   *session = open_session(run, branch, &error);

	if (session == NULL && error == NULL)
		return false;
	if (error != NULL && run->next == 0 &&
		error->sqlerrcode == ERRCODE_CONFIGURATION_LIMIT_EXCEEDED)
		ReThrowError(error);
	run->next++;
	if (error != NULL)
	{
		put_error(run, branch, error, now);
		return true;
	}
	visit->branch = branch;
	visit->session = session;
	visit->started_at = now;
	visit->rows = NULL;
	visit->tag[0] = '\0';
	run->nbusy++;
	return true;
}

static void
end_visit(Run *run, Visit *visit, bool ok)
{
	MemoryContext old = MemoryContextSwitchTo(visit->context);

	if (ok)
		put_success(run, visit);
	else
		put_error(run, visit->branch, ab_remote_error(visit->session), visit->started_at);
	MemoryContextSwitchTo(old);
	MemoryContextReset(visit->context);
	ab_remote_close(visit->session);
	visit->branch = NULL;
	run->nbusy--;
}

/* Returns false if there was nothing to do. */
static bool
continue_visit(Run *run, Visit *visit)
{
	for (int i = 0; i < MESSAGES_PER_TURN; i++)
	{
		switch (ab_remote_poll(visit->session))
		{
			case AB_REMOTE_WAIT:
				return i > 0;
			case AB_REMOTE_COLUMNS:
				start_rows(visit);
				break;
			case AB_REMOTE_ROW:
				take_row(run, visit);
				break;
			case AB_REMOTE_DATA:
				break;			/* not asked for */
			case AB_REMOTE_COMPLETE:
				strlcpy(visit->tag, ab_remote_tag(visit->session), sizeof(visit->tag));
				break;
			case AB_REMOTE_READY:
				end_visit(run, visit, true);
				return true;
			case AB_REMOTE_FAILED:
				end_visit(run, visit, false);
				return true;
		}
	}
	return true;
}

static void
visit_all(Run *run)
{
	while (run->next < run->nbranches || run->nbusy > 0)
	{
		bool		progress = false;

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < run->nvisits; i++)
		{
			Visit	   *visit = &run->visits[i];

			if (visit->branch != NULL)
				progress |= continue_visit(run, visit);
			if (visit->branch == NULL && run->next < run->nbranches)
				progress |= begin_visit(run, visit);
		}
		if (!progress)
			ab_remote_wait();
	}
}

/* ---- which branches ---- */

static void
find_branches(Run *run, Datum labels, bool no_labels)
{
	Oid			types[1] = {JSONBOID};
	char		nulls[1];

	nulls[0] = no_labels ? 'n' : ' ';
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT b.id, b.name FROM branch.branches AS b"
							  " WHERE ($1 IS NULL OR b.labels OPERATOR(pg_catalog.@>) $1)"
							  " AND b.current_state OPERATOR(pg_catalog.<>) 'deleted'"
							  " AND pg_catalog.has_database_privilege(b.id, 'CONNECT')"
							  " ORDER BY b.name",
							  1, types, &labels, nulls, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "cannot read branch.branches");
	run->nbranches = SPI_processed;
	run->branches = MemoryContextAllocHuge(run->context,
										   sizeof(Branch) * Max(run->nbranches, 1));
	for (int i = 0; i < run->nbranches; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		bool		isnull;
		Name		name;

		run->branches[i].db =
			DatumGetObjectId(SPI_getbinval(tup, SPI_tuptable->tupdesc, 1, &isnull));
		name = DatumGetName(SPI_getbinval(tup, SPI_tuptable->tupdesc, 2, &isnull));
		run->branches[i].name = MemoryContextStrdup(run->context, NameStr(*name));
	}
	SPI_finish();
}

static void
put_names(Run *run)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS];

	memset(nulls, true, sizeof(nulls));
	for (int i = 0; i < run->nbranches; i++)
	{
		set_text(values, nulls, COLUMN_NAME, run->branches[i].name);
		put(run, values, nulls);
	}
}

/* ---- the function ---- */

static int
int_argument(FunctionCallInfo fcinfo, int n, const char *name, int min, int max, int when_null)
{
	int			value = PG_ARGISNULL(n) ? when_null : PG_GETARG_INT32(n);

	if (value < min || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between %d and %d", name, min, max)));
	return value;
}

static void
check_labels(FunctionCallInfo fcinfo, int n)
{
	if (!PG_ARGISNULL(n) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(n)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"where_labels\" must be a JSON object"),
				 errhint("For example: {\"team\": \"search\"}.")));
}

Datum
ab_sql_run_on_all(PG_FUNCTION_ARGS)
{
	Run			run = {0};
	int			parallel;

	ab_require_control_database();
	run.sql = ab_sql_required_text(fcinfo, 0, "sql");
	check_labels(fcinfo, 1);
	parallel = int_argument(fcinfo, 2, "parallel", 1, MAX_PARALLEL, 4);
	run.max_rows = int_argument(fcinfo, 4, "max_rows", 0, INT_MAX, 100);
	(void) ab_remote_check(run.sql);

	InitMaterializedSRF(fcinfo, 0);
	run.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	run.context = CurrentMemoryContext;
	find_branches(&run, PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1), PG_ARGISNULL(1));
	if (ab_sql_bool(fcinfo, 3, false))
	{
		put_names(&run);
		return (Datum) 0;
	}

	run.nvisits = Min(parallel, run.nbranches);
	run.visits = palloc0(sizeof(Visit) * Max(run.nvisits, 1));
	for (int i = 0; i < run.nvisits; i++)
		run.visits[i].context = AllocSetContextCreate(CurrentMemoryContext, "visit",
													  ALLOCSET_DEFAULT_SIZES);
	visit_all(&run);
	return (Datum) 0;
}
