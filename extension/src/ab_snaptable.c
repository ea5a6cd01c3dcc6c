/*
 * ab_snaptable.c
 *	  The table of snapshots in shared memory.
 *
 * A cache of what agent_branch/snapshots and agent_branch/branches say (rule 9),
 * loaded by the postmaster and kept up to date by backends, the keeper and the
 * startup process under snap_lock, below which nothing else is done.
 *
 * Unconfirmed entries are the snapshots that living backends are taking right now;
 * files of an unconfirmed snapshot without an entry are left from a crash.
 */
#include "ab_snaptable.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xlogutils.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "ab_file.h"
#include "ab_origin.h"
#include "ab_snapshot.h"

static AbSnapSlot *
find_slot(AbSnapId id)
{
	for (int i = 0; i < ab_shared->nsnapslots; i++)
		if (AbSnapIdIsValid(ab_shared->snap[i].id) &&
			AbSnapIdEquals(ab_shared->snap[i].id, id))
			return &ab_shared->snap[i];
	return NULL;
}

static AbSnapSlot *
free_slot(void)
{
	for (int i = 0; i < ab_shared->nsnapslots; i++)
		if (!AbSnapIdIsValid(ab_shared->snap[i].id))
			return &ab_shared->snap[i];
	return NULL;
}

static void
fill_slot(AbSnapSlot *slot, AbSnapId id, Oid source_db, bool confirmed)
{
	slot->source_db = source_db;
	slot->confirmed = confirmed;
	slot->nbranches = 0;
	slot->clean_upto = id.lsn;
	slot->id = id;
}

static void
report_full(int elevel)
{
	ereport(elevel,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("too many snapshots"),
			 errdetail("All %d slots of agent_branch.max_snapshots are taken.",
					   ab_shared->nsnapslots),
			 errhint("Delete branches and call branch.gc(), or raise agent_branch.max_snapshots and restart the server.")));
}

/* ---- loading ---- */

/* A confirmed snapshot; it stays in the table even if it cannot be read. */
static void
load_snapshot(AbSnapId id)
{
	AbManifestHeader h;
	AbSnapSlot *slot;

	if (find_slot(id))
		return;
	slot = free_slot();
	if (slot == NULL)
	{
		report_full(LOG);
		return;
	}
	if (!ab_manifest_read_header(id, &h))
		h.source_db = InvalidOid;
	fill_slot(slot, id, h.source_db, true);
}

static void
load_snapshots(void)
{
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;

	while ((de = ReadDirExtended(dir, AB_SNAPSHOT_DIR, LOG)) != NULL)
	{
		AbSnapId	id;

		if (ab_snapshot_parse_file(de->d_name, ".manifest", &id) ||
			ab_snapshot_parse_file(de->d_name, ".poisoned", &id))
			load_snapshot(id);
	}
	FreeDir(dir);
}

/* A damaged origin must not keep the server from starting (B2). */
static void
load_branch(Oid db)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	AbOriginHeader header;
	AbSnapSlot *slot;
	bool		there = false;

	PG_TRY();
	{
		there = ab_origin_read(db, &header);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcontext);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();

	if (there && (slot = find_slot(header.snapshot)) != NULL)
		slot->nbranches++;
}

void
ab_snaptable_load(void)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch load",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(cxt);
	Oid		   *dbs;
	int			n;

	load_snapshots();
	dbs = ab_origin_list(&n);
	for (int i = 0; i < n; i++)
		load_branch(dbs[i]);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(cxt);
}

/* ---- changing ---- */

void
ab_snaptable_check_room(void)
{
	bool		room;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	room = free_slot() != NULL;
	LWLockRelease(ab_shared->snap_lock);
	if (!room)
		report_full(ERROR);
}

void
ab_snaptable_add(AbSnapId id, Oid source_db, bool confirmed)
{
	bool		added = true;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if (find_slot(id) == NULL)
	{
		AbSnapSlot *slot = free_slot();

		if (slot)
			fill_slot(slot, id, source_db, confirmed);
		else
			added = false;
	}
	LWLockRelease(ab_shared->snap_lock);
	if (!added)
		report_full(InRecovery ? WARNING : ERROR);
}

void
ab_snaptable_confirm(AbSnapId id)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL)
		slot->confirmed = true;
	LWLockRelease(ab_shared->snap_lock);
}

void
ab_snaptable_remove(AbSnapId id)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL)
		memset(slot, 0, sizeof(*slot));
	LWLockRelease(ab_shared->snap_lock);
}

void
ab_snaptable_ref(AbSnapId id, int delta)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL &&
		(delta > 0 || slot->nbranches >= (uint32) -delta))
		slot->nbranches += delta;
	LWLockRelease(ab_shared->snap_lock);
}

void
ab_snaptable_clean(AbSnapId id, XLogRecPtr upto)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL && slot->clean_upto < upto)
		slot->clean_upto = upto;
	LWLockRelease(ab_shared->snap_lock);
}

/* ---- asking ---- */

/* Positions of different timelines can overlap: the timeline counts first. */
static bool
is_newer(AbSnapId a, AbSnapId b)
{
	return a.tli != b.tli ? a.tli > b.tli : a.lsn > b.lsn;
}

bool
ab_snaptable_newest(Oid source_db, AbSnapSlot *out)
{
	const AbSnapSlot *best = NULL;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	for (int i = 0; i < ab_shared->nsnapslots; i++)
	{
		const AbSnapSlot *slot = &ab_shared->snap[i];

		if (AbSnapIdIsValid(slot->id) && slot->confirmed &&
			slot->source_db == source_db &&
			(best == NULL || is_newer(slot->id, best->id)))
			best = slot;
	}
	if (best)
		*out = *best;
	LWLockRelease(ab_shared->snap_lock);
	return best != NULL;
}

bool
ab_snaptable_get(AbSnapId id, AbSnapSlot *out)
{
	const AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	slot = find_slot(id);
	if (slot)
		*out = *slot;
	LWLockRelease(ab_shared->snap_lock);
	return slot != NULL;
}

AbSnapSlot *
ab_snaptable_all(int *n)
{
	AbSnapSlot *all = palloc(sizeof(AbSnapSlot) * ab_shared->nsnapslots);

	*n = 0;
	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	for (int i = 0; i < ab_shared->nsnapslots; i++)
		if (AbSnapIdIsValid(ab_shared->snap[i].id))
			all[(*n)++] = ab_shared->snap[i];
	LWLockRelease(ab_shared->snap_lock);
	return all;
}
