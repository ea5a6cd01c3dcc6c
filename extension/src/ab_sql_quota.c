/*
 * ab_sql_quota.c
 *	  branch.set_quota, and what the view branch.quotas shows of their use.
 *
 * Backends in the control database.  ShareRowExclusiveLock on branch.quota_list while
 * one is changed (ab_quotaload.c says why).
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_quota.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_quota.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_set_quota);
PG_FUNCTION_INFO_V1(ab_sql_quota_use);

/* ---- setting ---- */

static const char *const limit_names[] = {
	"max_branches", "max_own_bytes", "max_creations_per_minute", "max_snapshots"
};

static int64
limit_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	int64		value;

	if (PG_ARGISNULL(n))
		return AB_NO_LIMIT;
	value = PG_GETARG_INT64(n);
	if (value < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be negative", name),
				 errhint("Null sets no limit.")));
	if (strcmp(name, "max_own_bytes") != 0 && value > INT_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not exceed %d", name, INT_MAX),
				 errhint("Null sets no limit.")));
	return value;
}

static AbQuotaKey
key_arguments(FunctionCallInfo fcinfo)
{
	AbQuotaKey	key = {InvalidOid, InvalidOid};
	char	   *parent = ab_sql_text(fcinfo, 0);

	if (parent != NULL)
		key.parent = ab_find_parent(parent);
	if (!PG_ARGISNULL(1))
		key.role = get_role_oid(NameStr(*PG_GETARG_NAME(1)), false);
	if (!OidIsValid(key.parent) && !OidIsValid(key.role))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a quota is of a parent, of a role, or of both"),
				 errhint("Name the parent, the role, or both; agent_branch.max_branches limits the whole cluster.")));
	return key;
}

/* As stored: a null for each limit that is not set. */
static bool
store(AbQuotaKey key, const int64 *limits)
{
	Oid			types[6] = {OIDOID, OIDOID, INT8OID, INT8OID, INT8OID, INT8OID};
	Datum		values[6];
	char		nulls[7] = "      ";
	bool		any = false;

	values[0] = ObjectIdGetDatum(key.role);
	values[1] = ObjectIdGetDatum(key.parent);
	for (int i = 0; i < lengthof(limit_names); i++)
	{
		values[2 + i] = Int64GetDatum(limits[i]);
		if (limits[i] == AB_NO_LIMIT)
			nulls[2 + i] = 'n';
		else
			any = true;
	}
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (any)
		(void) ab_tables_execute("INSERT INTO branch.quota_list (role_id, parent_id,"
								 " max_branches, max_own_bytes, max_creations_per_minute,"
								 " max_snapshots) VALUES ($1, $2, $3, $4, $5, $6)"
								 " ON CONFLICT (role_id, parent_id) DO UPDATE SET"
								 " max_branches = excluded.max_branches,"
								 " max_own_bytes = excluded.max_own_bytes,"
								 " max_creations_per_minute = excluded.max_creations_per_minute,"
								 " max_snapshots = excluded.max_snapshots,"
								 " set_by = excluded.set_by, set_at = excluded.set_at",
								 6, types, values, nulls);
	else
		(void) ab_tables_execute("DELETE FROM branch.quota_list"
								 " WHERE role_id = $1 AND parent_id = $2",
								 2, types, values, NULL);
	SPI_finish();
	return any;
}

static void
lock_quotas(void)
{
	LockRelationOid(get_relname_relid("quota_list", get_namespace_oid("branch", false)),
					ShareRowExclusiveLock);
}

Datum
ab_sql_set_quota(PG_FUNCTION_ARGS)
{
	int64		values[lengthof(limit_names)];
	AbQuotaLimits limits;
	AbQuotaKey	key;

	ab_require_control_database();
	ab_prevent_read_only("branch.set_quota()");
	key = key_arguments(fcinfo);
	for (int i = 0; i < lengthof(limit_names); i++)
		values[i] = limit_argument(fcinfo, 2 + i, limit_names[i]);
	limits.branches = values[0];
	limits.own_bytes = values[1];
	limits.per_minute = values[2];
	limits.snapshots = values[3];

	lock_quotas();
	ab_quota_change(key, store(key, values) ? &limits : NULL);
	PG_RETURN_VOID();
}

