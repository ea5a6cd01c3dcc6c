/*
 * ab_retire.c
 *	  Removing snapshots, and giving back what was kept for them.
 *
 * Backends and the keeper; the removal of leftovers also runs in the postmaster
 * and the startup process.  Removal follows the WAL record that orders it, so after a
 * crash redo finishes it.  What a before-image snapshot held is given back afterwards
 * and can be any time: what is still needed is worked out from the snapshots that
 * live (README.before_images).
 */
#include "ab_snapshot.h"

#include <unistd.h>

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_images.h"
#include "ab_initfile.h"
#include "ab_kept.h"
#include "ab_layer.h"
#include "ab_poisonmark.h"
#include "ab_snaptable.h"
#include "ab_wal.h"

/* ---- files ---- */

static void
remove_file(AbSnapId id, const char *suffix)
{
	char	   *path = ab_snapshot_path(id, suffix);

	(void) ab_file_remove_durably(path);
	pfree(path);
}

Oid
ab_snapshot_live_source(AbSnapId id)
{
	AbManifestHeader h;
	AbSnapSlot	slot;

	if (ab_snaptable_get(id, &slot))
		return slot.live ? slot.source_db : InvalidOid;
	if (ab_manifest_read_header(id, &h) || ab_manifest_read_pending_header(id, &h))
		return h.flags & AB_MANIFEST_LIVE ? h.source_db : InvalidOid;
	return InvalidOid;
}

/* From now on nothing is saved for it. */
static void
end_epoch(Oid db, AbSnapId id)
{
	ab_guard_close(db);
	ab_snaptable_remove(id);
	ab_epoch_recompute(db);
	ab_guard_open(db);
}

/* The manifest goes first: nothing must name a layer that is not there (S4). */
void
ab_snapshot_remove_files(AbSnapId id, uint32 what)
{
	Oid			live_db = what & AB_RETIRE_MANIFEST ? ab_snapshot_live_source(id) : InvalidOid;

	if (OidIsValid(live_db))
		end_epoch(live_db, id);
	AB_FAILPOINT_NO_ERROR("retire-epoch-ended");
	if (what & AB_RETIRE_MANIFEST)
	{
		remove_file(id, ".manifest");
		remove_file(id, ".pending");
		remove_file(id, ".poisoned");
		ab_poisonmark_remove_beside(id);
		ab_initfile_drop(id);
	}
	AB_FAILPOINT_NO_ERROR("retire-manifest-removed");
	if ((what & AB_RETIRE_PAGES) && !OidIsValid(live_db))
		ab_layer_remove(id);
	if (what & AB_RETIRE_MANIFEST)
		ab_snaptable_remove(id);
}

void
ab_snapshot_retire(AbSnapId id, uint32 what)
{
	XLogFlush(ab_wal_retire(id, what));
	AB_FAILPOINT("retire-logged");
	ab_snapshot_remove_files(id, what);
}

/* ---- what was kept for them ---- */

static int
compare_ids(const void *a, const void *b)
{
	const AbSnapId *x = a;
	const AbSnapId *y = b;

	return x->lsn < y->lsn ? -1 : x->lsn > y->lsn;
}

/*
 * Snapshots of db that live or may still come to live in recovery, oldest first, and
 * a position: snapshots that begin while the result is used are behind it.
 */
static AbSnapId *
living_snapshots(Oid db, List *leaving, int *n, XLogRecPtr *horizon)
{
	AbSnapId   *living;
	AbSnapSlot *slots;
	int			nslots;

	ab_guard_enter(db);
	*horizon = RecoveryInProgress() ? GetXLogReplayRecPtr(NULL) : GetXLogInsertRecPtr();
	slots = ab_snaptable_all(&nslots);
	ab_guard_leave(db);

	living = palloc(sizeof(AbSnapId) * (nslots + 1));
	*n = 0;
	for (int i = 0; i < nslots; i++)
		if (slots[i].live && slots[i].source_db == db &&
			!ab_snapid_in(leaving, slots[i].id))
			living[(*n)++] = slots[i].id;
	qsort(living, *n, sizeof(AbSnapId), compare_ids);
	pfree(slots);
	return living;
}

