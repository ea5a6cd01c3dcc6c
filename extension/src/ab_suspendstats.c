/*
 * ab_suspendstats.c
 *	  The cumulative statistics of suspended branches: table branch.suspended_stats.
 *
 * Autovacuum's launcher passes over a database without an entry in the statistics, unless
 * its age asks for a visit, and the memory and the file of statistics grow with every
 * table of every database.  So while a branch is suspended its statistics are in the
 * table, and nothing of them is in memory; the activity worker moves them, some at a
 * time, long after anybody waits for it (M23).
 *
 * Putting away: copied to the table, and dropped from memory when that has committed,
 * unless the branch has been resumed.  Bringing back: the row is deleted, and added to
 * what has been counted since when that has committed.  A crash empties the statistics
 * anyway, and leaves what the table has.  A visit of autovacuum makes entries anew; they
 * are dropped when it has gone.
 */
#include "ab_suspendstats.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/dshash.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pgstat_internal.h"
#include "utils/syscache.h"

#include "ab_tables.h"

/* Databases in one go: to find their entries all of the server are looked at. */
#define PART	500

/* One entry; its data follow. */
typedef struct Record
{
	int32		kind;
	Oid			object;
	uint32		len;
} Record;

typedef struct Moved
{
	Oid			db;
	TimestampTz origin_at;
	StringInfoData data;
} Moved;

/* Of the transaction that is under way. */
static Moved moved[PART];
static int	nmoved = 0;
static bool moved_away;
static MemoryContext moved_data = NULL;

