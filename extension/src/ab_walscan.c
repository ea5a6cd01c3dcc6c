/*
 * ab_walscan.c
 *	  What WAL says about a database: is a snapshot of it still its contents, and
 *	  did anything change while a snapshot was being taken (rule 27, F2)?
 *
 * Backends, and the postmaster before the server starts; no locks.  The segments are read by our own page reader: the
 * server's raises errors when a segment has been removed, which for us is an
 * ordinary answer.
 *
 * A false "changed" only costs time, so every kind of record that is not known
 * here to be harmless counts as a change.
 */
#include "ab_walscan.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/heapam_xlog.h"
#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "catalog/pg_control.h"
#include "catalog/storage_xlog.h"
#include "commands/dbcommands_xlog.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/relmapper.h"

#include "ab_wal.h"

typedef enum Meaning
{
	MEANS_NOTHING,				/* does not concern the database */
	MEANS_TOUCH,				/* changes a page, but not what it says */
	MEANS_SEQUENCE,				/* nextval */
	MEANS_CHANGE
} Meaning;

/* ---- reading ---- */

typedef struct WalFile
{
	TimeLineID	tli;
	XLogRecPtr	limit;			/* read nothing beyond */
	XLogSegNo	segno;
	int			fd;				/* -1: none open */
} WalFile;

static void
close_segment(WalFile *w)
{
	if (w->fd >= 0)
		CloseTransientFile(w->fd);
	w->fd = -1;
}

/* XLogPageReadCB.  A segment that is gone is the end: -1. */
static int
read_page(XLogReaderState *state, XLogRecPtr page, int wanted,
		  XLogRecPtr record, char *buf)
{
	WalFile    *w = state->private_data;
	XLogSegNo	segno;

	if (page + wanted > w->limit)
		return -1;

	XLByteToSeg(page, segno, wal_segment_size);
	if (w->fd < 0 || w->segno != segno)
	{
		char		path[MAXPGPATH];

		CHECK_FOR_INTERRUPTS();
		close_segment(w);
		XLogFilePath(path, w->tli, segno, wal_segment_size);
		w->fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
		if (w->fd < 0)
			return -1;
		w->segno = segno;
	}
	state->seg.ws_tli = w->tli;
	if (pg_pread(w->fd, buf, XLOG_BLCKSZ,
				 (off_t) XLogSegmentOffset(page, wal_segment_size)) != XLOG_BLCKSZ)
		return -1;
	return (int) Min((XLogRecPtr) XLOG_BLCKSZ, w->limit - page);
}

/*
 * The insert position of an idle server may lie behind the header of a page of
 * which nothing was written yet; such a position cannot be flushed.
 */
static XLogRecPtr
end_of_records(XLogRecPtr pos)
{
	uint32		in_page = pos % XLOG_BLCKSZ;

	if (XLogSegmentOffset(pos, wal_segment_size) == SizeOfXLogLongPHD)
		return pos - SizeOfXLogLongPHD;
	if (in_page == SizeOfXLogShortPHD &&
		XLogSegmentOffset(pos, wal_segment_size) >= XLOG_BLCKSZ)
		return pos - SizeOfXLogShortPHD;
	return pos;
}

/* The reader, though, wants a position behind the header. */
static XLogRecPtr
start_of_record(XLogRecPtr pos)
{
	if (XLogSegmentOffset(pos, wal_segment_size) == 0)
		return pos + SizeOfXLogLongPHD;
	if (pos % XLOG_BLCKSZ == 0)
		return pos + SizeOfXLogShortPHD;
	return pos;
}

/* ---- understanding ---- */

static bool
has_block_of(XLogReaderState *record, Oid db)
{
	for (int i = 0; i <= XLogRecMaxBlockId(record); i++)
	{
		RelFileNode rnode;

		if (XLogRecGetBlockTagExtended(record, i, &rnode, NULL, NULL, NULL) &&
			rnode.dbNode == db)
			return true;
	}
	return false;
}

static bool
names_file_of(const RelFileNode *nodes, int n, Oid db)
{
	for (int i = 0; i < n; i++)
		if (nodes[i].dbNode == db)
			return true;
	return false;
}

/*
 * Whatever a transaction changed has records of its own.  Its end changes nothing
 * in the files, except that it removes some; whether it committed is known to
 * the branches through the clog, which all databases share.
 */
