/*
 * ab_storage_redo.c
 *	  The files of branch databases in recovery: replay of BRANCH_CREATE and
 *	  BRANCH_DROP, and what a crash left of creations.
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

#include "ab_caught.h"
#include "ab_dir.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_recovery.h"
#include "ab_shmem.h"
#include "ab_snaptable.h"
#include "ab_storagefiles.h"

/* Unlogged relations; a layer that cannot give their init forks is not fatal. */
static void
try_make_unlogged(Oid db, const AbManifest *m)
{
	AbBeforeTry before = ab_before_try();

	PG_TRY();
	{
		ab_storage_make_unlogged(db, m, true);
	}
	PG_CATCH();
	{
		ErrorData  *edata = ab_caught_damage(&before);

		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg("could not make the unlogged relations of branch %u: %s",
						db, edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
}

/* Only a branch with unlogged relations has a directory from the beginning. */
static void
make_unlogged(const xl_ab_branch_create *rec, const AbManifest *m)
{
	if (!ab_storage_has_unlogged(m))
		return;
	ab_dir_make(rec->db, rec->spc, rec->snapshot, m->relmap);
	try_make_unlogged(rec->db, m);
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

/*
 * A backup may have copied the directory, or looked for it, before what its creation made, and
 * the origin after that.  Init forks never change; one of a relation that was dropped since is
 * dropped again.
 */
static void
complete_unlogged(const xl_ab_branch_create *rec)
{
	bool		missing;
	AbManifest *m = ab_storage_try_manifest(rec->snapshot, &missing);

	if (m == NULL)
		return;
	make_unlogged(rec, m);
	ab_manifest_release(m);
}

void
ab_storage_create_redo(const xl_ab_branch_create *rec, XLogRecPtr end)
{
	AbSnapId	incarnation = ab_snapid_make(rec->tli, end);
	AbOriginHeader old;
	AbManifest *m;
	bool		missing;

	/*
	 * Then what it had besides is there as well, or ab_dir.c makes it.  But the prefetcher
	 * may have looked before the snapshot's record: a manifest that had not come through a
	 * power cut, as the origin had, made a broken branch of it, whose changes are dropped.
	 */
	if (ab_storage_read_origin(rec->db, &old) &&
		AbSnapIdEquals(old.incarnation, incarnation))
	{
		if (ab_recovery_in_backup())
			complete_unlogged(rec);
		ab_generation_bump(rec->db);
		smgrcloseall();
		return;
	}
	if (ab_storage_exists(rec->db))
		wipe(rec->db);

	m = ab_storage_try_manifest(rec->snapshot, &missing);
	if (m != NULL)
		make_unlogged(rec, m);

	/*
	 * Not yet consistent and the manifest is gone: the snapshot was retired
	 * further on, hence this branch dropped before that.  Until then replay
	 * writes its pages as a plain database's, and the drop removes them; with
	 * an origin nothing of it could be opened.
	 */
	if (m != NULL || !missing || reachedConsistency)
		create_origin(rec, incarnation);
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

		if (ab_origin_exists(db) || ab_storage_remove_dirs(db))
			ab_storage_unmark(db);
	}
}

void
ab_storage_repair_all(void)
{
	AB_FAILPOINT_NO_ERROR("start-repair");
	remove_unfinished();
	ab_dir_repair_all();
}