static void
connect_tables(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
start_data(StringInfo data)
{
	MemoryContext old = MemoryContextSwitchTo(moved_data);

	initStringInfo(data);
	MemoryContextSwitchTo(old);
}

static int
by_db(const void *a, const void *b)
{
	Oid			left = ((const AbActivity *) a)->db;
	Oid			right = ((const AbActivity *) b)->db;

	return left < right ? -1 : left > right;
}

/* Their data is empty yet. */
static void
set_moved(AbActivity *some, int n)
{
	if (moved_data == NULL)
		moved_data = AllocSetContextCreate(TopMemoryContext, "statistics that are moved",
										   ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(moved_data);
	qsort(some, n, sizeof(AbActivity), by_db);
	for (nmoved = 0; nmoved < n; nmoved++)
	{
		Moved	   *m = &moved[nmoved];

		m->db = some[nmoved].db;
		m->origin_at = some[nmoved].origin_at;
		start_data(&m->data);
	}
}

/* Those to put away, or to bring back. */
static bool
choose(bool away)
{
	AbActivity *some = palloc(sizeof(AbActivity) * (PART + 1));
	int			n;

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	n = ab_activity_list_to_move(some, PART + 1, away);
	LWLockRelease(ab_activity->lock);
	set_moved(some, Min(n, PART));
	moved_away = away;
	pfree(some);
	return n > PART;
}

static Moved *
find_moved(Oid db)
{
	int			from = 0;
	int			to = nmoved;

	while (from < to)
	{
		int			middle = (from + to) / 2;

		if (moved[middle].db == db)
			return &moved[middle];
		if (moved[middle].db < db)
			from = middle + 1;
		else
			to = middle;
	}
	return NULL;
}

/* ---- putting away ---- */

static void
copy_entries(void)
{
	dshash_seq_status seq;
	PgStatShared_HashEntry *entry;

	dshash_seq_init(&seq, pgStatLocal.shared_hash, false);
	while ((entry = dshash_seq_next(&seq)) != NULL)
	{
		Moved	   *m = entry->dropped ? NULL : find_moved(entry->key.dboid);
		PgStatShared_Common *body;
		Record		record;

		if (m == NULL)
			continue;
		body = dsa_get_address(pgStatLocal.dsa, entry->body);
		record.kind = entry->key.kind;
		record.object = entry->key.objoid;
		record.len = pgstat_get_entry_len(entry->key.kind);
		LWLockAcquire(&body->lock, LW_SHARED);
		appendBinaryStringInfo(&m->data, (char *) &record, sizeof(record));
		appendBinaryStringInfo(&m->data, pgstat_get_entry_data(entry->key.kind, body),
							   record.len);
		LWLockRelease(&body->lock);
	}
	dshash_seq_term(&seq);
}

static Datum
bytea_of(const StringInfoData *data)
{
	bytea	   *value = palloc(VARHDRSZ + data->len);

	SET_VARSIZE(value, VARHDRSZ + data->len);
	memcpy(VARDATA(value), data->data, data->len);
	return PointerGetDatum(value);
}

bool
ab_suspendstats_put_away(void)
{
	static const char query[] =
	"INSERT INTO branch.suspended_stats (db, origin_at, entries) VALUES ($1, $2, $3)"
	" ON CONFLICT (db) DO UPDATE SET origin_at = excluded.origin_at, entries = excluded.entries";
	Oid			types[3] = {OIDOID, TIMESTAMPTZOID, BYTEAOID};
	bool		more = choose(true);

	if (nmoved > 0)
		copy_entries();
	connect_tables();
	for (int i = 0; i < nmoved; i++)
	{
		Datum		values[3];

		if (moved[i].data.len == 0)
			continue;			/* it has none */
		values[0] = ObjectIdGetDatum(moved[i].db);
		values[1] = TimestampTzGetDatum(moved[i].origin_at);
		values[2] = bytea_of(&moved[i].data);
		(void) ab_tables_execute(query, 3, types, values, NULL);
	}
	SPI_finish();
	return more;
}

/* ---- bringing back ---- */

bool
ab_suspendstats_bring_back(void)
{
	bool		more = choose(false);
	Oid			types[2] = {OIDOID, TIMESTAMPTZOID};

	connect_tables();
	for (int i = 0; i < nmoved; i++)
	{
		Datum		values[2] = {ObjectIdGetDatum(moved[i].db),
		TimestampTzGetDatum(moved[i].origin_at)};

		if (ab_tables_execute("DELETE FROM branch.suspended_stats WHERE db = $1"
							  " AND origin_at = $2 RETURNING entries",
							  2, types, values, NULL) > 0)
		{
			bool		isnull;
			bytea	   *entries = DatumGetByteaPP(SPI_getbinval(SPI_tuptable->vals[0],
																 SPI_tuptable->tupdesc, 1,
																 &isnull));

			appendBinaryStringInfo(&moved[i].data, VARDATA_ANY(entries),
								   VARSIZE_ANY_EXHDR(entries));
		}
	}
	SPI_finish();
	return more;
}

static bool
is_time(PgStat_Kind kind, size_t offset)
{
	if (kind == PGSTAT_KIND_DATABASE)
		return offset == offsetof(PgStat_StatDBEntry, last_autovac_time) ||
			offset == offsetof(PgStat_StatDBEntry, last_checksum_failure) ||
			offset == offsetof(PgStat_StatDBEntry, stat_reset_timestamp);
	if (kind == PGSTAT_KIND_RELATION)
		return offset == offsetof(PgStat_StatTabEntry, vacuum_timestamp) ||
			offset == offsetof(PgStat_StatTabEntry, autovac_vacuum_timestamp) ||
			offset == offsetof(PgStat_StatTabEntry, analyze_timestamp) ||
			offset == offsetof(PgStat_StatTabEntry, autovac_analyze_timestamp);
	return false;
}

/* All members are counters or times, of 8 bytes. */
static void
merge_entry(Oid db, const Record *record, const char *data)
{
	PgStat_EntryRef *ref;
	int64	   *now;

	if (record->len != pgstat_get_entry_len(record->kind) || record->len % sizeof(int64) != 0)
		return;
	ref = pgstat_get_entry_ref_locked(record->kind, db, record->object, false);
	now = pgstat_get_entry_data(record->kind, ref->shared_stats);
	for (size_t offset = 0; offset < record->len; offset += sizeof(int64))
	{
		int64		old;

		memcpy(&old, data + offset, sizeof(old));
		if (is_time(record->kind, offset))
			*now = Max(*now, old);
		else
			*now += old;
		now++;
	}
	pgstat_unlock_entry(ref);
}

static void
merge(const Moved *m)
{
	int			at = 0;
	Record		record;

	while (at + (int) sizeof(record) <= m->data.len)
	{
		memcpy(&record, m->data.data + at, sizeof(record));
		at += sizeof(record);
		if (at + (int64) record.len > m->data.len)
			return;
		if (record.kind == PGSTAT_KIND_DATABASE || record.kind == PGSTAT_KIND_RELATION ||
			record.kind == PGSTAT_KIND_FUNCTION)
			merge_entry(m->db, &record, m->data.data + at);
		at += record.len;
	}
}

/* ---- when it has committed ---- */

static bool
is_there(const PgStat_HashKey *key)
{
	PgStatShared_HashEntry *entry = dshash_find(pgStatLocal.shared_hash, key, false);
	bool		there = entry != NULL && !entry->dropped;

	if (entry != NULL)
		dshash_release_lock(pgStatLocal.shared_hash, entry);
	return there;
}

static bool
has_entry(Oid db)
{
	PgStat_HashKey key;

	memset(&key, 0, sizeof(key));
	key.kind = PGSTAT_KIND_DATABASE;
	key.dboid = db;
	return is_there(&key);
}

static bool
set_put_away(const Moved *m, bool away)
{
	AbActivity *entry;
	bool		agrees;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	entry = ab_activity_find(m->db);
	agrees = entry != NULL && entry->origin_at == m->origin_at;
	if (agrees)
	{
		entry->stats_put_away = away;
		ab_activity_touch(entry);
	}
	LWLockRelease(ab_activity->lock);
	return agrees;
}

/*
 * As the server drops an entry, which for that of a database would look at all entries of
 * the server again.  False: somebody has it in use, and lets it go when he is told.
 */
static bool
drop_database_entry(Oid db)
{
	PgStat_HashKey key;
	PgStatShared_HashEntry *entry;
	dsa_pointer body;

	memset(&key, 0, sizeof(key));
	key.kind = PGSTAT_KIND_DATABASE;
	key.dboid = db;
	entry = dshash_find(pgStatLocal.shared_hash, &key, true);
	if (entry == NULL)
		return true;
	if (!entry->dropped)
	{
		entry->dropped = true;
		if (pg_atomic_sub_fetch_u32(&entry->refcount, 1) == 0)
		{
			body = entry->body;
			dshash_delete_entry(pgStatLocal.shared_hash, entry);
			dsa_free(pgStatLocal.dsa, body);
			return true;
		}
	}
	dshash_release_lock(pgStatLocal.shared_hash, entry);
	return false;
}

/* Those that have been copied, and that of the database. */
static void
drop_copied(const Moved *m)
{
	bool		freed = true;
	Record		record;

	for (int at = 0; at + (int) sizeof(record) <= m->data.len; at += sizeof(record) + record.len)
	{
		PgStat_HashKey key;

		memcpy(&record, m->data.data + at, sizeof(record));
		memset(&key, 0, sizeof(key));
		key.kind = record.kind;
		key.dboid = m->db;
		key.objoid = record.object;
		if (record.kind != PGSTAT_KIND_DATABASE && is_there(&key))
			freed &= pgstat_drop_entry(key.kind, key.dboid, key.objoid);
	}
	freed &= drop_database_entry(m->db);
	if (!freed)
		pgstat_request_entry_refs_gc();
}

/*
 * Not by pgstat_get_entry_ref(), which would make it another generation: then the last
 * session that lets go of the one before leaves it where it is, for ever.  But one that
 * has let go already, and is about to free it, has to find another one.
 */
void
ab_suspendstats_before_drop(Oid db)
{
	PgStat_HashKey key;
	PgStatShared_HashEntry *entry;
	PgStatShared_Common *body;

	memset(&key, 0, sizeof(key));
	key.kind = PGSTAT_KIND_DATABASE;
	key.dboid = db;
	entry = dshash_find(pgStatLocal.shared_hash, &key, true);
	if (entry == NULL)
		return;
	if (entry->dropped)
	{
		if (pg_atomic_fetch_add_u32(&entry->refcount, 1) == 0)
			pg_atomic_fetch_add_u32(&entry->generation, 1);
		entry->dropped = false;

		/* what it has is in the table, should the drop be rolled back */
		body = dsa_get_address(pgStatLocal.dsa, entry->body);
		memset(pgstat_get_entry_data(key.kind, body), 0, pgstat_get_entry_len(key.kind));
	}
	dshash_release_lock(pgStatLocal.shared_hash, entry);
}

/*
 * False: it was resumed meanwhile, is gone, or somebody has it locked.  Who connects waits
 * for a moment, if it is just now.
 */
static bool
drop_entries(const Moved *m)
{
	LOCKTAG		tag;
	bool		suspended;

	if (m->data.len == 0 && !has_entry(m->db))
		return true;
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, m->db, 0);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;

	/* who drops the database gives its lock back before he drops its entries */
	AcceptInvalidationMessages();
	suspended = ab_activity_suspended_at(m->db) != 0 &&
		SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(m->db));
	if (suspended)
		drop_copied(m);
	(void) LockRelease(&tag, ShareLock, false);
	return suspended;
}

