/*
 * ab_quotaload.c
 *	  Table branch.quota_list into shared memory.
 *
 * The keeper, once after each start, and the sweeper.  Who changes a quota applies the
 * change when it commits, and keeps ShareRowExclusiveLock on the table until after that;
 * the same lock here means that nothing is overwritten with something older.
 */
#include "ab_quotaload.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "ab_quotatable.h"
#include "ab_settings.h"
#include "ab_tables.h"

/* InvalidOid where the extension is not, or not in this version. */
static Oid
quota_table(void)
{
	if (!ab_tables_installed())
		return InvalidOid;
	return get_relname_relid("quota_list", get_namespace_oid("branch", false));
}

static int64
limit_column(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, desc, column, &isnull);

	return isnull ? AB_NO_LIMIT : DatumGetInt64(value);
}

/* The caller is connected.  Returns the number of keys, palloc'd by SPI. */
static int
load_rows(AbQuotaKey **keys)
{
	uint64		n = ab_tables_execute("SELECT role_id, parent_id, max_branches::bigint,"
									  " max_own_bytes, max_creations_per_minute::bigint,"
									  " max_snapshots::bigint FROM branch.quota_list",
									  0, NULL, NULL, NULL);

	*keys = palloc(sizeof(AbQuotaKey) * (n + 1));
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		AbQuotaKey	key;
		AbQuotaLimits limits;
		bool		isnull;

		key.role = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		key.parent = DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull));
		limits.branches = limit_column(tuple, desc, 3);
		limits.own_bytes = limit_column(tuple, desc, 4);
		limits.per_minute = limit_column(tuple, desc, 5);
		limits.snapshots = limit_column(tuple, desc, 6);
		if (ab_quotatable_make_room(key))
			ab_quotatable_set(key, &limits);
		else
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("a quota of branches is not in force"),
					 errdetail("There are " UINT64_FORMAT ", and agent_branch.max_quotas is %d.",
							   n, ab_max_quotas),
					 errhint("Raise agent_branch.max_quotas and restart the server.")));
		(*keys)[i] = key;
	}
	return (int) n;
}

static bool
is_among(AbQuotaKey key, const AbQuotaKey *keys, int n)
{
	for (int i = 0; i < n; i++)
		if (memcmp(&keys[i], &key, sizeof(key)) == 0)
			return true;
	return false;
}

/* Those that the table does not have any more. */
static void
drop_others(const AbQuotaKey *keys, int n)
{
	int			nthere;
	AbQuotaKey *there = ab_quotatable_keys(&nthere);

	for (int i = 0; i < nthere; i++)
	{
		if ((OidIsValid(there[i].role) || OidIsValid(there[i].parent)) &&
			!is_among(there[i], keys, n))
			ab_quotatable_set(there[i], NULL);
	}
}

static void
load(void)
{
	Oid			table = quota_table();
	AbQuotaKey *keys;
	int			n;

	if (!OidIsValid(table))
	{
		drop_others(NULL, 0);
		return;
	}
	LockRelationOid(table, ShareRowExclusiveLock);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = load_rows(&keys);
	drop_others(keys, n);
	SPI_finish();
}

bool
ab_quotaload_first(void)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	if (pg_atomic_read_u32(&ab_quotas->loaded) != 0)
		return true;
	SetCurrentStatementStartTimestamp();
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		load();
		PopActiveSnapshot();
		pg_atomic_write_u32(&ab_quotas->loaded, 1);
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(caller);
		errcontext("reading the quotas of branches");
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	ConditionVariableBroadcast(&ab_quotas->cv);
	return done;
}

#define GONE \
	"(q.role_id <> 0 AND NOT EXISTS (SELECT 1 FROM pg_roles AS r WHERE r.oid = q.role_id))" \
	" OR (q.parent_id <> 0 AND NOT EXISTS" \
	" (SELECT 1 FROM pg_database AS d WHERE d.oid = q.parent_id))"

/* Looks first: who writes waits at the gate of the control database. */
void
ab_quotaload_refresh(void)
{
	if (!OidIsValid(quota_table()))
	{
		drop_others(NULL, 0);
		return;
	}
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (ab_tables_execute("SELECT 1 FROM branch.quota_list AS q WHERE " GONE " LIMIT 1",
						  0, NULL, NULL, NULL) > 0)
		(void) ab_tables_execute("DELETE FROM branch.quota_list AS q WHERE " GONE,
								 0, NULL, NULL, NULL);
	SPI_finish();
	load();
}
