/*
 * ab_activityflush.c
 *	  Table branch.activity (ab_activityflush.h).
 *
 * The activity worker writes it and nobody else does, but for a reset, which moves the
 * row of a branch.  Rows that somebody else has locked are left for the next time.  Read
 * directly, with the snapshot that says what of shared memory is in it already (A2).
 */
#include "ab_activityflush.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_suspendevents.h"
#include "ab_tables.h"

/* In the order of the table's columns. */
#define COLUMNS "db, origin_at, since, last_active_at, sessions_total, request_count," \
	" active_us, rows_written, bytes_written, suspended_at"

enum
{
	COL_DB = 1,
	COL_ORIGIN_AT,
	COL_SINCE,
	COL_LAST_ACTIVE,
	COL_SESSIONS,
	COL_REQUESTS,
	COL_ACTIVE,
	COL_ROWS,
	COL_BYTES,
	COL_SUSPENDED,
	NCOLUMNS = COL_SUSPENDED
};

/* For functions of the extension, which is there then, and others that have looked. */
static Oid
activity_table(void)
{
	Oid			schema = get_namespace_oid("branch", true);

	return OidIsValid(schema) ? get_relname_relid("activity", schema) : InvalidOid;
}

bool
ab_activityflush_possible(void)
{
	return ab_tables_installed() && OidIsValid(activity_table());
}

