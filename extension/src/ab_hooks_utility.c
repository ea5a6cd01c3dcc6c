/*
 * ab_hooks_utility.c
 *	  Which utility statements write in the current database.
 *
 * Any backend; no locks.  A statement that is not known here counts as one that
 * writes: entering the gate needlessly costs one fast-path lock, and even a
 * statement that slips through is caught by the snapshot itself (rule 27).
 */
#include "ab_hooks.h"

/* Statements that commit in between, or may. */
static bool
runs_several_transactions(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_VacuumStmt:
		case T_ClusterStmt:
		case T_ReindexStmt:
			return true;
		case T_IndexStmt:
			return ((IndexStmt *) stmt)->concurrent;
		case T_DropStmt:
			return ((DropStmt *) stmt)->concurrent;
		case T_AlterTableStmt:
			{
				ListCell   *lc;

				foreach(lc, ((AlterTableStmt *) stmt)->cmds)
				{
					AlterTableCmd *cmd = lfirst(lc);

					if (IsA(cmd, AlterTableCmd) &&
						cmd->subtype == AT_DetachPartition &&
						((PartitionCmd *) cmd->def)->concurrent)
						return true;
				}
				return false;
			}
		default:
			return false;
	}
}

/*
 * Statements that change nothing in this database: session state, reading, shared
 * objects only, and those whose inner statements pass the hooks themselves.
 */
static bool
is_quiet(Node *stmt)
{
	switch (nodeTag(stmt))
	{
			/* transactions and session state */
		case T_TransactionStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
		case T_ConstraintsSetStmt:
		case T_DiscardStmt:
		case T_LoadStmt:
		case T_LockStmt:
		case T_ListenStmt:
		case T_UnlistenStmt:
		case T_NotifyStmt:
		case T_CheckPointStmt:
			/* the executor hook sees what these run */
		case T_DeclareCursorStmt:
		case T_FetchStmt:
		case T_ClosePortalStmt:
		case T_PrepareStmt:
		case T_ExecuteStmt:
		case T_DeallocateStmt:
		case T_ExplainStmt:
		case T_DoStmt:
		case T_CallStmt:
			/* shared objects */
		case T_CreatedbStmt:
		case T_DropdbStmt:
		case T_AlterDatabaseStmt:
		case T_AlterDatabaseRefreshCollStmt:
		case T_AlterDatabaseSetStmt:
		case T_CreateRoleStmt:
		case T_AlterRoleStmt:
		case T_AlterRoleSetStmt:
		case T_DropRoleStmt:
		case T_GrantRoleStmt:
		case T_CreateTableSpaceStmt:
		case T_DropTableSpaceStmt:
		case T_AlterTableSpaceOptionsStmt:
		case T_AlterSystemStmt:
			return true;
		case T_CopyStmt:
			return !((CopyStmt *) stmt)->is_from;
		default:
			return false;
	}
}

AbUtilityKind
ab_utility_kind(Node *stmt)
{
	if (is_quiet(stmt))
		return AB_UTILITY_QUIET;
	if (runs_several_transactions(stmt))
		return AB_UTILITY_WRITES_MANY;
	return AB_UTILITY_WRITES;
}
