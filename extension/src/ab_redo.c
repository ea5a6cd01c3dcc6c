/*
 * ab_redo.c
 *	  Replaying the library's WAL records, what DROP DATABASE's record means for a
 *	  branch, and what other records mean for a damaged one.
 *
 * The startup process only.  An error here keeps the server from starting, so
 * the functions below raise for broken I/O and nothing else: a snapshot or an
 * origin that is not as expected is made anew, left out or poisoned.
 */
#include "ab_wal.h"

#include "access/heapam_xlog.h"
#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "catalog/pg_control.h"
#include "catalog/storage_xlog.h"
#include "commands/dbcommands_xlog.h"
#include "utils/relmapper.h"
#include "storage/bufmgr.h"

#include "ab_awaited.h"
#include "ab_capture.h"
#include "ab_complete.h"
#include "ab_dir.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_gather.h"
#include "ab_image.h"
#include "ab_kept.h"
#include "ab_origin.h"
#include "ab_recovery.h"
#include "ab_snapshot.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"
#include "ab_witness.h"

typedef void (*RedoFunction) (XLogReaderState *record);

static RedoFunction stock_redo[RM_MAX_BUILTIN_ID + 1];

static void
redo_branch_create(XLogReaderState *record)
{
	xl_ab_branch_create rec;

	memcpy(&rec, XLogRecGetData(record), sizeof(rec));
	ab_storage_create_redo(&rec, record->EndRecPtr);
}

static void
redo_branch_drop(XLogReaderState *record)
{
	xl_ab_branch_drop rec;

	memcpy(&rec, XLogRecGetData(record), sizeof(rec));

	/*
	 * The files go for good, so this server is not consistent again before it
	 * has replayed up to here (moves minRecoveryPoint).
	 */
	XLogFlush(record->EndRecPtr);
	ab_storage_remove_redo(&rec);
}

static void
redo_branch_detach(XLogReaderState *record)
{
	const char *data = XLogRecGetData(record);
	xl_ab_branch_detach rec;

	memcpy(&rec, data, sizeof(rec));

	/* the origin goes for good: as above */
	XLogFlush(record->EndRecPtr);
	ab_complete_detach_redo(&rec, data + sizeof(rec));
}

/* The database whose pages a record changes; InvalidOid: none. */
static Oid
changed_database(XLogReaderState *record)
{
	RelFileNode rnode;

	for (int i = 0; i <= XLogRecMaxBlockId(record); i++)
	{
		if (XLogRecGetBlockTagExtended(record, i, &rnode, NULL, NULL, NULL))
			return rnode.dbNode;
	}
	if (XLogRecGetRmid(record) == RM_SMGR_ID &&
		(XLogRecGetInfo(record) & ~XLR_INFO_MASK) == XLOG_SMGR_TRUNCATE)
		return ((xl_smgr_truncate *) XLogRecGetData(record))->rnode.dbNode;
	return InvalidOid;
}

/*
 * Is a record to be passed over, because it changes pages of a branch that is
 * damaged?  That this happened is made known for good.
 */
static bool
concerns_broken_branch(XLogReaderState *record)
{
	Oid			db = changed_database(record);

	if (db == InvalidOid || ab_branch_lookup(db) != NULL)
		return false;
	ab_branch_give_up(db);
	if (!ab_branch_is_broken(db))
		return false;
	/* nor is the result to be compared with what the primary had */
	record->record->header.xl_info &= ~XLR_CHECK_CONSISTENCY;
	return true;
}

