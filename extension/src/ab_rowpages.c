/*
 * ab_rowpages.c
 *	  Pages of two tables of one origin, which lie in other databases (ab_rowpages.h).
 *
 * Backends in the control database, and workers of their sessions in other ones.  Pages
 * are read through shared buffers, under their content locks; the databases are locked
 * as a session that connects locks its own.  Nothing is written; a crash leaves nothing.
 */
#include "ab_rowpages.h"

#include "catalog/pg_database.h"
#include "storage/lmgr.h"
#include "storage/lock.h"

void
ab_rowpages_hold(const AbRowPages *pages)
{
	LockSharedObject(DatabaseRelationId, pages->rnode.dbNode, 0, RowExclusiveLock);
}

bool
ab_rowpages_try_hold(const AbRowPages *pages)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, pages->rnode.dbNode, 0);
	return LockAcquire(&tag, RowExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

void
ab_rowpages_release(const AbRowPages *pages)
{
	UnlockSharedObject(DatabaseRelationId, pages->rnode.dbNode, 0, RowExclusiveLock);
}

Buffer
ab_rowpages_pin(const AbRowPages *pages, BlockNumber block, BufferAccessStrategy strategy)
{
	if (block >= pages->nblocks)
		return InvalidBuffer;
	return ReadBufferWithoutRelcache(pages->rnode, MAIN_FORKNUM, block, RBM_NORMAL,
									 strategy, true);
}

/*
 * Nothing is read while the contents are locked: a read may look at a parent's buffer.
 * Who writes locks pages of one database only, so two shared locks are in nobody's circle.
 */
void
ab_rowpages_compare(const AbRowPages *pages, BlockNumber block,
					BufferAccessStrategy strategy, AbPageRows *rows, Buffer *pinned)
{
	const char *page[2] = {NULL, NULL};

	for (int i = 0; i < 2; i++)
		pinned[i] = ab_rowpages_pin(&pages[i], block, strategy);
	for (int i = 0; i < 2; i++)
		if (BufferIsValid(pinned[i]))
		{
			LockBuffer(pinned[i], BUFFER_LOCK_SHARE);
			page[i] = BufferGetPage(pinned[i]);
		}
	ab_page_changed_rows(page[0], page[1], rows);
	for (int i = 0; i < 2; i++)
		if (BufferIsValid(pinned[i]))
			LockBuffer(pinned[i], BUFFER_LOCK_UNLOCK);
}

void
ab_rowpages_unpin(Buffer *pinned)
{
	for (int i = 0; i < 2; i++)
		if (BufferIsValid(pinned[i]))
			ReleaseBuffer(pinned[i]);
}

uint64
ab_rowpages_count(const AbBlockRanges *ranges)
{
	uint64		nblocks = 0;

	for (int i = 0; i < ranges->n; i++)
		if (ranges->range[i].start < ranges->range[i].end)
			nblocks += ranges->range[i].end - ranges->range[i].start;
	return nblocks;
}

/*
 * Many pages share a few buffers: what others need stays in memory, and this process does
 * not have to map all of it.
 */
BufferAccessStrategy
ab_rowpages_strategy(const AbBlockRanges *ranges)
{
	return ab_rowpages_count(ranges) * 2 > NBuffers / 64 ?
		GetAccessStrategy(BAS_BULKREAD) : NULL;
}
