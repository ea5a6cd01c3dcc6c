/*
 * ab_rowreader.h
 *	  Rows that differ in the pages of two tables of one origin, as two snapshots see them.
 */
#ifndef AB_ROWREADER_H
#define AB_ROWREADER_H

#include "ab_compat.h"

#include "utils/snapshot.h"

#include "ab_rowmatch.h"
#include "ab_rowpages.h"
#include "ab_rowvalues.h"

/* What to look at, and how; the same in every process that takes a share of it. */
typedef struct AbRowReader
{
	AbRowPages	pages[2];
	SnapshotData snapshot[2];
	bool		only_places;	/* of rows: neither their values nor who sees them matter,
								 * and neither snapshots nor layout are known */
	AbRowLayout layout;
	AbBlockRanges ranges;
	BufferAccessStrategy strategy;	/* of all pages; NULL: they are few */
} AbRowReader;

/* Rows of both sides that one block can have. */
#define AB_ROWS_IN_BLOCK (2 * MaxHeapTuplesPerPage)

/* "xmin:xmax:xid,xid...", with epochs, as pg_current_snapshot() gives it. */
extern void ab_rowreader_parse_snapshot(const char *text, SnapshotData *snapshot);

/* Does this process's own snapshot keep what is needed to see rows as both do, if it is? */
extern bool ab_rowreader_can_see(const AbRowReader *reader);

/*
 * Rows of a block that differ and are seen, with keys of the part; the first side's come
 * first.  They stay where they are as long as the sessions live that the snapshots are
 * of.  False: it cannot be told.  Values out of line are never fetched, compressed ones
 * are, into the current memory context.  Only places: of all rows that differ, and it can
 * always be told; of what is no page of a table, of all there could be.
 */
extern bool ab_rowreader_block(const AbRowReader *reader, BlockNumber block, AbRowPart part,
							   AbWaitingRow *rows, int *nrows);

/* Of two rows with one code: have they the same key, and are they the same?  False: it
 * cannot be told, or they have other keys. */
extern bool ab_rowreader_compare(const AbRowReader *reader, const AbWaitingRow *a,
								 const AbWaitingRow *b, AbRowVerdict *verdict);

/* Same, but says which columns differ (ab_rows_columns()). */
extern bool ab_rowreader_columns(const AbRowReader *reader, const AbWaitingRow *a,
								 const AbWaitingRow *b, uint64 *columns);

#endif							/* AB_ROWREADER_H */
