/*
 * ab_redo.c
 *	  Replaying the library's WAL records, and what DROP DATABASE's record means
 *	  for a branch.
 *
 * The startup process only.  An error here keeps the server from starting, so
 * the functions below raise for broken I/O and nothing else: a snapshot or an
 * origin that is not as expected is made anew, left out or poisoned.
 */
#include "ab_wal.h"

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "commands/dbcommands_xlog.h"

#include "ab_snapshot.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"

static void (*stock_dbase_redo) (XLogReaderState *record) = NULL;

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

void
ab_rm_redo(XLogReaderState *record)
{
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;

	switch (info)
	{
		case XLOG_AB_BRANCH_CREATE:
			redo_branch_create(record);
			break;
		case XLOG_AB_BRANCH_DROP:
			redo_branch_drop(record);
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
		default:
			elog(PANIC, "agent_branch: unknown WAL record type %u", info);
	}
}

/* Runs only when there is something to replay: nothing may depend on it. */
void
ab_rm_startup(void)
{
}

/*
 * Redo is over: a snapshot whose CONFIRM was not among the records never will be
 * usable.  Without redo the keeper does this when it starts.
 */
void
ab_rm_cleanup(void)
{
	ab_snapshot_remove_pending();
}

/* ---- XLOG_DBASE_DROP ---- */

/*
 * DROP DATABASE of a branch logs the server's own record, which knows nothing
 * of origin files.
 */
static void
replay_dbase(XLogReaderState *record)
{
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;

	stock_dbase_redo(record);
	if (info == XLOG_DBASE_DROP)
	{
		xl_dbase_drop_rec *rec = (xl_dbase_drop_rec *) XLogRecGetData(record);

		ab_storage_drop_origin(rec->db_id);
	}
}

void
ab_redo_wrap_dbase(void)
{
	Assert(stock_dbase_redo == NULL);
	stock_dbase_redo = RmgrTable[RM_DBASE_ID].rm_redo;
	RmgrTable[RM_DBASE_ID].rm_redo = replay_dbase;
}
