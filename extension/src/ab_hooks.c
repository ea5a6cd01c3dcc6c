/*
 * ab_hooks.c
 *	  The server's hooks: statements that write enter the gate, CREATE DATABASE
 *	  ... STRATEGY branch comes to us, and what would harm branches is refused.
 *
 * Installed by _PG_init in the postmaster, run by every backend.  Each hook calls
 * the one that was there before.  Hooks are the polite part (rule 27): what passes
 * them by costs a snapshot another round, never its exactness.
 */
#include "ab_lifecycle.h"

#include "access/parallel.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_tablespace.h"
#include "commands/tablespace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"

#include "ab_agentready.h"
#include "ab_agentrole.h"
#include "ab_gate.h"
#include "ab_hooks.h"
#include "ab_quota.h"
#include "ab_storagefiles.h"

static ProcessUtility_hook_type prev_utility = NULL;
static ExecutorStart_hook_type prev_executor_start = NULL;
static object_access_hook_type prev_object_access = NULL;

/* DROP DATABASE that this process runs: what it drops, once it is known. */
static bool watching_drop = false;
static Oid	dropped_db = InvalidOid;

/* ---- executor ---- */

static bool
plan_writes(const PlannedStmt *plan)
{
	switch (plan->commandType)
	{
		case CMD_INSERT:
		case CMD_UPDATE:
		case CMD_DELETE:
		case CMD_MERGE:
			return true;
		default:
			/* SELECT: writing WITH queries; FOR UPDATE marks rows on disk */
			return plan->hasModifyingCTE || plan->rowMarks != NIL;
	}
}

static pg_attribute_hot void
executor_start(QueryDesc *query, int eflags)
{
	if (plan_writes(query->plannedstmt) && (eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0 &&
		!IsParallelWorker())
		ab_gate_enter();

	if (unlikely(prev_executor_start != NULL))
		prev_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

/* ---- object access ---- */

/*
 * Functions that write and that clients call without a statement, through the
 * protocol's fast path (M1): only this hook sees them there.
 */
static bool
writes_large_objects(Oid function)
{
	switch (function)
	{
		case F_LO_CREAT:
		case F_LO_CREATE:
		case F_LO_FROM_BYTEA:
		case F_LO_IMPORT_TEXT:
		case F_LO_IMPORT_TEXT_OID:
		case F_LO_PUT:
		case F_LO_TRUNCATE:
		case F_LO_TRUNCATE64:
		case F_LO_UNLINK:
		case F_LOWRITE:
			return true;
		default:
			return false;
	}
}

static void
object_changes(ObjectAccessType access, Oid classId, Oid objectId)
{
	if (access == OAT_POST_CREATE && classId == DatabaseRelationId)
	{
		ab_check_created_database(objectId);
		ab_agentready_void(objectId);
	}
	if (access == OAT_DROP && classId == DatabaseRelationId)
	{
		ab_check_drop_database(objectId, watching_drop);
		ab_agent_note_drop_database(objectId);
		if (watching_drop)
		{
			dropped_db = objectId;
			ab_report_drop_database(objectId);
		}
	}
	if (access == OAT_DROP && classId == AuthIdRelationId)
		ab_agent_check_drop_role(objectId);
	if (access == OAT_DROP && classId == ExtensionRelationId)
		ab_warn_drop_extension(objectId);
	if (access == OAT_DROP && classId == TableSpaceRelationId)
		ab_check_drop_tablespace(objectId, get_tablespace_name(objectId));
}

static pg_noinline void
object_access_rarely(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classId, objectId, subId, arg);
	if (access != OAT_FUNCTION_EXECUTE)
		object_changes(access, classId, objectId);
	else if (writes_large_objects(objectId))
		ab_gate_enter();
}

/* Mostly it is asked about functions that a query is going to call. */
static pg_attribute_hot void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (unlikely(access != OAT_FUNCTION_EXECUTE || prev_object_access != NULL ||
				 writes_large_objects(objectId)))
		object_access_rarely(access, classId, objectId, subId, arg);
}