static Meaning
xact_meaning(XLogReaderState *record, Oid db)
{
	uint8		info = XLogRecGetInfo(record);
	char	   *data = XLogRecGetData(record);

	switch (info & XLOG_XACT_OPMASK)
	{
		case XLOG_XACT_COMMIT:
		case XLOG_XACT_COMMIT_PREPARED:
			{
				xl_xact_parsed_commit parsed;

				ParseCommitRecord(info, (xl_xact_commit *) data, &parsed);
				return names_file_of(parsed.xnodes, parsed.nrels, db) ?
					MEANS_CHANGE : MEANS_NOTHING;
			}
		case XLOG_XACT_ABORT:
		case XLOG_XACT_ABORT_PREPARED:
			{
				xl_xact_parsed_abort parsed;

				ParseAbortRecord(info, (xl_xact_abort *) data, &parsed);
				return names_file_of(parsed.xnodes, parsed.nrels, db) ?
					MEANS_CHANGE : MEANS_NOTHING;
			}
		case XLOG_XACT_PREPARE:
			return ((xl_xact_prepare *) data)->database == db ?
				MEANS_CHANGE : MEANS_NOTHING;
		default:
			return MEANS_NOTHING;
	}
}

static Meaning
smgr_meaning(XLogReaderState *record, Oid db)
{
	char	   *data = XLogRecGetData(record);
	RelFileNode rnode;

	switch (XLogRecGetInfo(record) & ~XLR_INFO_MASK)
	{
		case XLOG_SMGR_CREATE:
			rnode = ((xl_smgr_create *) data)->rnode;
			break;
		case XLOG_SMGR_TRUNCATE:
			rnode = ((xl_smgr_truncate *) data)->rnode;
			break;
		default:
			return MEANS_CHANGE;
	}
	return rnode.dbNode == db ? MEANS_CHANGE : MEANS_NOTHING;
}

static Meaning
dbase_meaning(XLogReaderState *record, Oid db)
{
	char	   *data = XLogRecGetData(record);
	Oid			changed;

	switch (XLogRecGetInfo(record) & ~XLR_INFO_MASK)
	{
		case XLOG_DBASE_CREATE_FILE_COPY:
			changed = ((xl_dbase_create_file_copy_rec *) data)->db_id;
			break;
		case XLOG_DBASE_CREATE_WAL_LOG:
			changed = ((xl_dbase_create_wal_log_rec *) data)->db_id;
			break;
		case XLOG_DBASE_DROP:
			changed = ((xl_dbase_drop_rec *) data)->db_id;
			break;
		default:
			return MEANS_CHANGE;
	}
	return changed == db ? MEANS_CHANGE : MEANS_NOTHING;
}

static Meaning
own_meaning(XLogReaderState *record, Oid db)
{
	char	   *data = XLogRecGetData(record);
	Oid			changed = InvalidOid;

	switch (XLogRecGetInfo(record) & ~XLR_INFO_MASK)
	{
		case XLOG_AB_BRANCH_CREATE:
			memcpy(&changed, data + offsetof(xl_ab_branch_create, db), sizeof(Oid));
			break;
		case XLOG_AB_BRANCH_DROP:
			memcpy(&changed, data + offsetof(xl_ab_branch_drop, db), sizeof(Oid));
			break;
		case XLOG_AB_BRANCH_DETACH:
			memcpy(&changed, data + offsetof(xl_ab_branch_detach, db), sizeof(Oid));
			break;
		default:
			break;
	}
	return changed == db ? MEANS_CHANGE : MEANS_NOTHING;
}

/* A record that has blocks of db. */
static Meaning
block_meaning(XLogReaderState *record)
{
	uint8		info = XLogRecGetInfo(record) & ~XLR_INFO_MASK;

	switch (XLogRecGetRmid(record))
	{
		case RM_XLOG_ID:
			return info == XLOG_FPI_FOR_HINT ? MEANS_TOUCH : MEANS_CHANGE;

		case RM_HEAP2_ID:
			info &= XLOG_HEAP_OPMASK;
			if (info == XLOG_HEAP2_PRUNE || info == XLOG_HEAP2_VISIBLE)
				return MEANS_TOUCH;
			return MEANS_CHANGE;

		case RM_SEQ_ID:
			return MEANS_SEQUENCE;

		default:
			return MEANS_CHANGE;
	}
}

static Meaning
record_meaning(XLogReaderState *record, Oid db)
{
	/*
	 * First what is said without block references.  Resource managers that are
	 * not named here change pages only through such references.
	 */
	switch (XLogRecGetRmid(record))
	{
		case RM_XACT_ID:
			return xact_meaning(record, db);
		case RM_SMGR_ID:
			return smgr_meaning(record, db);
		case RM_DBASE_ID:
			return dbase_meaning(record, db);
		case RM_RELMAP_ID:
			return ((xl_relmap_update *) XLogRecGetData(record))->dbid == db ?
				MEANS_CHANGE : MEANS_NOTHING;
		case RM_AGENT_BRANCH_ID:
			/* an image (I4) says what the page says already */
			if (has_block_of(record, db))
				return MEANS_TOUCH;
			return own_meaning(record, db);
		default:
			return has_block_of(record, db) ? block_meaning(record) : MEANS_NOTHING;
	}
}

