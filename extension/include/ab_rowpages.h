/*
 * ab_rowpages.h
 *	  Pages of two tables of one origin, which lie in other databases.
 */
#ifndef AB_ROWPAGES_H
#define AB_ROWPAGES_H

#include "ab_compat.h"

#include "storage/bufmgr.h"
#include "storage/relfilenode.h"

#include "ab_changes.h"
#include "ab_pagerows.h"

typedef struct AbRowPages
{
	RelFileNode rnode;
	BlockNumber nblocks;
} AbRowPages;

/*
 * Hold the database until ab_rowpages_release() or the end of the transaction: pages of
 * one that is dropped must not come into shared buffers any more.  The second one does
 * not wait; false: somebody is in the way.
 */
extern void ab_rowpages_hold(const AbRowPages *pages);
extern bool ab_rowpages_try_hold(const AbRowPages *pages);
extern void ab_rowpages_release(const AbRowPages *pages);

/* The page's buffer, pinned for the caller; InvalidBuffer: it is behind the end. */
extern Buffer ab_rowpages_pin(const AbRowPages *pages, BlockNumber block,
							  BufferAccessStrategy strategy);

/*
 * Row versions that differ in a block of two tables of one origin, and its buffers,
 * pinned for the caller: while they are, no row moves.
 */
extern void ab_rowpages_compare(const AbRowPages *pages, BlockNumber block,
								BufferAccessStrategy strategy, AbPageRows *rows,
								Buffer *pinned);
extern void ab_rowpages_unpin(Buffer *pinned);

/* How many blocks there are in the ranges. */
extern uint64 ab_rowpages_count(const AbBlockRanges *ranges);

/* For reading these of two tables; NULL: none. */
extern BufferAccessStrategy ab_rowpages_strategy(const AbBlockRanges *ranges);

#endif							/* AB_ROWPAGES_H */
