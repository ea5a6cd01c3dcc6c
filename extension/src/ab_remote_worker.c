/*
 * ab_remote_worker.c
 *	  The worker of a session in another database (ab_remote.h): connects as the role
 *	  of the caller, runs what it is sent, and answers in the wire protocol.
 *
 * Runs in a dynamic background worker that one backend starts and waits for; ends with
 * the first error, with the commit, or when that backend lets go of the queues.  Takes
 * the ordinary locks of what it runs.  A crash leaves nothing: the dynamic segment goes
 * with the two processes.
 */
#include "ab_remote_wire.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/printtup.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "libpq/pqformat.h"
#include "libpq/pqmq.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/ps_status.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"

#include "ab_mergelock.h"

PGDLLEXPORT void ab_remote_main(Datum arg);

#define LOCK_TIMEOUT_DEFAULT "10s"

/* Statements and plans of one request. */
static MemoryContext request_context = NULL;

/* Nothing that a user can call or set makes it true. */
static bool is_book = false;

bool
ab_remote_is_book(void)
{
	return is_book;
}

/* ---- connecting ---- */

static void
set_for_session(const char *name, const char *value)
{
	SetConfigOption(name, value, PGC_USERSET, PGC_S_SESSION);
}

/* What the caller has said comes first. */
static void
set_lock_timeout(const AbRemoteTask *task, const char *value)
{
	char		said[32];

	snprintf(said, sizeof(said), "%d", task->lock_timeout);
	set_for_session("lock_timeout", task->lock_timeout > 0 ? said : value);
}

/*
 * The role is the caller's current one, not one that logs in: it needs CONNECT, which
 * is checked, and not LOGIN, hence the way in that parallel workers have.  There is no
 * other role behind it: neither RESET ROLE nor RESET SESSION AUTHORIZATION leads
 * anywhere else, not even if the settings of the role or database name a role.
 */
static void
connect_as_caller(const AbRemoteTask *task)
{
	char	   *name;

	InitializingParallelWorker = true;
	SetAuthenticatedUserId(task->role, task->role_is_superuser);
	SetSessionAuthorization(task->role, task->role_is_superuser);
	SetCurrentRoleId(InvalidOid, false);

	/* connecting waits for a lock, too */
	set_lock_timeout(task, LOCK_TIMEOUT_DEFAULT);
	BackgroundWorkerInitializeConnectionByOid(task->db, task->role,
											  task->closed ? BGWORKER_BYPASS_ALLOWCONN : 0);
	InitializingParallelWorker = false;

	StartTransactionCommand();
	name = GetUserNameFromId(task->role, true);
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", task->role)));
	SetConfigOption("session_authorization", name, PGC_BACKEND, PGC_S_OVERRIDE);
	SetConfigOption("role", "none", PGC_BACKEND, PGC_S_OVERRIDE);
	CommitTransactionCommand();
}

/* The server does not count workers; a limit of a database is meant for all but superusers. */
static void
check_connection_limit(Oid db)
{
	HeapTuple	tup;
	Form_pg_database form;

	StartTransactionCommand();
	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	form = (Form_pg_database) GETSTRUCT(tup);
	if (form->datconnlimit >= 0 && !superuser() &&
		CountDBConnections(db) >= form->datconnlimit)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_CONNECTIONS),
				 errmsg("too many connections for database \"%s\"",
						NameStr(form->datname))));
	ReleaseSysCache(tup);
	CommitTransactionCommand();
}

/*
 * Settings are those that a session of the role has in that database, except for what
 * could make a fixed statement mean something else, and what the caller asked for.
 */
static void
apply_settings(const AbRemoteTask *task)
{
	const AbRemoteOptions *options = &task->options;
	const char *lock_timeout = GetConfigOptionResetString("lock_timeout");

	if (lock_timeout != NULL && strcmp(lock_timeout, "0") != 0)
		set_lock_timeout(task, lock_timeout);
	set_for_session("search_path", "pg_catalog, pg_temp");
	set_for_session("client_min_messages", "warning");
	if (options->access != AB_REMOTE_AS_SET)
		set_for_session("default_transaction_read_only",
						options->access == AB_REMOTE_READ_ONLY ? "on" : "off");
	switch (options->isolation)
	{
		case XACT_READ_UNCOMMITTED:
		case XACT_READ_COMMITTED:
			set_for_session("default_transaction_isolation", "read committed");
			break;
		case XACT_REPEATABLE_READ:
			set_for_session("default_transaction_isolation", "repeatable read");
			break;
		case XACT_SERIALIZABLE:
			set_for_session("default_transaction_isolation", "serializable");
			break;
		default:
			break;
	}
}