/* ---- utility statements ---- */

/* The arguments of the utility hook, to hand them on. */
typedef struct UtilityCall
{
	PlannedStmt *pstmt;
	const char *queryString;
	bool		readOnlyTree;
	ProcessUtilityContext context;
	ParamListInfo params;
	QueryEnvironment *queryEnv;
	DestReceiver *dest;
	QueryCompletion *qc;
} UtilityCall;

static void
run_next(const UtilityCall *c)
{
	if (prev_utility)
		prev_utility(c->pstmt, c->queryString, c->readOnlyTree, c->context,
					 c->params, c->queryEnv, c->dest, c->qc);
	else
		standard_ProcessUtility(c->pstmt, c->queryString, c->readOnlyTree, c->context,
								c->params, c->queryEnv, c->dest, c->qc);
}

/*
 * VACUUM and its like commit in between, and the gate's lock goes with each
 * transaction.  Holding it for the session as well covers the whole statement;
 * what is left to commit afterwards is covered by the transaction's lock again,
 * which is had without waiting while the session's is held.
 */
static void
run_several_transactions(const UtilityCall *c)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, AB_GATE_RELID);
	(void) LockAcquire(&tag, RowExclusiveLock, true, false);
	PG_TRY();
	{
		ab_gate_enter();
		run_next(c);
		ab_gate_enter();
	}
	PG_FINALLY();
	{
		(void) LockRelease(&tag, RowExclusiveLock, true);
	}
	PG_END_TRY();
}

/*
 * The server drops a branch as it drops any database; only the origin file is
 * left to do, before the transaction commits.  After a crash in between the sweep
 * does it, or the DROP DATABASE that is repeated.
 */
static void
run_dropdb(const UtilityCall *c)
{
	dropped_db = InvalidOid;
	watching_drop = true;
	PG_TRY();
	{
		run_next(c);
	}
	PG_FINALLY();
	{
		watching_drop = false;
	}
	PG_END_TRY();

	if (OidIsValid(dropped_db))
	{
		ab_storage_drop_origin(dropped_db);

		/*
		 * Who counts before this commits finds a database that is no branch, which must
		 * not be taken off once more.
		 */
		ab_quota_count_anew();
	}
	dropped_db = InvalidOid;
}

static void
run_writer(const UtilityCall *c, AbUtilityKind kind)
{
	if (kind == AB_UTILITY_WRITES_MANY)
	{
		run_several_transactions(c);
		return;
	}
	if (kind == AB_UTILITY_WRITES)
		ab_gate_enter();
	run_next(c);
}

static pg_noinline void
run_utility(const UtilityCall *call)
{
	Node	   *stmt = call->pstmt->utilityStmt;

	if (IsA(stmt, CreatedbStmt) && ab_statement_is_branch((CreatedbStmt *) stmt))
	{
		(void) ab_create_from_statement((CreatedbStmt *) stmt);
		return;
	}
	ab_check_database_statement(stmt);
	ab_agent_check_statement(stmt);
	ab_agentready_statement(stmt);
	if (IsA(stmt, DropdbStmt))
		run_dropdb(call);
	else
		run_writer(call, ab_utility_kind(stmt));
	if (ab_changes_owners(stmt))
		ab_quota_count_anew();
}

/* BEGIN, SAVEPOINT, COMMIT and their like: nothing above has anything to do for them. */
static inline bool
is_plain_transaction_statement(Node *stmt)
{
	return IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind < TRANS_STMT_PREPARE;
}

static pg_attribute_hot void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	UtilityCall call = {pstmt, queryString, readOnlyTree, context,
	params, queryEnv, dest, qc};

	if (!is_plain_transaction_statement(pstmt->utilityStmt))
		run_utility(&call);
	else if (unlikely(prev_utility != NULL))
		run_next(&call);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
								queryEnv, dest, qc);
}

/* ---- installing ---- */

void
ab_hooks_install(void)
{
	prev_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
}