void
ab_rm_redo(XLogReaderState *record)
{
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;

	ab_recovery_check(false);
	ab_retire_redo_rest();
	switch (info)
	{
		case XLOG_AB_BRANCH_CREATE:
			redo_branch_create(record);
			break;
		case XLOG_AB_BRANCH_DROP:
			redo_branch_drop(record);
			break;
		case XLOG_AB_BRANCH_DETACH:
			redo_branch_detach(record);
			break;
		case XLOG_AB_SNAPSHOT:
			ab_snapshot_redo(record);
			break;
		case XLOG_AB_CONFIRM:
			ab_confirm_redo(record);
			break;
		case XLOG_AB_RETIRE:
			ab_retire_redo(record);
			break;
		case XLOG_AB_BEFORE_IMAGE:
			ab_capture_redo(record);
			break;
		case XLOG_AB_IMAGE:
			if (!concerns_broken_branch(record))
				ab_image_redo(record);
			break;
		case XLOG_AB_UNKEEP:
			ab_unkeep_redo(record);
			break;
		case XLOG_AB_WITNESS:
			break;
		case XLOG_AB_GATHER:
			ab_gather_redo((const xl_ab_gather *) XLogRecGetData(record));
			break;
		default:
			elog(PANIC, "agent_branch: unknown WAL record type %u", info);
	}
	ab_witness_note_redo(record);
}

/* Runs only when there is something to replay: nothing may depend on it. */
void
ab_rm_startup(void)
{
	ab_witness_replay_begins();
	AB_FAILPOINT_NO_ERROR("redo-begins");
}

/*
 * Redo is over: a snapshot whose CONFIRM was not among the records never will be
 * usable.  Without redo the keeper does this when it starts.
 */
void
ab_rm_cleanup(void)
{
	ab_recovery_check(true);
	AB_FAILPOINT_NO_ERROR("redo-ends");
	ab_snapshot_remove_pending();
	ab_retire_redo_rest();
	AB_FAILPOINT_NO_ERROR("redo-cleaned");
	if (ArchiveRecoveryRequested)
		ab_image_note_promotion();
}

/* ---- the server's own records ---- */

/* The server warns of directories that are not there; a branch may have none here. */
static void
make_what_it_removes(const xl_dbase_drop_rec *rec)
{
	for (int i = 0; i < rec->ntablespaces && ab_origin_exists(rec->db_id); i++)
		ab_dir_make_empty(rec->db_id, rec->tablespace_ids[i]);
}

/*
 * DROP DATABASE of a branch logs the server's own record, which knows nothing
 * of origin files.
 */
static void
replay_dbase(XLogReaderState *record)
{
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;
	xl_dbase_drop_rec *rec = (xl_dbase_drop_rec *) XLogRecGetData(record);

	if (info == XLOG_DBASE_DROP)
		make_what_it_removes(rec);
	stock_redo[RM_DBASE_ID] (record);
	if (info == XLOG_DBASE_DROP)
		ab_storage_drop_origin(rec->db_id);
}

/* In a branch it may be the first that needs the directory. */
static void
replay_relmap(XLogReaderState *record)
{
	xl_relmap_update *rec = (xl_relmap_update *) XLogRecGetData(record);
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;
	bool		ours = info == XLOG_RELMAP_UPDATE && ab_dir_before_relmap_redo(rec);

	stock_redo[RM_RELMAP_ID] (record);
	if (ours)
		ab_dir_after_relmap_redo(rec);
}

/*
 * Of a branch that lacks its snapshot, or pages of that, some are missing for which there is
 * no image, because the record changes nothing that WAL protects (heap2 VISIBLE): no harm, if
 * the branch is deleted or detached before recovery is consistent; and if not it is lost.
 */
static void
forget_missing_pages(XLogReaderState *record)
{
	Oid			db = changed_database(record);

	if (db == InvalidOid ||
		(ab_branch_lookup(db) != NULL ? !ab_recovery_has_gap(db) :
		 !ab_branch_passes_for_plain(db)))
		return;
	XLogDropDatabase(db);
	record->record->header.xl_info &= ~XLR_CHECK_CONSISTENCY;
}

/*
 * Is a block that a record changed, without an image, zeros?  Of a branch that is deleted
 * further on nothing may be left, and what is no branch any more has zeros where it
 * inherited pages, until a record brings an image.
 */