static void
set_client_encoding(int encoding)
{
	StartTransactionCommand();
	if (PrepareClientEncoding(encoding) < 0 || SetClientEncoding(encoding) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("conversion between %s and %s is not supported",
						pg_encoding_to_char(encoding), GetDatabaseEncodingName())));
	CommitTransactionCommand();
}

/* ---- statements ---- */

/* A position in the text that was sent is none in what the caller's client has sent. */
static void
position_callback(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
}

static void
check_statement(const Node *stmt, bool copies)
{
	if (IsA(stmt, TransactionStmt))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be run in another database",
						CreateCommandName((Node *) stmt)),
				 errdetail("The statements are one transaction, which is begun and ended for them."),
				 errhint("Leave transaction control out.")));
	if (IsA(stmt, CopyStmt) && ((const CopyStmt *) stmt)->filename == NULL &&
		(((const CopyStmt *) stmt)->is_from || !copies))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be run in another database",
						((const CopyStmt *) stmt)->is_from ? "COPY FROM STDIN" : "COPY TO STDOUT"),
				 errhint("Use INSERT or SELECT.")));
}

List *
ab_remote_parse(const char *sql, bool copies)
{
	ErrorContextCallback callback;
	List	   *stmts;
	ListCell   *lc;

	callback.callback = position_callback;
	callback.arg = unconstify(char *, sql);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	stmts = raw_parser(sql, RAW_PARSE_DEFAULT);
	foreach(lc, stmts)
		check_statement(lfirst_node(RawStmt, lc)->stmt, copies);
	if (stmts == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no statement to be run in another database")));

	error_context_stack = callback.previous;
	return stmts;
}

/* Returns true if the statements are logged now. */
static bool
report_statements(const char *sql, List *stmts)
{
	ListCell   *lc;

	foreach(lc, stmts)
	{
		if (GetCommandLogLevel(lfirst_node(RawStmt, lc)->stmt) <= log_statement)
		{
			ereport(LOG,
					(errmsg("statement: %s", sql),
					 errhidestmt(true)));
			return true;
		}
	}
	return false;
}

static void
report_duration(const char *sql, bool logged)
{
	char		msec[32];

	switch (check_log_duration(msec, logged))
	{
		case 1:
			ereport(LOG,
					(errmsg("duration: %s ms", msec),
					 errhidestmt(true)));
			break;
		case 2:
			ereport(LOG,
					(errmsg("duration: %s ms  statement: %s", msec, sql),
					 errhidestmt(true)));
			break;
	}
}

/*
 * Rows and their description go into the queue as they come.  The receiver outlives
 * the transaction, which VACUUM and its like end.
 */
static void
run_portal(RawStmt *stmt, const char *sql, List *plans, ParamListInfo params, int16 format,
		   QueryCompletion *qc)
{
	Portal		portal = CreatePortal("", true, true);
	DestReceiver *receiver;
	MemoryContext old;

	portal->visible = false;
	PortalDefineQuery(portal, NULL, sql, CreateCommandTag(stmt->stmt), plans, NULL);
	PortalStart(portal, params, 0, InvalidSnapshot);
	PortalSetResultFormat(portal, 1, &format);
	old = MemoryContextSwitchTo(request_context);
	receiver = CreateDestReceiver(DestRemote);
	SetRemoteDestReceiverParams(receiver, portal);
	MemoryContextSwitchTo(old);
	(void) PortalRun(portal, FETCH_ALL, true, true, receiver, receiver, qc);
	receiver->rDestroy(receiver);
	PortalDrop(portal, false);
}

static void
run_statement(RawStmt *stmt, const char *sql, ParamListInfo params, int16 format,
			  QueryCompletion *qc)
{
	Oid			types[1] = {TEXTOID};
	bool		needs_snapshot = analyze_requires_snapshot(stmt);
	MemoryContext old;
	List	   *plans;

	CHECK_FOR_INTERRUPTS();
	set_ps_display(GetCommandTagName(CreateCommandTag(stmt->stmt)));
	pgstat_report_query_id(0, true);
	if (StatementTimeout > 0)
		enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);

	if (needs_snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	old = MemoryContextSwitchTo(request_context);
	plans = pg_analyze_and_rewrite_fixedparams(stmt, sql, types, params ? 1 : 0, NULL);
	plans = pg_plan_queries(plans, sql, CURSOR_OPT_PARALLEL_OK, params);
	if (needs_snapshot)
		PopActiveSnapshot();
	MemoryContextSwitchTo(old);

	run_portal(stmt, sql, plans, params, format, qc);
	disable_timeout(STATEMENT_TIMEOUT, false);
}

/*
 * All statements of one request; in autocommit to the end of their transaction, so
 * that nothing is said to be done that is not committed.
 */
static void
run_statements(const char *sql, List *stmts, ParamListInfo params, int flags,
			   bool autocommit)
{
	int16		format = (flags & AB_REMOTE_BINARY) ? 1 : 0;
	bool		implicit_block = autocommit && list_length(stmts) > 1;
	ListCell   *lc;

	foreach(lc, stmts)
	{
		QueryCompletion qc;

		if (implicit_block)
			BeginImplicitTransactionBlock();
		run_statement(lfirst_node(RawStmt, lc), sql, params, format, &qc);
		if (lnext(stmts, lc) != NULL)
			CommandCounterIncrement();
		else if ((flags & AB_REMOTE_SAVEPOINT) == 0)
		{
			if (implicit_block)
				EndImplicitTransactionBlock();
			CommitTransactionCommand();
		}
		EndCommand(&qc, DestRemote, false);
	}
}

/*
 * In PG_CATCH(): what its text says in any language.  Who is told to give up has not come to
 * the end of its time.
 */
static void
note_timeouts(AbRemoteTask *task)
{
	bool		timed_out = geterrcode() == ERRCODE_QUERY_CANCELED && StatementTimeout > 0 &&
		!get_timeout_active(STATEMENT_TIMEOUT);

	task->statement_timed_out = timed_out ? StatementTimeout : 0;
	task->lock_timeout_there = LockTimeout;
}

/* Same, but an error undoes only these; it is reported, and the session goes on. */
static void
run_in_subtransaction(AbRemoteTask *task, const char *sql, List *stmts, int flags)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		run_statements(sql, stmts, NULL, flags, false);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		note_timeouts(task);
		disable_timeout(STATEMENT_TIMEOUT, false);
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	CommitTransactionCommand();
}

