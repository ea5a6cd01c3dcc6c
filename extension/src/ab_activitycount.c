/*
 * ab_activitycount.c
 *	  Counting what client sessions do: hooks of the executor and of utility statements,
 *	  and the ends of transactions.
 *
 * Installed by _PG_init in the postmaster, run by client backends; no locks but when a
 * session begins and ends.  Each writes its slot with plain stores (ab_activity.h).
 *
 * A request is a statement that a client sent and that began to run: what functions,
 * triggers and rules run is part of it, and several executions of one portal are one.  It
 * is active from the arrival of its message, or the end of the statement before it, to its
 * own end; so are its parse and bind messages, should it have such, and one that fails
 * before it runs.  The commit of a transaction that wrote counts as well, and deferred
 * triggers do.  Rows are those that INSERT, UPDATE, DELETE, MERGE, COPY and CREATE TABLE AS
 * report, at any depth; bytes are the WAL that the session wrote.  Time between the
 * statements of a transaction is not active, nor is a connection that is open.
 *
 * Background workers are not counted, so what runs in parallel is not counted twice, nor
 * are replication and autovacuum, and nothing is on a standby.
 */
#include "ab_activitycount.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "executor/executor.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "parser/analyze.h"
#include "storage/ipc.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"

#include "ab_origin.h"

static AbActivitySlot *mine = NULL; /* NULL: this process is not counted */

static int	depth = 0;			/* of statements within statements */
static int64 rows = 0;			/* written by this session so far */
static uint64 wal_base = 0;
static TimestampTz last_end = 0;	/* up to here time has been counted */
static bool committing = false;

static post_parse_analyze_hook_type prev_parse_analyze = NULL;
static ExecutorStart_hook_type prev_executor_start = NULL;
static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ProcessUtility_hook_type prev_utility = NULL;

/* ---- the slot ---- */

static void
write_begin(void)
{
	mine->count++;
	pg_write_barrier();
}

static void
write_end(void)
{
	pg_write_barrier();
	mine->count++;
}

static void
write_sums(void)
{
	mine->use.rows = rows;
	mine->use.bytes = (int64) (pgWalUsage.wal_bytes - wal_base);
}

/* A statement, or a part of one, begins to run. */
static void
enter(TimestampTz since, bool request)
{
	if (depth++ > 0)
		return;
	write_begin();
	mine->running_since = Max(since, last_end);
	mine->use.requests += request;
	write_end();
}

static void
leave(void)
{
	TimestampTz now;

	if (--depth > 0)
		return;
	now = GetCurrentTimestamp();
	write_begin();
	if (now > mine->running_since)
		mine->use.active_us += now - mine->running_since;
	mine->running_since = 0;
	mine->last_active = now;
	write_sums();
	write_end();
	last_end = now;
}

/* ---- statements ---- */

/* Sent by the client: deferred triggers run without a portal, at commit. */
static bool
is_from_client(void)
{
	return depth == 0 && ActivePortal != NULL;
}

/* A sync message has no time of its own: what it runs may come long after the last one. */
static TimestampTz
start_of_statement(void)
{
	return ActivePortal != NULL || debug_query_string != NULL ?
		GetCurrentStatementStartTimestamp() : GetCurrentTimestamp();
}

/* A part of a statement is over of which nobody has told us that it began. */
static void
count_up_to_now(void)
{
	enter(start_of_statement(), false);
	leave();
}

/*
 * In a parse message, which has parameters even if they are none; that of a simple query
 * is counted when it runs.
 */
static void
parse_analyze(ParseState *pstate, Query *query, JumbleState *jstate)
{
	if (prev_parse_analyze)
		prev_parse_analyze(pstate, query, jstate);
	if (mine != NULL && depth == 0 && pstate->p_paramref_hook != NULL)
		count_up_to_now();
}

/* In a bind message, which has planned the statement; that hides no portal. */
static void
executor_start(QueryDesc *query, int eflags)
{
	if (prev_executor_start)
		prev_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
	if (mine != NULL && is_from_client() && ActivePortal->visible)
		count_up_to_now();
}

static bool
counts_rows(CmdType operation)
{
	return operation == CMD_INSERT || operation == CMD_UPDATE ||
		operation == CMD_DELETE || operation == CMD_MERGE;
}

static void
run_next(QueryDesc *query, ScanDirection direction, uint64 count, bool once)
{
	if (prev_executor_run)
		prev_executor_run(query, direction, count, once);
	else
		standard_ExecutorRun(query, direction, count, once);
}

