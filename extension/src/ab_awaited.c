/*
 * ab_awaited.c
 *	  Inherited pages that replay of a base backup's files has to wait for.
 *
 * The startup process only.
 *
 * A page of a branch is changed by WAL after an image of it (I4), so replay does not ask what
 * the branch inherits; but for two things.  That all rows of a page are visible to all
 * (heap2 VISIBLE) is set in the page without an image, as is the lock of a hash bucket; and
 * visibility maps are changed without one.  On any other server the inherited page is what it
 * was then.  In the files of a base backup it may be of a later time: the image that says what
 * it was is further on in WAL, before the backup's end.
 *
 * So until then such a page of a main fork is zeros.  The server passes over it, notes that it is
 * missing, and moves no restartpoint beyond that: a crash begins before it.  At the end the page
 * is read, and is told what the branch's visibility map says of it.  A map begins as an
 * empty one of the branch's own (ab_smgr.c): it may say less than it could.
 */
#include "ab_awaited.h"

#include "access/visibilitymap.h"
#include "access/xlogutils.h"
#include "common/controldata_utils.h"
#include "lib/qunique.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/lwlock.h"
#include "storage/smgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "ab_origin.h"
#include "ab_recovery.h"

typedef struct Awaited
{
	RelFileNode rnode;
	BlockNumber block;
} Awaited;

static Awaited *awaited = NULL;
static int64 nawaited = 0;
static int64 max_awaited = 0;
static bool ended = false;

bool
ab_awaited_here(void)
{
	return !ended && AmStartupProcess() && ab_recovery_files_are_mixed();
}

void
ab_awaited_note(RelFileNode rnode, BlockNumber block)
{
	if (nawaited == max_awaited)
	{
		max_awaited = Max(2 * max_awaited, 64);
		awaited = awaited == NULL ?
			MemoryContextAllocHuge(TopMemoryContext, max_awaited * sizeof(Awaited)) :
			repalloc_huge(awaited, max_awaited * sizeof(Awaited));
	}
	awaited[nawaited].rnode = rnode;
	awaited[nawaited++].block = block;
}

/* The page as it is inherited, unless it is whole already; zeros, unlocked, if it is lost. */
static Buffer
fetch(SMgrRelation reln, BlockNumber block)
{
	Buffer		buffer = XLogReadBufferExtended(reln->smgr_rnode.node, MAIN_FORKNUM, block,
												RBM_NORMAL_NO_LOG, InvalidBuffer);

	if (!BufferIsValid(buffer))
		return buffer;
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (PageIsNew(BufferGetPage(buffer)))
		smgrread(reln, MAIN_FORKNUM, block, BufferGetPage(buffer));
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return buffer;
}

static void
tell_page(Buffer buffer, Relation rel, BlockNumber block)
{
	Page		page = BufferGetPage(buffer);
	Buffer		map = InvalidBuffer;

	if (visibilitymap_get_status(rel, block, &map) != 0)
	{
		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
		if (!PageIsNew(page) && !PageIsAllVisible(page))
		{
			PageSetAllVisible(page);
			MarkBufferDirty(buffer);
		}
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	}
	if (BufferIsValid(map))
		ReleaseBuffer(map);
}

/* Pages of one relation, each once, in the order of their blocks. */
static void
make_up(RelFileNode rnode, const Awaited *pages, int64 n)
{
	SMgrRelation reln;
	Relation	rel;
	BlockNumber nblocks;

	/* looks through all that is missing, in whatever relation */
	XLogDropRelation(rnode, MAIN_FORKNUM);
	if (ab_branch_lookup(rnode.dbNode) == NULL)
		return;
	reln = smgropen(rnode, InvalidBackendId);
	if (!smgrexists(reln, MAIN_FORKNUM))
		return;
	nblocks = smgrnblocks(reln, MAIN_FORKNUM);
	rel = CreateFakeRelcacheEntry(rnode);
	for (int64 i = 0; i < n && pages[i].block < nblocks; i++)
	{
		Buffer		buffer = fetch(reln, pages[i].block);

		if (BufferIsValid(buffer))
		{
			tell_page(buffer, rel, pages[i].block);
			ReleaseBuffer(buffer);
		}
	}
	FreeFakeRelcacheEntry(rel);
}

static int
compare(const void *a, const void *b)
{
	const Awaited *x = a;
	const Awaited *y = b;
	int			relations = memcmp(&x->rnode, &y->rnode, sizeof(RelFileNode));

	if (relations != 0)
		return relations;
	return x->block < y->block ? -1 : x->block > y->block;
}

static void
make_up_all(void)
{
	int64		n;

	if (nawaited == 0)
		return;
	/* a page that had to give its buffer away was asked for again */
	qsort(awaited, nawaited, sizeof(Awaited), compare);
	nawaited = qunique(awaited, nawaited, sizeof(Awaited), compare);
	for (int64 i = 0; i < nawaited; i += n)
	{
		for (n = 1; i + n < nawaited; n++)
			if (!RelFileNodeEquals(awaited[i].rnode, awaited[i + n].rnode))
				break;
		make_up(awaited[i].rnode, &awaited[i], n);
	}
}

/* Other backups may have ended while this one was taken. */
static bool
is_of_this_backup(XLogReaderState *record)
{
	XLogRecPtr	start;
	bool		crc_ok;
	ControlFileData *control;
	bool		same;

	LWLockAcquire(ControlFileLock, LW_SHARED);	/* never half written */
	control = get_controlfile(".", &crc_ok);
	LWLockRelease(ControlFileLock);
	memcpy(&start, XLogRecGetData(record), sizeof(start));
	same = crc_ok && control->backupStartPoint == start;
	pfree(control);
	return same;
}

void
ab_awaited_backup_ends(XLogReaderState *record)
{
	if (!ab_awaited_here() || !is_of_this_backup(record))
		return;
	ended = true;
	make_up_all();
	nawaited = max_awaited = 0;
	if (awaited != NULL)
		pfree(awaited);
	awaited = NULL;
}