/* $1, a text; it lives as long as the request. */
static ParamListInfo
params_of(const char *text)
{
	ParamListInfo params;

	if (text == NULL)
		return NULL;
	params = makeParamList(1);
	params->params[0].value = CStringGetTextDatum(text);
	params->params[0].isnull = false;
	params->params[0].pflags = 0;	/* it may be long: no constant of plans */
	params->params[0].ptype = TEXTOID;
	return params;
}

/* parameter NULL: there is none. */
static void
run_request(AbRemoteTask *task, const char *sql, const char *parameter, int flags)
{
	ErrorContextCallback callback;
	MemoryContext old;
	List	   *stmts;
	ParamListInfo params;
	bool		logged;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	old = MemoryContextSwitchTo(request_context);
	sql = pg_any_to_server(sql, strlen(sql), task->encoding);
	debug_query_string = sql;
	pgstat_report_activity(STATE_RUNNING, sql);
	stmts = ab_remote_parse(sql, (flags & AB_REMOTE_COPY_OUT) != 0);
	if (parameter != NULL)
		parameter = pg_any_to_server(parameter, strlen(parameter), task->encoding);
	params = params_of(parameter);
	MemoryContextSwitchTo(old);
	logged = report_statements(sql, stmts);

	callback.callback = position_callback;
	callback.arg = unconstify(char *, sql);
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (flags & AB_REMOTE_SAVEPOINT)
		run_in_subtransaction(task, sql, stmts, flags);
	else
		run_statements(sql, stmts, params, flags, task->options.autocommit);
	error_context_stack = callback.previous;

	report_duration(sql, logged);
	debug_query_string = NULL;
}

/* Rows of another session into a temporary table (ab_remote_load.c). */
static void
run_load(const char *table, shm_mq_handle *requests)
{
	QueryCompletion qc;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	table = MemoryContextStrdup(request_context, table);
	debug_query_string = table;
	pgstat_report_activity(STATE_RUNNING, table);
	SetQueryCompletion(&qc, CMDTAG_COPY, ab_remote_load(table, requests));
	CommitTransactionCommand();
	EndCommand(&qc, DestRemote, false);
	debug_query_string = NULL;
}

/* A share of the caller's own work (ab_rowshare.c). */
static void
run_share(const char *request, Size size)
{
	MemoryContext old;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "comparing pages");
	old = MemoryContextSwitchTo(request_context);
	ab_rowshare_serve(request, size);
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
}

/* ---- requests ---- */

static void
begin(const AbRemoteTask *task)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	BeginTransactionBlock();
	CommitTransactionCommand();
	if (task->options.purpose != AB_REMOTE_FOR_TARGET)
		return;
	StartTransactionCommand();
	ab_mergelock_take_inside();
	CommitTransactionCommand();
}

