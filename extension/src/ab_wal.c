/*
 * ab_wal.c
 *	  Inserting the library's WAL records (formats: ab_wal.h) and registering its
 *	  resource manager.
 *
 * Backends and the keeper insert; nobody does in recovery.  Nothing is flushed
 * here: each caller knows what its record has to be durable before.
 */
#include "ab_wal.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "storage/bufpage.h"

struct LogicalDecodingContext;
struct XLogRecordBuffer;

static void ab_rm_mask(char *page, BlockNumber block);
static void ab_rm_decode(struct LogicalDecodingContext *ctx,
						 struct XLogRecordBuffer *buf);

void
ab_wal_register(void)
{
	RmgrData	rmgr = {
		.rm_name = "agent_branch",
		.rm_redo = ab_rm_redo,
		.rm_desc = ab_rm_desc,
		.rm_identify = ab_rm_identify,
		.rm_startup = ab_rm_startup,
		.rm_cleanup = ab_rm_cleanup,
		.rm_mask = ab_rm_mask,
		.rm_decode = ab_rm_decode
	};

	RegisterCustomRmgr(RM_AGENT_BRANCH_ID, &rmgr);
}

/* Only IMAGE has a page, and it is replayed whole: nothing in it may differ. */
static void
ab_rm_mask(char *page, BlockNumber block)
{
}

/*
 * Nothing for logical decoding.  Without this function decoding would note the
 * record's xid, and some records are inserted by transactions that have already
 * ended: the note would never be taken away again (M30).
 */
static void
ab_rm_decode(struct LogicalDecodingContext *ctx, struct XLogRecordBuffer *buf)
{
}

XLogRecPtr
ab_wal_branch_create(xl_ab_branch_create *rec)
{
	rec->tli = GetWALInsertionTimeLine();
	rec->pad = 0;

	XLogBeginInsert();
	XLogRegisterData((char *) rec, sizeof(*rec));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_BRANCH_CREATE);
}

XLogRecPtr
ab_wal_branch_drop(AbSnapId incarnation, Oid db)
{
	xl_ab_branch_drop rec;

	rec.incarnation = incarnation;
	rec.db = db;
	rec.pad = 0;

	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof(rec));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_BRANCH_DROP);
}

XLogRecPtr
ab_wal_branch_detach(const xl_ab_branch_detach *rec, const char *relmap)
{
	XLogBeginInsert();
	XLogRegisterData((char *) rec, sizeof(*rec));
	XLogRegisterData((char *) relmap, AB_RELMAP_SIZE);
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_BRANCH_DETACH);
}

XLogRecPtr
ab_wal_snapshot(xl_ab_snapshot *rec, const AbForkEntry *forks, const AbLayerRef *layers,
				const AbRun *runs, const char *relmap)
{
	rec->tli = GetWALInsertionTimeLine();

	XLogBeginInsert();
	XLogRegisterData((char *) rec, sizeof(*rec));
	if (rec->nforks > 0)
		XLogRegisterData((char *) forks, rec->nforks * sizeof(AbForkEntry));
	if (rec->nlayers > 0)
		XLogRegisterData((char *) layers, rec->nlayers * sizeof(AbLayerRef));
	if (rec->nruns > 0)
		XLogRegisterData((char *) runs, rec->nruns * sizeof(AbRun));
	XLogRegisterData((char *) relmap, AB_RELMAP_SIZE);
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_SNAPSHOT);
}

XLogRecPtr
ab_wal_confirm(AbSnapId id)
{
	xl_ab_confirm rec;

	rec.id = id;

	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof(rec));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_CONFIRM);
}

/* What lies between the two ends of a standard page is not logged. */
static void
find_hole(const char *page, uint16 *offset, uint16 *length)
{
	const PageHeaderData *p = (const PageHeaderData *) page;

	*offset = *length = 0;
	if (p->pd_lower < SizeOfPageHeaderData || p->pd_lower > p->pd_upper ||
		p->pd_upper > BLCKSZ)
		return;
	for (int i = p->pd_lower; i < p->pd_upper; i++)
		if (page[i] != 0)
			return;
	*offset = p->pd_lower;
	*length = p->pd_upper - p->pd_lower;
}

XLogRecPtr
ab_wal_before_image(AbSnapId epoch, Oid db, AbForkKey key, BlockNumber block,
					uint32 flags, const char *page)
{
	xl_ab_before_image rec;

	rec.epoch = epoch;
	rec.db = db;
	rec.spc = key.spc;
	rec.rel = key.rel;
	rec.fork = key.fork;
	rec.block = block;
	rec.flags = flags;
	find_hole(page, &rec.hole_offset, &rec.hole_length);

	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof(rec));
	XLogRegisterData((char *) page, rec.hole_offset);
	XLogRegisterData((char *) page + rec.hole_offset + rec.hole_length,
					 BLCKSZ - rec.hole_offset - rec.hole_length);
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_BEFORE_IMAGE);
}

XLogRecPtr
ab_wal_retire(AbSnapId id, uint32 what)
{
	xl_ab_retire rec;

	rec.id = id;
	rec.what = what;
	rec.pad = 0;

	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof(rec));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_RETIRE);
}

/*
 * Not "important": it must not make an idle server believe that it has something to
 * write a checkpoint for, which would be followed by the next such record.
 */
XLogRecPtr
ab_wal_witness(XLogRecPtr redo)
{
	xl_ab_witness rec;

	rec.redo = redo;

	XLogBeginInsert();
	XLogSetRecordFlags(XLOG_MARK_UNIMPORTANT);
	XLogRegisterData((char *) &rec, sizeof(rec));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_WITNESS);
}

XLogRecPtr
ab_wal_gather(const AbOriginHeader *origins, int n)
{
	xl_ab_gather rec;

	rec.n = n;
	rec.pad = 0;

	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof(rec));
	if (n > 0)
		XLogRegisterData((char *) origins, n * sizeof(AbOriginHeader));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_GATHER);
}

XLogRecPtr
ab_wal_unkeep(Oid db, const AbKeptRelation *gone, int n)
{
	xl_ab_unkeep rec;

	rec.db = db;
	rec.n = n;

	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof(rec));
	XLogRegisterData((char *) gone, n * sizeof(AbKeptRelation));
	return XLogInsert(RM_AGENT_BRANCH_ID, XLOG_AB_UNKEEP);
}
