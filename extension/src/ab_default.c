/*
 * ab_default.c
 *	  Which database is branched when no parent is named: setting
 *	  agent_branch.default_parent, as sessions in the control database see it.
 *
 * branch.set_default() is ALTER DATABASE ... SET of the control database: durable,
 * transactional, dumped by pg_dumpall.  The server lets only new sessions see such a
 * change; here the catalog is read instead, so that present ones do, too.  Backends in
 * the control database.  Changes are made under a lock of their own, the last in
 * README.locking; a crash leaves what was committed.
 */
#include "ab_default.h"

#include "access/xact.h"
#include "catalog/pg_db_role_setting.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"

#include "ab_branchsetting.h"
#include "ab_settings.h"

#define SETTING "agent_branch.default_parent"

/* What the control database has for all roles; NULL: nothing. */
static char *
stored_default(void)
{
	Oid			control = ab_in_control_database() ? MyDatabaseId :
		get_database_oid(ab_control_database, true);

	return ab_stored_setting(control, SETTING);
}

char *
ab_default_parent_name(void)
{
	char	   *stored = NULL;

	if (!ab_default_parent_is_own())
		stored = stored_default();
	return pstrdup(stored ? stored : ab_default_parent);
}

static void
lock_default(void)
{
	LockSharedObject(DbRoleSettingRelationId,
					 get_database_oid(ab_control_database, false), 0, ExclusiveLock);
}

static void
store(const char *name)
{
	VariableSetStmt *stmt = makeNode(VariableSetStmt);
	A_Const    *value = makeNode(A_Const);

	value->val.sval.type = T_String;
	value->val.sval.sval = pstrdup(name);
	value->location = -1;
	stmt->kind = VAR_SET_VALUE;
	stmt->name = SETTING;
	stmt->args = list_make1(value);
	AlterSetting(get_database_oid(ab_control_database, false), InvalidOid, stmt);
	CommandCounterIncrement();
}

void
ab_default_parent_set(const char *name)
{
	lock_default();
	store(name);
}

/* Looked at before the lock, which nearly no renaming needs, and after. */
void
ab_default_parent_follow(const char *name, const char *new_name)
{
	char	   *stored = stored_default();

	if (stored == NULL || strcmp(stored, name) != 0)
		return;
	lock_default();
	stored = stored_default();
	if (stored != NULL && strcmp(stored, name) == 0)
		store(new_name);
}
