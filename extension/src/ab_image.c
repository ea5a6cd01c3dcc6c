/*
 * ab_image.c
 *	  Full page images under a branch's own tag (F1, F6; invariants I4 and I6).
 *
 * Any process that may insert WAL.  The record is one of our own, not XLOG_FPI: so
 * ab_walscan.c can tell it from images that others log when they change a page.
 */
#include "ab_image.h"

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"

#include "ab_shmem.h"
#include "ab_wal.h"

bool
ab_image_allowed(void)
{
	if (RecoveryInProgress())
		return false;
	/* the shutdown checkpoint forbids WAL (F3) */
	if (AmCheckpointerProcess() && ShutdownRequestPending)
		return false;
	if (!IsUnderPostmaster && proc_exit_inprogress)
		return false;
	return true;
}

XLogRecPtr
ab_image_log(RelFileNode rnode, ForkNumber fork, BlockNumber block,
			 const char *page)
{
	XLogBeginInsert();

	/*
	 * Not REGBUF_STANDARD: whether the gap in the middle of this page means
	 * anything is known to its access method only.
	 */
	XLogRegisterBlock(0, &rnode, fork, block, (char *) page, REGBUF_FORCE_IMAGE);
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_IMAGE);
}

void
ab_image_redo(XLogReaderState *record)
{
	Buffer		buffer;

	if (XLogReadBufferForRedo(record, 0, &buffer) != BLK_RESTORED)
		elog(ERROR, "image record did not contain an image");
	UnlockReleaseBuffer(buffer);
}

void
ab_image_note_promotion(void)
{
	ab_shared->unadopted_from = GetRedoRecPtr();
	ab_shared->unadopted_to = GetXLogReplayRecPtr(NULL);
}

bool
ab_image_was_skipped(XLogRecPtr inherited_lsn)
{
	return inherited_lsn > ab_shared->unadopted_from &&
		inherited_lsn <= ab_shared->unadopted_to;
}