static void
connect(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/* ---- writing ---- */

static Datum
int64_array(const AbActivity *rows, int n, size_t offset, Oid type)
{
	Datum	   *values = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		values[i] = Int64GetDatum(*(const int64 *) ((const char *) &rows[i] + offset));
	return PointerGetDatum(construct_array(values, n, type, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum
oid_array(const AbActivity *rows, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		values[i] = ObjectIdGetDatum(rows[i].db);
	return PointerGetDatum(construct_array(values, n, OIDOID, sizeof(Oid), true,
										   TYPALIGN_INT));
}

/* Rows that somebody else is changing: a reset that is not committed yet. */
static void
leave_out_locked(AbActivity *rows, int n)
{
	static const char query[] =
	"WITH l AS MATERIALIZED (SELECT a.db FROM branch.activity AS a WHERE a.db = ANY ($1)"
	" FOR UPDATE SKIP LOCKED)"
	" SELECT a.db FROM branch.activity AS a WHERE a.db = ANY ($1)"
	" AND NOT EXISTS (SELECT FROM l WHERE l.db = a.db)";
	Oid			types[1] = {OIDARRAYOID};
	Datum		values[1] = {oid_array(rows, n)};
	uint64		nlocked = ab_tables_execute(query, 1, types, values, NULL);

	for (uint64 i = 0; i < nlocked; i++)
	{
		bool		isnull;
		Oid			db = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc, 1, &isnull));

		ab_activity_leave_out(db);
		for (int k = 0; k < n; k++)
			if (rows[k].db == db)
				rows[k].db = InvalidOid;
	}
}

/*
 * What the file has says nothing of sleep: it may be older than what the entry, which every
 * branch that is asleep has, has said already.
 */
static void
write_rows(const AbActivity *rows, int n, bool from_file)
{
	static const char query[] =
	"INSERT INTO branch.activity AS a (" COLUMNS ")"
	" SELECT u.db, u.origin_at, u.since, nullif(u.last, '-infinity'), u.sessions, u.requests,"
	" u.active, u.rows, u.bytes, nullif(u.suspended, '2000-01-01 00:00:00+00')"
	" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
	" AS u (db, origin_at, since, last, sessions, requests, active, rows, bytes, suspended)"
	" WHERE EXISTS (SELECT FROM pg_database AS d WHERE d.oid = u.db)"
	" ON CONFLICT (db) DO UPDATE SET"
	" origin_at = excluded.origin_at,"
	" since = CASE WHEN a.origin_at = excluded.origin_at THEN a.since ELSE excluded.since END,"
	" last_active_at = CASE WHEN a.origin_at = excluded.origin_at"
	" THEN greatest(a.last_active_at, excluded.last_active_at) ELSE excluded.last_active_at END,"
	" sessions_total = excluded.sessions_total"
	" + CASE WHEN a.origin_at = excluded.origin_at THEN a.sessions_total ELSE 0 END,"
	" request_count = excluded.request_count"
	" + CASE WHEN a.origin_at = excluded.origin_at THEN a.request_count ELSE 0 END,"
	" active_us = excluded.active_us"
	" + CASE WHEN a.origin_at = excluded.origin_at THEN a.active_us ELSE 0 END,"
	" rows_written = excluded.rows_written"
	" + CASE WHEN a.origin_at = excluded.origin_at THEN a.rows_written ELSE 0 END,"
	" bytes_written = excluded.bytes_written"
	" + CASE WHEN a.origin_at = excluded.origin_at THEN a.bytes_written ELSE 0 END,"
	" suspended_at = CASE WHEN a.origin_at = excluded.origin_at AND $11"
	" THEN a.suspended_at ELSE excluded.suspended_at END";
	static const size_t offsets[NCOLUMNS] = {
		0, offsetof(AbActivity, origin_at), offsetof(AbActivity, since),
		offsetof(AbActivity, last_active), offsetof(AbActivity, pending.sessions),
		offsetof(AbActivity, pending.requests), offsetof(AbActivity, pending.active_us),
		offsetof(AbActivity, pending.rows), offsetof(AbActivity, pending.bytes),
		offsetof(AbActivity, suspended_at)
	};
	Oid			types[NCOLUMNS + 1];
	Datum		values[NCOLUMNS + 1];

	types[0] = OIDARRAYOID;
	values[0] = oid_array(rows, n);
	for (int i = 1; i < NCOLUMNS; i++)
	{
		bool		is_time = i + 1 <= COL_LAST_ACTIVE || i + 1 == COL_SUSPENDED;

		types[i] = is_time ? TIMESTAMPTZARRAYOID : INT8ARRAYOID;
		values[i] = int64_array(rows, n, offsets[i], is_time ? TIMESTAMPTZOID : INT8OID);
	}
	types[NCOLUMNS] = BOOLOID;
	values[NCOLUMNS] = BoolGetDatum(from_file);
	(void) ab_tables_execute(query, NCOLUMNS + 1, types, values, NULL);
}

/*
 * Nobody but the worker changes the batch, so it is read without the lock.  Statements
 * that run always have something new: more is worth writing at once only after a full
 * batch, or while there is a file.
 */
bool
ab_activityflush_write(void)
{
	AbActivity *rows;
	int			n;
	int			nrows = 0;

	ab_activity_settle();
	if (!ab_activity_anything())
		return false;
	n = ab_activity_take(GetCurrentTransactionId());
	rows = palloc(sizeof(AbActivity) * Max(n, 1));
	memcpy(rows, ab_activity->batch, sizeof(AbActivity) * n);
	connect();
	leave_out_locked(rows, n);
	for (int i = 0; i < n; i++)
		if (OidIsValid(rows[i].db))
			rows[nrows++] = rows[i];
	if (nrows > 0)
	{
		bool		from_file = ab_activity->batch_spill > 0;

		if (!from_file)
			ab_suspendevents_tell(rows, nrows);
		write_rows(rows, nrows, from_file);
	}
	SPI_finish();
	return nrows > 0 &&
		(n == AB_ACTIVITY_BATCH || ab_activity->spilled > ab_activity->spill_done);
}

/* ---- the worker's other duties ---- */

static Datum
column(HeapTuple tuple, TupleDesc desc, int attr, Datum when_null)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attr, desc, &isnull);

	return isnull ? when_null : value;
}

