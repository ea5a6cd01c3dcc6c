/*
 * ab_activitycount.c
 *	  Counting what client sessions do: hooks of the executor and of utility statements,
 *	  and the ends of transactions.
 *
 * Installed by _PG_init in the postmaster, run by client backends; no locks but when a
 * session begins and ends.  Each writes its slot with plain stores (ab_activity.h).
 * Sessions of branches are counted; every other process takes the hooks out again, as far
 * as nobody else has put one on top of them.
 *
 * A request is a statement that a client sent and that began to run, or a function that it
 * called by the protocol's fast path: what functions, triggers and rules run is part of it,
 * and several executions of one portal are one.  It
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
#include "catalog/objectaccess.h"
#include "executor/executor.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "parser/analyze.h"
#include "storage/ipc.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ab_origin.h"
#include "ab_suspend.h"

static AbActivitySlot *mine = NULL; /* NULL: this process is not counted */

static int	depth = 0;			/* of statements within statements */
static int64 rows = 0;			/* written by this session so far */
static uint64 wal_base = 0;
static TimestampTz last_end = 0;	/* up to here time has been counted */
static bool committing = false;
static bool not_counted = false;	/* nor will it be: the hooks are to go */

/* The transaction's nesting when a query began of which an error tells no more; 0: none. */
static int	run_level = 0;

static post_parse_analyze_hook_type prev_parse_analyze = NULL;
static ExecutorStart_hook_type prev_executor_start = NULL;
static ExecutorRun_hook_type prev_executor_run = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ProcessUtility_hook_type prev_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

static void uninstall(void);

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

static pg_attribute_hot void
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
	TimestampTz since = Max(start_of_statement(), last_end);
	TimestampTz now = GetCurrentTimestamp();

	write_begin();
	if (now > since)
		mine->use.active_us += now - since;
	mine->last_active = now;
	write_sums();
	write_end();
	last_end = now;
}

/*
 * In a parse message, which has parameters even if they are none; that of a simple query
 * is counted when it runs.
 */
static pg_attribute_hot void
parse_analyze(ParseState *pstate, Query *query, JumbleState *jstate)
{
	if (prev_parse_analyze)
		prev_parse_analyze(pstate, query, jstate);
	if (mine != NULL && depth == 0 && pstate->p_paramref_hook != NULL)
		count_up_to_now();
	else if (not_counted)
		uninstall();
}

/* In a bind message, which has planned the statement; that hides no portal. */
static pg_attribute_hot void
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

/*
 * What ends with an error is told by the end of its transaction, or of the subtransaction
 * it began in: that spares every statement the setting up of a handler.
 */
static void
begin_run(bool request)
{
	enter(start_of_statement(), request);
	run_level = GetCurrentTransactionNestLevel();
}

/* The query is over, or an error has ended it. */
static void
end_run(void)
{
	run_level = 0;
	depth = 1;
	leave();
}

static pg_attribute_hot void
run_counted(QueryDesc *query, ScanDirection direction, uint64 count, bool once)
{
	begin_run(is_from_client() && query->plannedstmt->canSetTag &&
			  !query->already_executed);
	run_next(query, direction, count, once);
	if (counts_rows(query->operation))
		rows += query->estate->es_processed;
	if (run_level > 0)
		end_run();
}

static pg_attribute_hot void
executor_run(QueryDesc *query, ScanDirection direction, uint64 count, bool once)
{
	if (mine != NULL && depth == 0)
	{
		run_counted(query, direction, count, once);
		return;
	}
	run_next(query, direction, count, once);
	if (counts_rows(query->operation))
		rows += query->estate->es_processed;
}

static void
finish_next(QueryDesc *query)
{
	if (prev_executor_finish)
		prev_executor_finish(query);
	else
		standard_ExecutorFinish(query);
}