static void
commit(void)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "COMMIT");
	StartTransactionCommand();
	if (!EndTransactionBlock(false))
		elog(ERROR, "transaction of a session in another database was lost");
	CommitTransactionCommand();
}

/* Until the last commit, or until the caller lets go: what is open is rolled back at exit. */
static void
serve(AbRemoteTask *task, shm_mq_handle *requests)
{
	if (!task->options.autocommit)
		begin(task);
	for (;;)
	{
		Size		size;
		void	   *data;
		const char *request;

		if (task->options.autocommit)
			pgstat_report_stat(false);
		pgstat_report_activity(task->options.autocommit ? STATE_IDLE :
							   STATE_IDLEINTRANSACTION, NULL);
		if (shm_mq_receive(requests, &size, &data, false) != SHM_MQ_SUCCESS)
			return;
		request = data;
		MemoryContextReset(request_context);
		if (request[0] == AB_REMOTE_COMMIT)
		{
			commit();
			pq_putemptymessage(AB_REMOTE_DONE);
			return;
		}
		if (request[0] == AB_REMOTE_SAVE)
		{
			commit();
			pgstat_report_stat(false);
			begin(task);
		}
		else if (request[0] == AB_REMOTE_LOAD)
			run_load(request + 1, requests);
		else if (request[0] == AB_REMOTE_ROWS)
			run_share(request + 1, size - 1);
		else if (request[0] == AB_REMOTE_QUERY_WITH)
			run_request(task, request + 1, request + 1 + strlen(request + 1) + 1, 0);
		else
			run_request(task, request + 2, NULL, request[1]);
		pq_putemptymessage(AB_REMOTE_DONE);
	}
}

/* ---- life of the worker ---- */

static AbRemoteTask *volatile my_task = NULL;

static void
told_to_end(SIGNAL_ARGS)
{
	AbRemoteTask *task = my_task;

	if (task != NULL)
		task->ended_by = ERRCODE_ADMIN_SHUTDOWN;
	die(postgres_signal_arg);
}

/* The segment goes next. */
static void
forget_task(int code, Datum arg)
{
	my_task = NULL;
}

static void
serve_and_note_errors(AbRemoteTask *task, shm_mq_handle *requests)
{
	PG_TRY();
	{
		serve(task, requests);
	}
	PG_CATCH();
	{
		note_timeouts(task);
		if (task->ended_by == 0)
			task->ended_by = geterrcode();
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Nobody needs that file; whoever connects next makes it again. */
static void
remove_cache_file(int code, Datum arg)
{
	char		path[MAXPGPATH];

	if (DatabasePath == NULL)
		return;
	snprintf(path, sizeof(path), "%s/%s", DatabasePath, RELCACHE_INIT_FILENAME);
	(void) unlink(path);
}

static void
send_pid(void)
{
	StringInfoData buf;

	pq_beginmessage(&buf, AB_REMOTE_PID);
	pq_sendint32(&buf, MyProcPid);
	pq_endmessage(&buf);
}

void
ab_remote_main(Datum arg)
{
	dsm_segment *seg;
	AbRemoteTask *task;
	shm_mq_handle *requests;

	pqsignal(SIGTERM, told_to_end);
	BackgroundWorkerUnblockSignals();
	CurrentMemoryContext = AllocSetContextCreate(TopMemoryContext,
												 "agent_branch remote",
												 ALLOCSET_DEFAULT_SIZES);
	request_context = AllocSetContextCreate(TopMemoryContext,
											"agent_branch remote request",
											ALLOCSET_DEFAULT_SIZES);

	/* without a resource owner the mapping lives as long as this process */
	seg = dsm_attach(DatumGetUInt32(arg));
	if (seg == NULL)
		return;					/* the caller is gone */
	task = dsm_segment_address(seg);
	before_shmem_exit(forget_task, 0);
	my_task = task;
	shm_mq_set_sender(ab_remote_answers(task), MyProc);
	shm_mq_set_receiver(ab_remote_requests(task), MyProc);
	requests = shm_mq_attach(ab_remote_requests(task), seg, NULL);

	/* from here on every message, also of a failing connection, goes there */
	pq_redirect_to_shm_mq(seg, shm_mq_attach(ab_remote_answers(task), seg, NULL));
	send_pid();

	if (task->leave_no_cache)
		before_shmem_exit(remove_cache_file, 0);

	connect_as_caller(task);
	check_connection_limit(task->db);
	process_session_preload_libraries();
	apply_settings(task);
	set_client_encoding(task->encoding);
	is_book = task->options.purpose == AB_REMOTE_FOR_BOOK;
	serve_and_note_errors(task, requests);
}