void
ab_activityflush_load(void)
{
	uint64		n;

	connect();
	n = ab_tables_execute("SELECT a.db, a.origin_at, a.suspended_at FROM branch.activity AS a"
						  " INNER JOIN pg_database AS d ON a.db = d.oid"
						  " WHERE a.suspended_at IS NOT NULL", 0, NULL, NULL, NULL);
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	for (uint64 i = 0; i < n && !ab_activity->known; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Oid			db = DatumGetObjectId(column(tuple, desc, 1, 0));
		TimestampTz origin_at = DatumGetTimestampTz(column(tuple, desc, 2, 0));
		AbActivity *entry = ab_activity_find(db);

		/* somebody came first, or the entry is older than the restart */
		if (entry != NULL && (entry->suspended_at != 0 || entry->sessions > 0 ||
							  entry->changed || !ab_use_is_zero(&entry->pending)))
		{
			entry->changed |= entry->suspended_at == 0;
			ab_activity_touch(entry);
			continue;
		}
		entry = ab_activity_make(db, origin_at);
		if (entry == NULL)
			break;
		entry->suspended_at = DatumGetTimestampTz(column(tuple, desc, 3, 0));
		ab_activity_touch(entry);
		ab_activity->nsuspended++;
	}
	ab_activity->known = true;
	LWLockRelease(ab_activity->lock);
	SPI_finish();
}

void
ab_activityflush_forget(void)
{
	int			room = ab_activity_room();
	AbActivity *all = palloc_extended(sizeof(AbActivity) * room, MCXT_ALLOC_HUGE);
	int			n;

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	n = ab_activity_all(all, room);
	LWLockRelease(ab_activity->lock);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(all[i].db)))
			continue;
		LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
		ab_activity_remove(all[i].db);
		LWLockRelease(ab_activity->lock);
	}
	pfree(all);

	connect();
	if (ab_tables_execute("SELECT 1 FROM branch.activity AS a WHERE NOT EXISTS"
						  " (SELECT FROM pg_database AS d WHERE d.oid = a.db) LIMIT 1",
						  0, NULL, NULL, NULL) > 0)
		(void) ab_tables_execute("DELETE FROM branch.activity WHERE db IN"
								 " (SELECT a.db FROM branch.activity AS a WHERE NOT EXISTS"
								 " (SELECT FROM pg_database AS d WHERE d.oid = a.db)"
								 " FOR UPDATE SKIP LOCKED)", 0, NULL, NULL, NULL);
	(void) ab_tables_execute("DELETE FROM branch.suspended_stats AS s WHERE NOT EXISTS"
							 " (SELECT FROM pg_database AS d WHERE d.oid = s.db)",
							 0, NULL, NULL, NULL);
	SPI_finish();
}

void
ab_activityflush_discard(void)
{
	int			room = ab_activity_room();
	AbActivity *all = palloc_extended(sizeof(AbActivity) * room, MCXT_ALLOC_HUGE);
	int			n;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	ab_activity_collect(InvalidOid);
	n = ab_activity_all(all, room);
	for (int i = 0; i < n; i++)
		ab_activity_remove(all[i].db);
	ab_activity->known = true;
	ab_activity->spill_done = ab_activity->spilled;
	LWLockRelease(ab_activity->lock);
	pfree(all);
}

/* ---- reading ---- */

static void
add_row(AbActivity *total, HeapTuple tuple, TupleDesc desc)
{
	total->since = DatumGetTimestampTz(column(tuple, desc, COL_SINCE, 0));
	total->last_active = Max(total->last_active,
							 DatumGetTimestampTz(column(tuple, desc, COL_LAST_ACTIVE,
														TimestampTzGetDatum(DT_NOBEGIN))));
	total->pending.sessions += DatumGetInt64(column(tuple, desc, COL_SESSIONS, 0));
	total->pending.requests += DatumGetInt64(column(tuple, desc, COL_REQUESTS, 0));
	total->pending.active_us += DatumGetInt64(column(tuple, desc, COL_ACTIVE, 0));
	total->pending.rows += DatumGetInt64(column(tuple, desc, COL_ROWS, 0));
	total->pending.bytes += DatumGetInt64(column(tuple, desc, COL_BYTES, 0));
}

static void
start_from_row(AbActivity *total, HeapTuple tuple, TupleDesc desc)
{
	memset(total, 0, sizeof(*total));
	total->db = DatumGetObjectId(column(tuple, desc, COL_DB, 0));
	total->origin_at = DatumGetTimestampTz(column(tuple, desc, COL_ORIGIN_AT, 0));
	total->last_active = DT_NOBEGIN;
	add_row(total, tuple, desc);
	if (!ab_activity->known)
		total->suspended_at = DatumGetTimestampTz(column(tuple, desc, COL_SUSPENDED, 0));
}