static void
executor_run(QueryDesc *query, ScanDirection direction, uint64 count, bool once)
{
	if (mine == NULL)
	{
		run_next(query, direction, count, once);
		return;
	}
	enter(depth > 0 ? 0 : start_of_statement(),
		  is_from_client() && query->plannedstmt->canSetTag && !query->already_executed);
	PG_TRY();
	{
		run_next(query, direction, count, once);
		if (counts_rows(query->operation))
			rows += query->estate->es_processed;
	}
	PG_FINALLY();
	{
		leave();
	}
	PG_END_TRY();
}

static void
finish_next(QueryDesc *query)
{
	if (prev_executor_finish)
		prev_executor_finish(query);
	else
		standard_ExecutorFinish(query);
}

/* The triggers of a statement; of a SELECT it may come when its portal is dropped. */
static void
executor_finish(QueryDesc *query)
{
	if (mine == NULL ||
		(query->operation == CMD_SELECT && !query->plannedstmt->hasModifyingCTE))
	{
		finish_next(query);
		return;
	}
	enter(depth > 0 ? 0 : start_of_statement(), false);
	PG_TRY();
	{
		finish_next(query);
	}
	PG_FINALLY();
	{
		leave();
	}
	PG_END_TRY();
}

static void
run_next_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				 ProcessUtilityContext context, ParamListInfo params,
				 QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_utility)
		prev_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
								queryEnv, dest, qc);
}

static bool
writes_rows(const Node *stmt)
{
	return (IsA(stmt, CopyStmt) && ((const CopyStmt *) stmt)->is_from) ||
		IsA(stmt, CreateTableAsStmt);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (mine == NULL)
	{
		run_next_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv,
						 dest, qc);
		return;
	}
	enter(depth > 0 ? 0 : start_of_statement(),
		  is_from_client() && context == PROCESS_UTILITY_TOPLEVEL && pstmt->canSetTag);
	PG_TRY();
	{
		bool		writes = writes_rows(pstmt->utilityStmt);

		run_next_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv,
						 dest, qc);
		if (writes && qc != NULL)
			rows += qc->nprocessed;
	}
	PG_FINALLY();
	{
		leave();
	}
	PG_END_TRY();
}

/* ---- sessions and transactions ---- */

static void
at_exit(int code, Datum arg)
{
	if (mine == NULL)
		return;
	if (depth > 0)
	{
		depth = 1;
		leave();
	}
	write_begin();
	write_sums();			/* what the last abort has written */
	write_end();
	ab_activity_detach();
	mine = NULL;
}

/*
 * At the end of a client's first transaction, which is that of connecting: it has been
 * authenticated and let into the database by then.
 */
static void
begin_session(void)
{
	AbBranch   *branch;

	if (MyBackendType != B_BACKEND || !IsUnderPostmaster || ab_activity == NULL ||
		!OidIsValid(MyDatabaseId) || RecoveryInProgress())
		return;
	wal_base = pgWalUsage.wal_bytes;
	branch = ab_branch_lookup(MyDatabaseId);	/* known since catalogs were read */
	mine = ab_activity_attach(branch != NULL ? ab_branch_header(branch)->created_at :
							  AB_PLAIN);
	if (mine != NULL)
		on_shmem_exit(at_exit, (Datum) 0);
}

static void
begin_commit(void)
{
	if (mine == NULL)
		begin_session();
	else if (depth == 0 && TransactionIdIsValid(GetTopTransactionIdIfAny()))
	{
		committing = true;
		enter(start_of_statement(), false);
	}
}

/* Of this backend, rather than of somebody who ends it while it is idle. */
static bool
is_in_message(void)
{
	return MyBEEntry != NULL && MyBEEntry->st_state != STATE_IDLE &&
		MyBEEntry->st_state != STATE_IDLEINTRANSACTION &&
		MyBEEntry->st_state != STATE_IDLEINTRANSACTION_ABORTED;
}

/* The statement may have failed before it ran, after waiting for a lock, say. */
static void
begin_abort(void)
{
	if (mine != NULL && depth == 0 && !committing && is_in_message())
	{
		enter(GetCurrentStatementStartTimestamp(), false);
		leave();
	}
}

static void
end_transaction(void)
{
	if (!committing)
		return;
	committing = false;
	leave();
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			begin_commit();
			break;
		case XACT_EVENT_ABORT:
			begin_abort();
			end_transaction();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			end_transaction();
			break;
		default:
			break;
	}
}

/* The list of callbacks is inherited by every process that the postmaster starts. */
void
ab_activitycount_install(void)
{
	prev_parse_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = parse_analyze;
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
	prev_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	RegisterXactCallback(at_xact_end, NULL);
}
