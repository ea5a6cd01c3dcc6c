/*
 * ab_snaptable.c
 *	  The table of snapshots in shared memory.
 *
 * A cache of what agent_branch/snapshots and agent_branch/branches say (rule 9),
 * loaded by the postmaster and kept up to date by backends, the keeper and the
 * startup process under snap_lock, below which nothing else is done.
 *
 * Unconfirmed entries are the snapshots that living backends are taking right now,
 * or, marked "left", before-image snapshots of which recovery may still confirm some.
 * Files of an unconfirmed snapshot without an entry are left from a crash.
 */
#include "ab_snaptable.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xlogutils.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "ab_agentready.h"
#include "ab_file.h"
#include "ab_imagefile.h"
#include "ab_images.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_poisonmark.h"
#include "ab_snapshot.h"

#define MAX_RESERVE 16

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
fill_slot(AbSnapSlot *slot, AbSnapId id, Oid source_db, bool confirmed, bool live)
{
	memset(slot, 0, sizeof(*slot));
	slot->live = live;
	slot->source_db = source_db;
	slot->confirmed = confirmed;
	slot->clean_upto = id.lsn;
	slot->catalog_changes = AB_CHANGES_UNKNOWN;
	slot->id = id;
}

/*
 * Is the manifest one that a power cut has left in part?  Replay writes it anew if its
 * record is after the redo pointer.
 */
static bool
is_unknown(const AbSnapSlot *slot)
{
	return !OidIsValid(slot->source_db);
}

/* What the manifest would have said. */
static void
learn(AbSnapSlot *slot, Oid source_db, bool live)
{
	slot->source_db = source_db;
	slot->live = live;
	if (!live)
		slot->ahead = false;
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

static bool
is_poisoned(AbSnapId id, const AbManifestHeader *h, XLogRecPtr redo)
{
	char	   *path = ab_snapshot_path(id, ".poisoned");
	bool		poisoned = ab_file_exists(path) || ab_poisonmark_is_beside(id) ||
		((h->flags & AB_MANIFEST_LIVE) && ab_images_is_poisoned(h->source_db, id));

	/* before its record is replayed it needs no store yet (E5) */
	if ((h->flags & AB_MANIFEST_LIVE) && id.lsn <= redo)
		poisoned |= !ab_images_exists(h->source_db, id);

	pfree(path);
	return poisoned;
}

/*
 * A confirmed snapshot stays in the table even if it cannot be read.  An unconfirmed one
 * is of interest if it is live: it may have to be kept until recovery confirms it.  What
 * is ahead was confirmed, if at all, by a record that is ahead too (S6).
 */
static void
load_snapshot(AbSnapId id, const char *suffix, XLogRecPtr redo)
{
	bool		confirmed = strcmp(suffix, ".pending") != 0;
	AbManifestHeader h;
	AbSnapSlot *slot;

	if (find_slot(id))
		return;
	if (!(confirmed ? ab_manifest_read_header(id, &h) :
		  ab_manifest_read_pending_header(id, &h)))
		memset(&h, 0, sizeof(h));
	if (!confirmed && (h.flags & AB_MANIFEST_LIVE) == 0)
		return;					/* or torn, and nobody hangs on it yet */
	slot = free_slot();
	if (slot == NULL)
	{
		report_full(LOG);
		return;
	}
	fill_slot(slot, id, h.source_db, confirmed, (h.flags & AB_MANIFEST_LIVE) != 0);
	slot->ahead = (slot->live || is_unknown(slot)) && id.lsn > redo;
	slot->confirmed = confirmed && !slot->ahead;
	slot->left = !slot->confirmed;
	slot->poisoned = is_poisoned(id, &h, redo);
}

static void
load_snapshots(XLogRecPtr redo)
{
	static const char *const suffixes[] = {".manifest", ".pending", ".poisoned"};
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;

	while ((de = ReadDirExtended(dir, AB_SNAPSHOT_DIR, LOG)) != NULL)
	{
		AbSnapId	id;

		for (int i = 0; i < lengthof(suffixes); i++)
			if (ab_snapshot_parse_file(de->d_name, suffixes[i], &id))
				load_snapshot(id, suffixes[i], redo);
	}
	FreeDir(dir);
}

/*
 * A live snapshot whose record will be replayed, and of which a power cut may have taken
 * the manifest, the epoch's file or both (ab_latesync.c).  NULL if there is no room.
 */
static AbSnapSlot *
expect_snapshot(AbSnapId id, Oid source_db)
{
	AbSnapSlot *slot = free_slot();

	if (slot == NULL)
	{
		report_full(LOG);
		return NULL;
	}
	fill_slot(slot, id, source_db, false, true);
	slot->left = true;
	slot->ahead = true;
	return slot;
}

/* The file of its epoch is there, and says whose it is. */
static void
load_epoch(Oid db, AbSnapId id)
{
	AbSnapSlot *slot = find_slot(id);

	if (slot != NULL && !is_unknown(slot))
		return;
	if (slot != NULL)
		learn(slot, db, true);
	else if ((slot = expect_snapshot(id, db)) == NULL)
		return;
	slot->poisoned |= ab_images_is_poisoned(db, id);
}

static void
load_epochs(XLogRecPtr redo)
{
	int			ndbs;
	Oid		   *dbs = ab_images_databases(&ndbs);

	for (int i = 0; i < ndbs; i++)
	{
		int			n;
		AbSnapId   *ids = ab_imagefile_list(dbs[i], &n);

		for (int k = 0; k < n; k++)
			if (ids[k].lsn > redo)
				load_epoch(dbs[i], ids[k]);
		pfree(ids);
	}
	pfree(dbs);
}

/* A damaged origin must not keep the server from starting (B2). */
static void
load_branch(const AbOrigins *origins, int i, XLogRecPtr redo)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	AbOriginHeader header;
	AbSnapSlot *slot;
	volatile bool there = false;

	PG_TRY();
	{
		there = ab_origins_read(origins, i, &header);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcontext);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();

	slot = there ? find_slot(header.snapshot) : NULL;

	/* whose it is, replay will tell */
	if (there && slot == NULL && header.snapshot.lsn > redo)
		slot = expect_snapshot(header.snapshot, InvalidOid);
	if (slot != NULL)
	{
		slot->nbranches++;
		slot->lent |= slot->source_db != header.parent_db;
	}
}

