/*
 * ab_branchsetting.c
 *	  Settings that a branch can have a value of its own of: ALTER DATABASE branch SET.
 *
 * What uses them works on a branch from elsewhere: sessions in the control database, and
 * the keeper.  The server gives a session the values of its own database only, so those of
 * the branch are read from the catalog here.  A value of the calling session or its role
 * comes before the branch's, that of the configuration or of the control database after it.
 * Any process with a transaction; no locks but the catalog's; nothing is written.
 */
#include "ab_branchsetting.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/rel.h"

#define PREFIX "agent_branch."

static const char *const names[AB_NBRANCHSETTINGS] = {
	[AB_BRANCH_AUTO_SUSPEND] = PREFIX "auto_suspend_seconds",
	[AB_BRANCH_IDLE_IN_TRANSACTION] = PREFIX "suspend_idle_in_transaction",
	[AB_BRANCH_RECOVERY_WINDOW] = PREFIX "recovery_window",
	[AB_BRANCH_CLEANUP_AFTER] = PREFIX "cleanup_after",
};

AbBranchSetting
ab_branchsetting_find(const char *name)
{
	for (int i = 0; i < AB_NBRANCHSETTINGS; i++)
		if (strcmp(names[i] + strlen(PREFIX), name) == 0)
			return (AbBranchSetting) i;
	elog(ERROR, "branches have no setting \"%s\" of their own", name);
}

/* ---- what is stored ---- */

/* The value among those of ALTER DATABASE ... SET ("name=value"), or NULL. */
static char *
find_value(ArrayType *config, const char *name)
{
	size_t		len = strlen(name);
	Datum	   *items;
	bool	   *nulls;
	int			n;
	char	   *value = NULL;

	deconstruct_array(config, TEXTOID, -1, false, TYPALIGN_INT, &items, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *item = nulls[i] ? NULL : TextDatumGetCString(items[i]);

		if (item && pg_strncasecmp(item, name, len) == 0 && item[len] == '=')
			value = item + len + 1;
	}
	return value;
}

char *
ab_stored_setting(Oid db, const char *name)
{
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tup;
	char	   *value = NULL;

	ScanKeyInit(&key[0], Anum_pg_db_role_setting_setdatabase,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(db));
	ScanKeyInit(&key[1], Anum_pg_db_role_setting_setrole,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(InvalidOid));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 2, key);
	tup = systable_getnext(scan);
	if (HeapTupleIsValid(tup))
	{
		bool		isnull;
		Datum		config = heap_getattr(tup, Anum_pg_db_role_setting_setconfig,
										  RelationGetDescr(rel), &isnull);

		if (!isnull)
			value = find_value(DatumGetArrayTypeP(config), name);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return value;
}

/* ---- what counts ---- */

/* The array moves when settings are added; what it points to stays. */
static struct config_int *
find_definition(AbBranchSetting which)
{
	static struct config_int *definitions[AB_NBRANCHSETTINGS];
	struct config_generic **vars = get_guc_variables();

	for (int i = 0; definitions[which] == NULL && i < GetNumConfigOptions(); i++)
		if (strcmp(vars[i]->name, names[which]) == 0)
			definitions[which] = (struct config_int *) vars[i];
	if (definitions[which] == NULL)
		elog(ERROR, "setting \"%s\" is not defined", names[which]);
	return definitions[which];
}

/* One that the server would refuse, stored while it ran without the library, does not count. */
int
ab_branchsetting(Oid db, AbBranchSetting which)
{
	struct config_int *setting = find_definition(which);
	char	   *stored = NULL;
	int			value;

	if (setting->gen.source <= PGC_S_DATABASE)
		stored = ab_stored_setting(db, names[which]);
	if (stored != NULL && parse_int(stored, &value, setting->gen.flags, NULL) &&
		value >= setting->min && value <= setting->max)
		return value;
	return *setting->variable;
}