static void
note_blocks(XLogReaderState *record, Oid db, List **touched)
{
	for (int i = 0; i <= XLogRecMaxBlockId(record); i++)
	{
		AbTouchedBlock block;
		AbTouchedBlock *copy;

		if (!XLogRecGetBlockTagExtended(record, i, &block.rnode, &block.fork,
										&block.block, NULL) ||
			block.rnode.dbNode != db)
			continue;
		copy = palloc(sizeof(AbTouchedBlock));
		*copy = block;
		*touched = lappend(*touched, copy);
	}
}

/* ---- both together ---- */

static AbScanVerdict
scan(XLogReaderState *reader, Oid db, XLogRecPtr from, XLogRecPtr upto,
	 bool sequence_is_change, List **touched)
{
	XLogBeginRead(reader, start_of_record(from));
	do
	{
		char	   *problem;

		if (XLogReadRecord(reader, &problem) == NULL)
			return AB_SCAN_UNKNOWN;
		switch (record_meaning(reader, db))
		{
			case MEANS_NOTHING:
				break;
			case MEANS_SEQUENCE:
				if (sequence_is_change)
					return AB_SCAN_CHANGED;
				/* FALLTHROUGH */
			case MEANS_TOUCH:
				if (touched)
					note_blocks(reader, db, touched);
				break;
			case MEANS_CHANGE:
				return AB_SCAN_CHANGED;
		}
	} while (reader->EndRecPtr < upto);
	return AB_SCAN_CLEAN;
}

static XLogReaderState *
open_reader(WalFile *wal, TimeLineID tli, XLogRecPtr limit)
{
	XLogReaderState *reader;

	wal->tli = tli;
	wal->limit = limit;
	wal->segno = 0;
	wal->fd = -1;
	reader = XLogReaderAllocate(wal_segment_size, NULL,
								XL_ROUTINE(.page_read = read_page), wal);
	if (reader == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while allocating a WAL reader.")));
	return reader;
}

static void
close_reader(XLogReaderState *reader, WalFile *wal)
{
	XLogReaderFree(reader);
	close_segment(wal);
}

AbScanVerdict
ab_walscan(Oid db, XLogRecPtr from, XLogRecPtr upto, bool sequence_is_change,
		   List **touched)
{
	XLogReaderState *reader;
	AbScanVerdict verdict;
	WalFile		wal;

	from = end_of_records(from);
	upto = end_of_records(upto);
	if (from >= upto)
		return AB_SCAN_CLEAN;
	XLogFlush(upto);

	reader = open_reader(&wal, GetWALInsertionTimeLine(), upto);
	verdict = scan(reader, db, from, upto, sequence_is_change, touched);
	close_reader(reader, &wal);
	return verdict;
}

/* ---- before the server has started ---- */

static bool
concerns_any(XLogReaderState *record, const List *dbs)
{
	ListCell   *lc;

	foreach(lc, dbs)
		if (record_meaning(record, lfirst_oid(lc)) != MEANS_NOTHING)
			return true;
	return false;
}

AbReplay
ab_walscan_replay(TimeLineID tli, XLogRecPtr redo, const List *dbs)
{
	WalFile		wal;
	XLogReaderState *reader = open_reader(&wal, tli, PG_UINT64_MAX);
	AbReplay	answer = AB_REPLAY_ENDS;
	char	   *problem;

	XLogBeginRead(reader, start_of_record(redo));
	while (answer == AB_REPLAY_ENDS && XLogReadRecord(reader, &problem) != NULL)
	{
		if (XLogRecGetRmid(reader) == RM_AGENT_BRANCH_ID)
			answer = AB_REPLAY_STOPS;
		else if (concerns_any(reader, dbs))
			answer = AB_REPLAY_CHANGES;
	}
	close_reader(reader, &wal);
	return answer;
}

bool
ab_walscan_has_predecessor(TimeLineID tli, XLogRecPtr pos)
{
	WalFile		wal;
	XLogReaderState *reader = open_reader(&wal, tli, PG_UINT64_MAX);
	XLogRecord *record;
	char	   *problem;
	bool		answer;

	XLogBeginRead(reader, pos);
	record = XLogReadRecord(reader, &problem);
	answer = record != NULL && !XLogRecPtrIsInvalid(record->xl_prev);
	close_reader(reader, &wal);
	return answer;
}