/* The statistics have stayed where they were. */
static void
delete_row(const Moved *m)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(m->db)};

	connect_tables();
	(void) ab_tables_execute("DELETE FROM branch.suspended_stats WHERE db = $1",
							 1, types, values, NULL);
	SPI_finish();
}

void
ab_suspendstats_committed(void)
{
	for (int i = 0; i < nmoved; i++)
	{
		if (!moved_away && set_put_away(&moved[i], false))
			merge(&moved[i]);
		else if (moved_away && drop_entries(&moved[i]))
			(void) set_put_away(&moved[i], true);
		else if (moved_away)
			delete_row(&moved[i]);
	}
	nmoved = 0;
}

/* What a visit of autovacuum has left. */
void
ab_suspendstats_tidy(void)
{
	int			room = ab_activity_room();
	AbActivity *all = palloc_extended(sizeof(AbActivity) * room, MCXT_ALLOC_HUGE);
	AbActivity *visited = palloc(sizeof(AbActivity) * PART);
	int			nvisited = 0;
	int			n;

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	n = ab_activity_all(all, room);
	LWLockRelease(ab_activity->lock);
	for (int i = 0; i < n && nvisited < PART; i++)
		if (all[i].suspended_at != 0 && all[i].stats_put_away && has_entry(all[i].db))
			visited[nvisited++] = all[i];
	pfree(all);
	if (nvisited > 0)
	{
		set_moved(visited, nvisited);
		copy_entries();
		for (int i = 0; i < nmoved; i++)
			(void) drop_entries(&moved[i]);
		nmoved = 0;
	}
	pfree(visited);
}

void
ab_suspendstats_load(void)
{
	uint64		n;

	connect_tables();
	n = ab_tables_execute("SELECT s.db, s.origin_at FROM branch.suspended_stats AS s"
						  " INNER JOIN pg_database AS d ON s.db = d.oid", 0, NULL, NULL, NULL);
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			db = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc, 1, &isnull));
		TimestampTz origin_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i],
																  SPI_tuptable->tupdesc, 2,
																  &isnull));
		AbActivity *entry = ab_activity_make(db, origin_at);

		if (entry != NULL)
		{
			entry->stats_put_away = true;
			ab_activity_touch(entry);
		}
	}
	LWLockRelease(ab_activity->lock);
	SPI_finish();
}