static void
finish_counted(QueryDesc *query)
{
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

/* Has the statement opened a table for writing that has triggers, or other parts to run? */
static bool
has_more_to_do(const EState *estate)
{
	ListCell   *lc;

	if (estate->es_auxmodifytables != NIL || estate->es_trig_target_relations != NIL)
		return true;
	foreach(lc, estate->es_opened_result_relations)
	{
		if (lfirst_node(ResultRelInfo, lc)->ri_TrigDesc != NULL)
			return true;
	}
	return estate->es_tuple_routing_result_relations != NIL;
}

/*
 * The triggers of a statement; of a SELECT it may come when its portal is dropped.  Without
 * any there is nothing to measure.
 */
static pg_attribute_hot void
executor_finish(QueryDesc *query)
{
	if (mine == NULL ||
		(query->operation == CMD_SELECT && !query->plannedstmt->hasModifyingCTE) ||
		!has_more_to_do(query->estate))
		finish_next(query);
	else
		finish_counted(query);
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

/*
 * A transaction.  Not a savepoint of one: an error where the transaction has failed already
 * is not told by its end.
 */
static bool
begins_or_ends(const Node *stmt)
{
	return IsA(stmt, TransactionStmt) &&
		((const TransactionStmt *) stmt)->kind <= TRANS_STMT_ROLLBACK;
}

static pg_attribute_hot void
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
	if (depth == 0 && begins_or_ends(pstmt->utilityStmt))
	{
		begin_run(is_from_client() && context == PROCESS_UTILITY_TOPLEVEL &&
				  pstmt->canSetTag);
		run_next_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv,
						 dest, qc);
		if (run_level > 0)
			end_run();
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

/* ---- functions called by the fast path ---- */

static void
end_call(void *arg)
{
	if (mine != NULL && depth > 0)
	{
		depth = 1;
		leave();
	}
}

/* All there is of such a message goes before the next one is waited for, failed or not. */
static void
begin_call(void)
{
	static MemoryContextCallback at_end = {.func = end_call};
	static TimestampTz begun = 0;	/* functions that it calls are looked at, too */

	if (begun == GetCurrentStatementStartTimestamp())
		return;
	begun = GetCurrentStatementStartTimestamp();
	enter(begun, true);
	MemoryContextRegisterResetCallback(MessageContext, &at_end);
}

static pg_attribute_hot void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classId, objectId, subId, arg);
	if (access == OAT_FUNCTION_EXECUTE && mine != NULL && depth == 0 &&
		ActivePortal == NULL && debug_query_string == NULL)
		begin_call();
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

static void
at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
			   SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && run_level > 0 &&
		GetCurrentTransactionNestLevel() <= run_level)
		end_run();
}

/*
 * At the end of a client's first transaction, which is that of connecting: it has been
 * authenticated and let into the database by then.  On a standby it is looked at again, at
 * every end, for the server may be promoted.
 */
static void
begin_session(void)
{
	AbBranch   *branch = NULL;

	if (MyBackendType == B_BACKEND && IsUnderPostmaster && ab_activity != NULL)
	{
		if (!OidIsValid(MyDatabaseId) || RecoveryInProgress())
			return;
		branch = ab_branch_lookup(MyDatabaseId);	/* known since catalogs were read */
	}
	if (branch != NULL)
	{
		wal_base = pgWalUsage.wal_bytes;
		mine = ab_activity_attach(ab_branch_header(branch)->created_at);
	}
	if (mine != NULL)
	{
		on_shmem_exit(at_exit, (Datum) 0);
		RegisterSubXactCallback(at_subxact_end, NULL);
	}
	else
		not_counted = true;
}

static void
begin_commit(void)
{
	if (mine == NULL)
	{
		if (!not_counted)
			begin_session();
		return;
	}
	if (run_level > 0)
		end_run();				/* its error went unnoticed */
	if (depth == 0 && TransactionIdIsValid(GetTopTransactionIdIfAny()))
	{
		committing = true;
		enter(start_of_statement(), false);
	}
}

static bool
is_in_state(BackendState state)
{
	return MyBEEntry != NULL && MyBEEntry->st_state == state;
}

/* Rather than of somebody who ends this backend while it is idle. */
static bool
is_in_message(void)
{
	return !is_in_state(STATE_IDLE) && !is_in_state(STATE_IDLEINTRANSACTION) &&
		!is_in_state(STATE_IDLEINTRANSACTION_ABORTED);
}

/* The statement may have failed before it ran, after waiting for a lock, say. */
static void
begin_abort(void)
{
	if (run_level > 0)
		end_run();
	else if (mine != NULL && depth == 0 && !committing && is_in_message())
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

static pg_attribute_hot void
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

/*
 * Of a process that is not counted, outside of any of these: what nobody needs costs
 * nothing then.
 */
static void
uninstall(void)
{
	not_counted = false;
	if (post_parse_analyze_hook == parse_analyze)
		post_parse_analyze_hook = prev_parse_analyze;
	if (ExecutorStart_hook == executor_start)
		ExecutorStart_hook = prev_executor_start;
	if (ExecutorRun_hook == executor_run)
		ExecutorRun_hook = prev_executor_run;
	if (ExecutorFinish_hook == executor_finish)
		ExecutorFinish_hook = prev_executor_finish;
	if (ProcessUtility_hook == process_utility)
		ProcessUtility_hook = prev_utility;
	if (object_access_hook == object_access)
		object_access_hook = prev_object_access;
	UnregisterXactCallback(at_xact_end, NULL);
	ab_suspendsession_uninstall();
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
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
	RegisterXactCallback(at_xact_end, NULL);
}