static bool
leaves_zeros(XLogReaderState *record)
{
	for (int i = 0; i <= XLogRecMaxBlockId(record); i++)
	{
		RelFileNode rnode;
		ForkNumber	fork;
		BlockNumber block;
		Buffer		buffer;
		bool		zeros;

		if (!XLogRecGetBlockTagExtended(record, i, &rnode, &fork, &block, NULL) ||
			XLogRecBlockImageApply(record, i))
			continue;
		buffer = XLogReadBufferExtended(rnode, fork, block, RBM_NORMAL_NO_LOG,
										InvalidBuffer);
		if (!BufferIsValid(buffer))
			continue;
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		zeros = PageIsNew(BufferGetPage(buffer));
		UnlockReleaseBuffer(buffer);
		if (zeros)
			return true;
	}
	return false;
}

/*
 * With wal_consistency_checking: a page that is not yet whole is not compared with the
 * primary's, which would end the server.  Zeros are not: the server notes them as invalid
 * itself, and says so when it is consistent, unless they have gone with their database.
 * Nor is what VISIBLE changes in a branch, for which no image is logged: the first write of
 * that page may be torn, which the image that was logged before it, further on, mends.
 */
static void
leave_uncompared(XLogReaderState *record)
{
	if (reachedConsistency || (XLogRecGetInfo(record) & XLR_CHECK_CONSISTENCY) == 0)
		return;
	if ((XLogRecGetRmid(record) == RM_HEAP2_ID &&
		 (XLogRecGetInfo(record) & XLOG_HEAP_OPMASK) == XLOG_HEAP2_VISIBLE &&
		 ab_branch_lookup(changed_database(record)) != NULL) ||
		(ab_recovery_files_are_ahead() && leaves_zeros(record)))
		record->record->header.xl_info &= ~XLR_CHECK_CONSISTENCY;
}

/*
 * A damaged branch has lost the pages that its records are to be applied to.  They
 * are passed over, so that everything else recovers (B2).
 */
static void
replay_unless_broken(XLogReaderState *record)
{
	ab_recovery_check(false);
	ab_retire_redo_rest();
	if (concerns_broken_branch(record))
		return;
	stock_redo[XLogRecGetRmid(record)] (record);
	if (unlikely(ab_recovery_files_are_ahead()))
		forget_missing_pages(record);
	leave_uncompared(record);
}

/* Redo makes files before every block it touches; this record says that a relation is new. */
static void
replay_smgr(XLogReaderState *record)
{
	xl_smgr_create *rec = (xl_smgr_create *) XLogRecGetData(record);

	if ((XLogRecGetInfo(record) & ~XLR_INFO_MASK) == XLOG_SMGR_CREATE &&
		rec->forkNum == MAIN_FORKNUM && OidIsValid(rec->rnode.dbNode))
		ab_kept_number_given(rec->rnode, record->EndRecPtr);
	replay_unless_broken(record);
}

static void
replay_xlog(XLogReaderState *record)
{
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;

	replay_unless_broken(record);
	if (info == XLOG_BACKUP_END)
	{
		ab_awaited_backup_ends(record);
		ab_witness_backup_ends();
	}
}

static void
wrap(RmgrId rmid, RedoFunction ours)
{
	Assert(stock_redo[rmid] == NULL);
	stock_redo[rmid] = RmgrTable[rmid].rm_redo;
	RmgrTable[rmid].rm_redo = ours;
}

void
ab_redo_wrap_builtin(void)
{
	static const RmgrId page_changers[] = {
		RM_HEAP2_ID, RM_HEAP_ID, RM_BTREE_ID, RM_HASH_ID,
		RM_GIN_ID, RM_GIST_ID, RM_SEQ_ID, RM_SPGIST_ID, RM_BRIN_ID, RM_GENERIC_ID
	};

	wrap(RM_DBASE_ID, replay_dbase);
	wrap(RM_RELMAP_ID, replay_relmap);
	wrap(RM_XLOG_ID, replay_xlog);
	wrap(RM_SMGR_ID, replay_smgr);
	for (int i = 0; i < lengthof(page_changers); i++)
		wrap(page_changers[i], replay_unless_broken);
}