void
ab_sql_move_quotas(Oid from, Oid to)
{
	int			n;
	AbQuotaKey *keys;

	if (!ab_quotatable_any())
		return;
	lock_quotas();
	keys = ab_quotatable_keys(&n);
	for (int i = 0; i < n; i++)
	{
		const int64 none[] = {AB_NO_LIMIT, AB_NO_LIMIT, AB_NO_LIMIT, AB_NO_LIMIT};
		AbQuotaKey	key = keys[i];
		AbQuota		quota;
		int64		values[lengthof(limit_names)];

		if (key.parent != from || !ab_quotatable_get(key, &quota))
			continue;
		(void) store(key, none);
		ab_quota_change(key, NULL);
		key.parent = to;
		values[0] = quota.limits.branches;
		values[1] = quota.limits.own_bytes;
		values[2] = quota.limits.per_minute;
		values[3] = quota.limits.snapshots;
		if (store(key, values))
			ab_quota_change(key, &quota.limits);
	}
	pfree(keys);
}

/* ---- their use ---- */

/* Named snapshots whose time is not over. */
static int64
count_snapshots(AbQuotaKey key)
{
	Oid			types[2] = {OIDOID, OIDOID};
	Datum		values[2];
	bool		isnull;
	int64		n;

	values[0] = ObjectIdGetDatum(key.role);
	values[1] = ObjectIdGetDatum(key.parent);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("SELECT count(*) FROM branch.named_snapshots"
							 " WHERE (keep_until IS NULL OR keep_until > clock_timestamp())"
							 " AND ($1 = 0 OR created_by = pg_get_userbyid($1))"
							 " AND ($2 = 0 OR source_id = $2)",
							 2, types, values, NULL);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
									&isnull));
	SPI_finish();
	return n;
}

static bool
may_see(AbQuotaKey key)
{
	Oid			user = GetUserId();

	return has_privs_of_role(user, ROLE_PG_READ_ALL_STATS) ||
		(OidIsValid(key.role) && has_privs_of_role(user, key.role)) ||
		(OidIsValid(key.parent) &&
		 SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(key.parent)) &&
		 pg_database_ownercheck(key.parent, user));
}

/* (branches, own_bytes, creations, snapshots): what is used of a quota. */
Datum
ab_sql_quota_use(PG_FUNCTION_ARGS)
{
	AbQuotaKey	key;
	TupleDesc	desc;
	Datum		values[4] = {0};
	bool		nulls[4] = {true, true, true, true};

	ab_require_control_database();
	key.role = PG_GETARG_OID(0);
	key.parent = PG_GETARG_OID(1);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (may_see(key))
	{
		int64		branches = ab_quota_branches(key);

		memset(nulls, 0, sizeof(nulls));
		nulls[0] = branches < 0;
		values[0] = Int64GetDatum(branches);
		values[1] = Int64GetDatum(ab_quota_own_bytes(key));
		values[2] = Int64GetDatum(ab_quota_recent(key));
		values[3] = Int64GetDatum(count_snapshots(key));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ---- snapshots ---- */

static void
check_snapshots(AbQuotaKey key)
{
	AbQuota		quota;
	LOCKTAG		tag;
	int64		used;

	if (!ab_quotatable_get(key, &quota) || quota.limits.snapshots == AB_NO_LIMIT)
		return;

	/* those who use this quota take turns, to the end of their transactions */
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, key.role, key.parent, 1);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	used = count_snapshots(key);
	if (used >= quota.limits.snapshots)
		ab_quota_refuse(key, "named snapshots", quota.limits.snapshots, used,
						"Drop snapshots with branch.drop_snapshot(), or have the quota raised with branch.set_quota().");
}

void
ab_sql_check_snapshot_quota(Oid source)
{
	AbQuotaKey	keys[] = {{GetUserId(), InvalidOid}, {InvalidOid, source},
	{GetUserId(), source}};

	for (int i = 0; i < lengthof(keys) && ab_quotatable_any(); i++)
		check_snapshots(keys[i]);
}