/*
 * Does nothing in the store of db count any more?  Its guard is closed.  A relation may have been
 * noted as kept since these were looked at, for a snapshot that was given up: the next
 * time is for that.
 */
static bool
store_is_over(Oid db)
{
	int			n;

	if (ab_snaptable_has_live(db))
		return false;
	pfree(ab_kept_relations(db, &n));
	return n == 0;
}

int64
ab_snapshot_reclaim(Oid db, List *leaving, bool dry_run)
{
	XLogRecPtr	horizon;
	int			n;
	AbSnapId   *living = living_snapshots(db, leaving, &n, &horizon);
	int64		bytes = ab_kept_sweep(db, leaving, dry_run);

	if (n > 0 || dry_run)
		bytes += ab_images_collect(db, living, n, horizon, dry_run);
	else
	{
		char		aside[MAXPGPATH];
		bool		set_aside;

		AB_FAILPOINT("reclaim-kept-swept");

		/* a snapshot that begins now must find its store, or nothing */
		ab_guard_close(db);
		set_aside = store_is_over(db) && ab_images_set_aside(db, aside);
		ab_guard_open(db);
		if (set_aside)
			bytes += ab_images_remove_aside(aside);
	}
	pfree(living);
	return bytes;
}

/* ---- leftovers ---- */

static void
remove_tmp_in(const char *dirname)
{
	DIR		   *dir = AllocateDir(dirname);
	struct dirent *de;

	while ((de = ReadDirExtended(dir, dirname, LOG)) != NULL)
	{
		char		path[MAXPGPATH];

		if (strncmp(de->d_name, AB_TMP_PREFIX, strlen(AB_TMP_PREFIX)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dirname, de->d_name);
		if (unlink(path) < 0)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	FreeDir(dir);
}

/* Stores of before-images that a crash has kept from being removed whole. */
static void
remove_stores_aside(void)
{
	DIR		   *dir = AllocateDir(AB_IMAGE_DIR);
	struct dirent *de;

	while ((de = ReadDirExtended(dir, AB_IMAGE_DIR, LOG)) != NULL)
	{
		char		path[MAXPGPATH];

		if (strncmp(de->d_name, AB_TMP_PREFIX, strlen(AB_TMP_PREFIX)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", AB_IMAGE_DIR, de->d_name);
		(void) ab_images_remove_aside(path);
	}
	FreeDir(dir);
}

void
ab_snapshot_remove_tmp(void)
{
	remove_tmp_in(AB_DIR);
	remove_tmp_in(AB_BRANCH_DIR);
	remove_tmp_in(AB_SNAPSHOT_DIR);
	remove_stores_aside();
}

/*
 * Files of snapshots that nothing knows of, and marks that poison one without anything
 * having hung on it.  A living backend's snapshot is in the table before its files get
 * their names.
 */
static void
remove_unknown(const char *dirname)
{
	DIR		   *dir = AllocateDir(dirname);
	struct dirent *de;

	while ((de = ReadDir(dir, dirname)) != NULL)
	{
		AbSnapSlot	slot;
		AbSnapId	id;

		if ((ab_snapshot_parse_file(de->d_name, ".pending", &id) ||
			 ab_snapshot_parse_file(de->d_name, ".poisoned", &id) ||
			 ab_poisonmark_parse_beside(de->d_name, &id)) &&
			!ab_snaptable_get(id, &slot))
			ab_snapshot_remove_files(id, AB_RETIRE_MANIFEST | AB_RETIRE_PAGES);
	}
	FreeDir(dir);
}

/* Snapshots that were never confirmed, or of a future that recovery has not come to. */
static void
remove_left(void)
{
	int			n;
	AbSnapSlot *slots = ab_snaptable_all(&n);

	for (int i = 0; i < n; i++)
		if (slots[i].left || slots[i].ahead)
			ab_snapshot_remove_files(slots[i].id, AB_RETIRE_MANIFEST | AB_RETIRE_PAGES);
	pfree(slots);
}

void
ab_snapshot_remove_pending(void)
{
	remove_unknown(AB_SNAPSHOT_DIR);
	remove_unknown(".");		/* marks beside agent_branch */
	remove_left();
}