void
ab_snaptable_load(XLogRecPtr redo)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch load",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(cxt);
	AbOrigins  *origins;

	load_snapshots(redo);
	load_epochs(redo);
	origins = ab_origin_all();
	if (origins->pack.problem)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is damaged: %s", AB_PACK_FILE, origins->pack.problem)));
	for (int i = 0; i < origins->n; i++)
		load_branch(origins, i, redo);
	pg_atomic_write_u32(&ab_shared->ungathered, origins->nfiles);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(cxt);
}

/* ---- changing ---- */

/* Not the last few: several may be taken side by side, each of which has asked before. */
bool
ab_snaptable_is_scarce(void)
{
	int			reserve = Min(ab_shared->nsnapslots / 8, MAX_RESERVE);
	int			nfree = 0;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	for (int i = 0; i < ab_shared->nsnapslots && nfree <= reserve; i++)
		if (!AbSnapIdIsValid(ab_shared->snap[i].id))
			nfree++;
	LWLockRelease(ab_shared->snap_lock);
	return nfree <= reserve;
}

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
ab_snaptable_add(AbSnapId id, Oid source_db, bool confirmed, bool live)
{
	bool		added = true;
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	slot = find_slot(id);
	if (slot != NULL)
	{
		if (is_unknown(slot))
			learn(slot, source_db, live);
	}
	else
	{
		slot = free_slot();
		if (slot)
		{
			fill_slot(slot, id, source_db, confirmed, live);

			/* whoever takes one has the gate closed: all that committed has counted */
			if (!AmStartupProcess())
				slot->catalog_changes = ab_catalog_changes(source_db);
		}
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
	{
		slot->confirmed = true;
		slot->left = false;
	}
	LWLockRelease(ab_shared->snap_lock);
}

void
ab_snaptable_reached(AbSnapId id, bool poisoned)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL)
	{
		slot->ahead = false;
		slot->poisoned |= poisoned;
		slot->left = !slot->confirmed;
	}
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
ab_snaptable_lend(AbSnapId id, Oid parent_db)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL)
		slot->lent |= slot->source_db != parent_db;
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

void
ab_snaptable_outdated(AbSnapId id)
{
	AbSnapSlot *slot;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	if ((slot = find_slot(id)) != NULL)
		slot->outdated = true;
	LWLockRelease(ab_shared->snap_lock);
}

/* ---- asking ---- */

bool
ab_snaptable_is_poisoned(AbSnapId id)
{
	AbSnapSlot	slot;
	char	   *path;
	bool		poisoned;

	if (ab_snaptable_get(id, &slot) && slot.poisoned)
		return true;
	path = ab_snapshot_path(id, ".poisoned");
	poisoned = ab_file_exists(path);
	pfree(path);
	return poisoned;
}

bool
ab_snaptable_has_live(Oid db)
{
	bool		found = false;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	for (int i = 0; i < ab_shared->nsnapslots && !found; i++)
		found = AbSnapIdIsValid(ab_shared->snap[i].id) &&
			ab_shared->snap[i].live && ab_shared->snap[i].source_db == db;
	LWLockRelease(ab_shared->snap_lock);
	return found;
}

/* The newest of the sound live snapshots of db that begin before a position. */
bool
ab_snaptable_newest_live(Oid db, XLogRecPtr before, AbSnapId *id)
{
	bool		found = false;

	for (int i = 0; i < ab_shared->nsnapslots; i++)
	{
		const AbSnapSlot *slot = &ab_shared->snap[i];

		if (AbSnapIdIsValid(slot->id) && slot->live && !slot->ahead && !slot->poisoned &&
			slot->source_db == db && slot->id.lsn < before &&
			(!found || slot->id.lsn > id->lsn))
		{
			*id = slot->id;
			found = true;
		}
	}
	return found;
}

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

		if (AbSnapIdIsValid(slot->id) && slot->confirmed && !slot->ahead &&
			!slot->poisoned && slot->source_db == source_db &&
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
