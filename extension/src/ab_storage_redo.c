/*
 * ab_storage_redo.c
 *	  The files of branch databases in recovery: replay of BRANCH_CREATE and
 *	  BRANCH_DROP, and repair after a crash.
 *
 * The startup process; repair in the postmaster before it.  Files may come from the
 * future: a later incarnation of the number, or a snapshot already retired.  Each
 * function leaves what its record says and may be repeated.
 */
#include "ab_storage.h"

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "catalog/pg_database.h"
#include "replication/slot.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/md.h"
#include "storage/procsignal.h"
#include "storage/smgr.h"
#include "storage/standby.h"
#include "utils/memutils.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_snaptable.h"
#include "ab_storagefiles.h"

/* ---- manifests that may not be there ---- */

/*
 * The manifest, or NULL with *missing saying whether there is none at all (as
 * opposed to one that is damaged or poisoned).
 */
static AbManifest *
try_manifest(AbSnapId snapshot, bool *missing)
{
	MemoryContext cxt = CurrentMemoryContext;
	AbManifest *volatile m = NULL;

	*missing = false;
	PG_TRY();
	{
		m = ab_manifest_acquire(snapshot);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(cxt);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_UNDEFINED_FILE &&
			edata->sqlerrcode != ERRCODE_DATA_CORRUPTED)
			PG_RE_THROW();
		FlushErrorState();
		*missing = edata->sqlerrcode == ERRCODE_UNDEFINED_FILE;
		ereport(LOG,
				(errmsg("a branch's snapshot cannot be read: %s", edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	return m;
}

/* Unlogged relations; a layer that cannot give their init forks is not fatal. */
static void
try_make_unlogged(Oid db, const AbManifest *m)
{
	MemoryContext cxt = CurrentMemoryContext;

	PG_TRY();
	{
		ab_storage_make_unlogged(db, m, true);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(cxt);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_UNDEFINED_FILE &&
			edata->sqlerrcode != ERRCODE_DATA_CORRUPTED)
			PG_RE_THROW();
		FlushErrorState();
		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg("could not make the unlogged relations of branch %u: %s",
						db, edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
}

/*
 * pg_filenode.map for a branch whose snapshot must not be read, or not any more:
 * without it a session of the branch would not even come to hear of that.  It is in the
 * manifest, and if replay found none, behind the reason in the mark.
 */
static void
mend_relmap_of_unreadable(Oid db, Oid spc, AbSnapId snapshot)
{
	char	   *manifest = ab_snapshot_path(snapshot, ".manifest");
	char	   *poisoned = ab_snapshot_path(snapshot, ".poisoned");
	char	   *file;
	size_t		len;
	AbManifest	m;

	if ((file = ab_file_read(manifest, &len)) != NULL &&
		ab_manifest_check(file, len, &m) == NULL)
		ab_storage_write_relmap(db, spc, m.relmap);
	else if ((file = ab_file_read(poisoned, &len)) != NULL && len > AB_RELMAP_SIZE &&
			 file[len - AB_RELMAP_SIZE - 1] == '\0')
		ab_storage_write_relmap(db, spc, file + len - AB_RELMAP_SIZE);
	if (file != NULL)
		pfree(file);
	pfree(manifest);
	pfree(poisoned);
}

/* Directory, PG_VERSION and pg_filenode.map, where not whole. */
static void
mend_small_files(Oid db, Oid spc, AbSnapId snapshot, const AbManifest *m)
{
	ab_storage_make_dir(db, spc, true);
	if (!ab_storage_version_sound(db, spc))
		ab_storage_write_version(db, spc);
	if (ab_storage_relmap_sound(db, spc))
		return;
	if (m != NULL)
		ab_storage_write_relmap(db, spc, m->relmap);
	else
		mend_relmap_of_unreadable(db, spc, snapshot);
}

/* ---- replay ---- */

/* Everything of that number, as replay of DROP DATABASE does it (M7). */
static void
wipe(Oid db)
{
	DropDatabaseBuffers(db);
	ForgetDatabaseSyncRequests(db);
	AB_FAILPOINT_NO_ERROR("redo-wipe");
	XLogDropDatabase(db);
	WaitForProcSignalBarrier(EmitProcSignalBarrier(PROCSIGNAL_BARRIER_SMGRRELEASE));
	AB_FAILPOINT_NO_ERROR("redo-wipe-directories");
	if (ab_storage_remove_dirs(db))
		ab_storage_drop_origin(db);
}

static void
create_origin(const xl_ab_branch_create *rec, AbSnapId incarnation)
{
	AB_FAILPOINT_NO_ERROR("redo-create-origin");
	ab_storage_write_origin(rec, incarnation, true);

	/* the prefetcher looks ahead: sizes cached before this record are wrong */
	smgrcloseall();
}

void
ab_storage_create_redo(const xl_ab_branch_create *rec, XLogRecPtr end)
{
	AbSnapId	incarnation = ab_snapid_make(rec->tli, end);
	AbOriginHeader old;
	AbManifest *m;
	bool		missing;
	bool		same;

	same = ab_storage_read_origin(rec->db, &old) &&
		AbSnapIdEquals(old.incarnation, incarnation);
	if (!same && ab_storage_exists(rec->db))
		wipe(rec->db);

	m = try_manifest(rec->snapshot, &missing);
	mend_small_files(rec->db, rec->spc, rec->snapshot, m);
	if (!same)
	{
		if (m != NULL)
			try_make_unlogged(rec->db, m);

		/*
		 * Not yet consistent and the manifest is gone: the snapshot was retired
		 * further on, hence this branch dropped before that.  Until then replay
		 * writes its pages as a plain database's, and the drop removes them; with
		 * an origin nothing of it could be opened.
		 */
		if (m != NULL || !missing || reachedConsistency)
			create_origin(rec, incarnation);
	}
	if (m != NULL)
		ab_manifest_release(m);
}

void
ab_storage_remove_redo(const xl_ab_branch_drop *rec)
{
	AbOriginHeader header;

	/* a later incarnation of the number stays */
	if (AbSnapIdIsValid(rec->incarnation) &&
		ab_storage_read_origin(rec->db, &header) &&
		!AbSnapIdEquals(header.incarnation, rec->incarnation))
		return;

	/* as dbase_redo does: nobody may connect again while we look */
	if (InHotStandby)
	{
		LockSharedObjectForSession(DatabaseRelationId, rec->db, 0, AccessExclusiveLock);
		ResolveRecoveryConflictWithDatabase(rec->db);
	}
	ReplicationSlotsDropDBSlots(rec->db);
	AB_FAILPOINT_NO_ERROR("redo-remove");
	wipe(rec->db);
	if (InHotStandby)
		UnlockSharedObjectForSession(DatabaseRelationId, rec->db, 0, AccessExclusiveLock);
}

/* ---- repair ---- */

static void
repair(Oid db)
{
	AbOriginHeader header;
	AbManifest *m = NULL;
	bool		missing;

	if (!ab_storage_read_origin(db, &header))
		return;
	if (ab_storage_version_sound(db, header.spc) &&
		ab_storage_relmap_sound(db, header.spc))
		return;

	if (!ab_storage_relmap_sound(db, header.spc))
	{
		m = try_manifest(header.snapshot, &missing);
		if (m == NULL)
			ereport(LOG,
					(errmsg("cannot repair branch database %u", db),
					 errdetail("Its relation map is incomplete and its snapshot cannot be read.")));
	}
	mend_small_files(db, header.spc, header.snapshot, m);
	if (m != NULL)
		ab_manifest_release(m);
}

/*
 * Creations that a crash interrupted before their origin was durable: nothing of
 * them can have been committed.  If their record reached WAL, redo makes them anew
 * and the sweep finds them.
 */
static void
remove_unfinished(void)
{
	ListCell   *lc;

	foreach(lc, ab_storage_marked())
	{
		Oid			db = lfirst_oid(lc);
		char	   *origin = ab_origin_path(db);

		if (ab_file_exists(origin) || ab_storage_remove_dirs(db))
			ab_storage_unmark(db);
		pfree(origin);
	}
}

void
ab_storage_repair_all(void)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch repair",
											  ALLOCSET_SMALL_SIZES);
	int			n;
	Oid		   *dbs;

	AB_FAILPOINT_NO_ERROR("start-repair");
	remove_unfinished();
	dbs = ab_origin_list(&n);
	for (int i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		repair(dbs[i]);
		MemoryContextSwitchTo(old);
		MemoryContextReset(cxt);
	}
	MemoryContextDelete(cxt);
	pfree(dbs);
}