/* Parts of one database in one; those of the file come after the entry. */
static void
add_part(AbActivity *total, const AbActivity *part)
{
	if (total->origin_at != part->origin_at)
	{
		*total = *part;
		return;
	}
	ab_use_add(&total->pending, &part->pending);
	total->since = Min(total->since, part->since);
	total->last_active = Max(total->last_active, part->last_active);
	if (part->suspended_at != 0)
		total->suspended_at = part->suspended_at;
	total->sessions += part->sessions;
}

bool
ab_activityflush_read(Oid db, AbActivity *total)
{
	Snapshot	snapshot;
	int			n;
	AbActivity *parts = ab_activity_read(db, &snapshot, &n);
	Oid			table = activity_table();
	bool		found = n > 0;

	for (int i = 0; i < n; i++)
	{
		if (i == 0)
			*total = parts[0];
		else
			add_part(total, &parts[i]);
	}
	if (OidIsValid(table))
	{
		Relation	rel = table_open(table, AccessShareLock);
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, COL_DB, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(db));
		scan = systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel), true, snapshot, 1,
								  &key);
		tuple = systable_getnext(scan);
		if (HeapTupleIsValid(tuple))
		{
			AbActivity	row;

			start_from_row(&row, tuple, RelationGetDescr(rel));
			if (!found)
				*total = row;
			else if (row.origin_at == total->origin_at)
				add_row(total, tuple, RelationGetDescr(rel));
			found = true;
		}
		systable_endscan(scan);
		table_close(rel, AccessShareLock);
	}
	UnregisterSnapshot(snapshot);
	pfree(parts);
	return found;
}

static HTAB *
make_totals(void)
{
	HASHCTL		info = {0};

	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(AbActivity);
	info.hcxt = CurrentMemoryContext;
	return hash_create("activity of databases", 1024, &info,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
read_table(HTAB *totals, Snapshot snapshot)
{
	Relation	rel = table_open(activity_table(), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		AbActivity	row;

		start_from_row(&row, tuple, RelationGetDescr(rel));
		*(AbActivity *) hash_search(totals, &row.db, HASH_ENTER, NULL) = row;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

AbActivity *
ab_activityflush_read_all(int *n)
{
	Snapshot	snapshot;
	int			nparts;
	AbActivity *parts = ab_activity_read(InvalidOid, &snapshot, &nparts);
	HTAB	   *totals = make_totals();
	HASH_SEQ_STATUS seq;
	AbActivity *total;
	AbActivity *result;

	if (ab_activityflush_possible())
		read_table(totals, snapshot);
	UnregisterSnapshot(snapshot);
	for (int i = 0; i < nparts; i++)
	{
		bool		found;

		total = hash_search(totals, &parts[i].db, HASH_ENTER, &found);
		if (found)
			add_part(total, &parts[i]);
		else
			*total = parts[i];
	}
	pfree(parts);

	result = palloc_extended(sizeof(AbActivity) * Max(hash_get_num_entries(totals), 1),
							 MCXT_ALLOC_HUGE);
	*n = 0;
	hash_seq_init(&seq, totals);
	while ((total = hash_seq_search(&seq)) != NULL)
		result[(*n)++] = *total;
	hash_destroy(totals);
	return result;
}

/* ---- reset ---- */

/*
 * What is counted of the old database is written as the new one's, and its row goes.  Its
 * entry stays until somebody sees that the database is gone: should the worker write it
 * once more, that row goes as well.
 */
void
ab_activityflush_move(Oid old_db, TimestampTz old_origin_at, Oid new_db,
					  TimestampTz new_origin_at)
{
	AbActivity	total;
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(old_db)};

	if (!ab_activityflush_possible() || !ab_activityflush_read(old_db, &total) ||
		total.origin_at != old_origin_at)
		return;
	total.db = new_db;
	total.origin_at = new_origin_at;
	total.suspended_at = 0;
	connect();
	(void) ab_tables_execute("DELETE FROM branch.activity WHERE db = $1", 1, types, values,
							 NULL);
	write_rows(&total, 1, false);
	SPI_finish();
}
