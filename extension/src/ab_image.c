/*
 * ab_image.c
 *	  Full page images under a branch's own tag (F1, F6; invariants I4 and I6).
 *
 * Any process that may insert WAL.  The record is the server's own XLOG_FPI, so
 * a standby and crash recovery replay it like any image.
 */
#include "ab_image.h"

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"

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
	return XLogInsert(RM_XLOG_ID, XLOG_FPI);
}
