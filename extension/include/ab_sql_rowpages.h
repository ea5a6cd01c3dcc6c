/*
 * ab_sql_rowpages.h
 *	  Pages of a table of another database, for functions that look at rows in them.
 */
#ifndef AB_SQL_ROWPAGES_H
#define AB_SQL_ROWPAGES_H

#include "ab_compat.h"

#include "fmgr.h"
#include "storage/bufmgr.h"
#include "storage/relfilenode.h"

#include "ab_changes.h"
#include "ab_pagerows.h"

/* Places of rows told of in one line of a result. */
#define AB_ROWS_IN_LINE 2000

typedef struct AbRowPages
{
	RelFileNode rnode;
	BlockNumber nblocks;
} AbRowPages;

/*
 * Arguments number first (a database), first + 1 (tablespace, 0: the database's) and
 * first + 2 (file).  The database is held until ab_rowpages_close() or the end of the
 * transaction: pages of one that is dropped must not come into shared buffers any more.
 * Errors: 3D000, 42501, 22023 the table is unlogged.
 */
extern void ab_rowpages_open(AbRowPages *pages, FunctionCallInfo fcinfo, int first);
extern void ab_rowpages_close(AbRowPages *pages);

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

/* For reading these of two tables; NULL: none. */
extern BufferAccessStrategy ab_rowpages_strategy(const AbBlockRanges *ranges);

/* Arguments number first and first + 1: where ranges of blocks begin and end, cut to the
 * longer one of two tables.  In the order given. */
extern AbBlockRanges ab_rowpages_ranges(const AbRowPages *pages, FunctionCallInfo fcinfo,
										int first);

/* A database whose files the caller may look at, and its default tablespace.  42501. */
extern Oid	ab_visible_database(Oid db);

#endif							/* AB_SQL_ROWPAGES_H */
