/*
 * ab_gc_orphans.c
 *	  Giving back storage without a row (invariants B1, B3).
 *
 * Backends that call branch.gc() in the control database, or drop or move a database
 * that has been branched, and the sweeper.  Who sweeps has the turn (ab_gc_parts.h), and
 * of each database that he removes AccessExclusiveLock on the object, for which he does
 * not wait.  ROLLBACK undoes nothing; a crash leaves the rest to the next run.
 */
#include "ab_gc.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"

#include "ab_catalogrows.h"
#include "ab_gc_parts.h"
#include "ab_kept.h"
#include "ab_origin.h"
#include "ab_pins.h"
#include "ab_snaptable.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"

/* Locks held at once while sweeping: the lock table is shared by everybody. */
#define SWEEP_BATCH		256

/* ---- is it garbage? ---- */

/* Is there a committed (or own) row, seen with a snapshot taken now? */
static bool
database_row_exists(Oid db)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	Snapshot	snapshot;
	bool		found;

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	rel = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_database_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(db));
	scan = systable_beginscan(rel, DatabaseOidIndexId, true, snapshot, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return found;
}

void
ab_gc_unlock_orphan(Oid db)
{
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
}

/*
 * Lock the database object if nobody else does and say whether its storage is
 * garbage; if not the lock is given back.  A lock we have already is a creation or
 * deletion of this very transaction, which may still be rolled back.
 */
bool
ab_gc_lock_orphan(Oid db)
{
	if (ab_try_lock_database(db) != AB_LOCKED_NOW)
		return false;
	if (!database_row_exists(db))
		return true;
	ab_gc_unlock_orphan(db);
	return false;
}

/* ---- all of it ---- */

typedef struct Orphan
{
	Oid			db;
	Oid			parent;
	XLogRecPtr	born;			/* 0: its origin cannot be read, and none of its pages written */
} Orphan;

static int
compare_orphans(const void *a, const void *b)
{
	XLogRecPtr	x = ((const Orphan *) a)->born;
	XLogRecPtr	y = ((const Orphan *) b)->born;

	return x > y ? -1 : x < y;
}

/* Storage without a row, the youngest first: who inherits is younger than what he inherits from. */
static Orphan *
list_orphans(int *n)
{
	int			norigins;
	int			nrows;
	Oid		   *origins = ab_origin_list(&norigins);
	Oid		   *rows;
	Orphan	   *orphans = palloc(Max(norigins, 1) * sizeof(Orphan));

	*n = 0;
	AcceptInvalidationMessages();
	rows = ab_gc_database_oids(&nrows);
	for (int i = 0; i < norigins; i++)
	{
		AbOriginHeader header = {0};

		CHECK_FOR_INTERRUPTS();
		if (bsearch(&origins[i], rows, nrows, sizeof(Oid), oid_cmp) != NULL)
			continue;
		(void) ab_storage_read_origin(origins[i], &header);
		orphans[*n].db = origins[i];
		orphans[*n].parent = header.parent_db;
		orphans[(*n)++].born = header.incarnation.lsn;
	}
	pfree(rows);
	pfree(origins);
	qsort(orphans, *n, sizeof(Orphan), compare_orphans);
	return orphans;
}

static List *
sweep_batch(List *items, Oid *orphans, int n, bool dry_run)
{
	if (n == 0)
		return items;
	for (int i = 0; i < n; i++)
	{
		int64		bytes;
		int64		files;
		char		name[16];

		ab_storage_usage(orphans[i], &bytes, &files);
		snprintf(name, sizeof(name), "%u", orphans[i]);
		items = ab_gc_add_item(items, "branch", name, bytes);
	}
	if (!dry_run)
		ab_storage_remove(orphans, n);
	for (int i = 0; i < n; i++)
		ab_gc_unlock_orphan(orphans[i]);
	return items;
}

/* What one that is not removed now may inherit from stays, too (B3). */
static List *
sweep(bool dry_run)
{
	List	   *items = NIL;
	List	   *held = NIL;
	AbPinsNeeded needed = {0};
	Oid			batch[SWEEP_BATCH];
	int			nbatch = 0;
	int			n;
	Orphan	   *orphans = list_orphans(&n);

	for (int i = 0; i < n; i++)
	{
		Oid			db = orphans[i].db;

		CHECK_FOR_INTERRUPTS();
		if (list_member_oid(held, db) || !ab_gc_lock_orphan(db))
		{
			held = list_append_unique_oid(held, orphans[i].parent);
			continue;
		}
		if (!ab_origin_exists(db) || ab_pins_storage_needed(&needed, db))
		{
			ab_gc_unlock_orphan(db);	/* its abort removed it meanwhile, or it is needed */
			continue;
		}
		batch[nbatch++] = db;
		if (nbatch == SWEEP_BATCH)
		{
			items = sweep_batch(items, batch, nbatch, dry_run);
			nbatch = 0;
		}
	}
	return sweep_batch(items, batch, nbatch, dry_run);
}

List *
ab_sweep_orphans(bool dry_run)
{
	List	   *items;

	if (!ab_gc_lock())
		return NIL;
	items = sweep(dry_run);
	ab_gc_unlock();
	return items;
}

/*
 * Shared buffers of a standby may have pages of deleted branches, and whoever writes
 * one compares it with the page that it inherits, until the branch's BRANCH_DROP is
 * replayed.  So that comes before the record of what its parent's files become (B3).
 */
void
ab_gc_before_files_go(Oid db, const char *verb)
{
	Orphan	   *orphans;
	int			n;

	ab_pins_check_files(db, verb);
	if (!ab_snaptable_has_live(db))
		return;
	orphans = list_orphans(&n);
	if (n == 0)
		return;

	/* who has committed a deletion may still be about to give back his lock */
	for (int i = 0; i < n; i++)
	{
		if (orphans[i].parent != db)
			continue;
		LockSharedObject(DatabaseRelationId, orphans[i].db, 0, AccessExclusiveLock);
		ab_gc_unlock_orphan(orphans[i].db);
	}
	pfree(orphans);
	ab_gc_lock_waiting();
	(void) sweep(false);
	ab_gc_unlock();
}

/*
 * The server moves whatever is in the directory, and notes of what is kept say where it was.  No
 * snapshot needs it any more: ab_gc_before_files_go() has closed all that there are.
 */
void
ab_gc_kept_before_move(Oid db)
{
	List	   *leaving = NIL;
	int			n;
	AbSnapSlot *slots = ab_snaptable_all(&n);

	for (int i = 0; i < n; i++)
		if (slots[i].live && slots[i].source_db == db)
			leaving = lappend(leaving, &slots[i].id);
	ab_gc_lock_waiting();
	(void) ab_kept_sweep(db, leaving, false);
	ab_gc_unlock();
	list_free(leaving);
	pfree(slots);
}
