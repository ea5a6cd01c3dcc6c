/*
 * ab_rowreader.c
 *	  Rows that differ in the pages of two tables of one origin, as two snapshots see
 *	  them (ab_rowreader.h).
 *
 * Backends in the control database, and workers of their sessions in other ones.  The
 * snapshots are those of sessions that live, in each of the databases: what they see
 * stays where it is.  Pages are pinned and locked for one block.  Nothing is written but
 * hint bits; a crash leaves nothing.
 */
#include "ab_rowreader.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "storage/bufmgr.h"
#include "utils/snapmgr.h"

/* ---- snapshots ---- */

/* An id that is no top-level one is looked up. */
void
ab_rowreader_parse_snapshot(const char *text, SnapshotData *snapshot)
{
	char	   *at = unconstify(char *, text);

	MemSet(snapshot, 0, sizeof(*snapshot));
	snapshot->snapshot_type = SNAPSHOT_MVCC;
	snapshot->suboverflowed = true;
	snapshot->copied = true;
	snapshot->xip = palloc_array(TransactionId, strlen(text) / 2 + 1);
	snapshot->xmin = (TransactionId) strtou64(at, &at, 10);
	snapshot->xmax = (TransactionId) strtou64(at + 1, &at, 10);
	while (*at != '\0' && at[1] != '\0')
		snapshot->xip[snapshot->xcnt++] = (TransactionId) strtou64(at + 1, &at, 10);
}

bool
ab_rowreader_can_see(const AbRowReader *reader)
{
	for (int i = 0; i < 2 && !reader->only_places; i++)
		if (!TransactionIdIsNormal(TransactionXmin) ||
			!TransactionIdPrecedesOrEquals(TransactionXmin, reader->snapshot[i].xmin))
			return false;
	return true;
}

/* ---- rows ---- */

/* The rows of the pinned page that the side's snapshot sees; returns how many. */
static int
keep_visible(const AbRowReader *reader, int side, BlockNumber block, Buffer buffer,
			 OffsetNumber *places, int n)
{
	/* a test of visibility does not change what it is given, and has no const */
	Snapshot	snapshot = unconstify(SnapshotData *, &reader->snapshot[side]);
	int			kept = 0;
	Page		page;

	if (n == 0)
		return 0;
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	for (int i = 0; i < n; i++)
	{
		HeapTupleData row;
		ItemId		id = PageGetItemId(page, places[i]);

		row.t_data = (HeapTupleHeader) PageGetItem(page, id);
		row.t_len = ItemIdGetLength(id);
		row.t_tableOid = reader->pages[side].rnode.relNode;
		ItemPointerSet(&row.t_self, block, places[i]);
		if (HeapTupleSatisfiesVisibility(&row, snapshot, buffer))
			places[kept++] = places[i];
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return kept;
}

/*
 * Of a row that is seen, in a pinned page: it stays where it is.  False: there is no row
 * that lies in the page as it should, and has such columns.
 */
static bool
values_at(const AbRowReader *reader, Buffer buffer, OffsetNumber offset, AbRowValues *values)
{
	Page		page = BufferGetPage(buffer);
	ItemId		id;

	if (offset > PageGetMaxOffsetNumber(page))
		return false;
	id = PageGetItemId(page, offset);
	if (!ItemIdIsNormal(id) || ItemIdGetLength(id) < SizeofHeapTupleHeader ||
		ItemIdGetOffset(id) + ItemIdGetLength(id) > BLCKSZ)
		return false;
	return ab_row_values(&reader->layout, (const HeapTupleHeaderData *) PageGetItem(page, id),
						 ItemIdGetLength(id), values);
}

/* False: it cannot be told. */
static bool
take_rows(const AbRowReader *reader, int side, BlockNumber block, Buffer buffer,
		  const OffsetNumber *places, int n, AbRowPart part, AbWaitingRow *rows, int *nrows)
{
	for (int i = 0; i < n; i++)
	{
		AbRowValues values;
		AbWaitingRow row = {0};

		if (!values_at(reader, buffer, places[i], &values) ||
			!ab_row_code(&reader->layout, &values, &row.code))
			return false;
		if (!ab_rowpart_has(part, row.code))
			continue;
		row.block = block;
		row.offset = places[i];
		row.side = side;
		row.print = ab_row_print(&reader->layout, &values);
		rows[(*nrows)++] = row;
	}
	return true;
}

static void
put_places(int side, BlockNumber block, const OffsetNumber *places, int n,
		   AbWaitingRow *rows, int *nrows)
{
	for (int i = 0; i < n; i++)
	{
		AbWaitingRow row = {0};

		row.block = block;
		row.offset = places[i];
		row.side = side;
		rows[(*nrows)++] = row;
	}
}

bool
ab_rowreader_block(const AbRowReader *reader, BlockNumber block, AbRowPart part,
				   AbWaitingRow *rows, int *nrows)
{
	AbPageRows	places;
	Buffer		pinned[2];
	bool		told = true;

	*nrows = 0;
	ab_rowpages_compare(reader->pages, block, reader->strategy, &places, pinned);
	if (reader->only_places)
	{
		put_places(0, block, places.of_a, places.na, rows, nrows);
		put_places(1, block, places.of_b, places.nb, rows, nrows);
	}
	else if (Max(places.na, places.nb) == MaxHeapTuplesPerPage)
		told = false;			/* or a page that is none of a table */
	else
	{
		places.na = keep_visible(reader, 0, block, pinned[0], places.of_a, places.na);
		places.nb = keep_visible(reader, 1, block, pinned[1], places.of_b, places.nb);
		told = take_rows(reader, 0, block, pinned[0], places.of_a, places.na, part,
						 rows, nrows) &&
			take_rows(reader, 1, block, pinned[1], places.of_b, places.nb, part, rows, nrows);
	}
	ab_rowpages_unpin(pinned);
	return told;
}

/* ---- two rows ---- */

/*
 * The page of a row, pinned; one that was looked at before.  Whoever moves rows in it has
 * done so when its lock was had.
 */
static Buffer
pin_again(const AbRowReader *reader, const AbWaitingRow *row)
{
	Buffer		buffer = ab_rowpages_pin(&reader->pages[row->side], row->block,
										 reader->strategy);

	if (BufferIsValid(buffer))
	{
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	}
	return buffer;
}

/* Values of two rows with one code, in pinned pages.  False: as of ab_rowreader_compare(). */
static bool
read_two(const AbRowReader *reader, const AbWaitingRow *a, const AbWaitingRow *b,
		 AbRowValues *values, Buffer *pinned)
{
	const AbWaitingRow *rows[2] = {a, b};

	for (int i = 0; i < 2; i++)
		pinned[i] = pin_again(reader, rows[i]);
	for (int i = 0; i < 2; i++)
		if (!BufferIsValid(pinned[i]) ||
			!values_at(reader, pinned[i], rows[i]->offset, &values[i]))
			return false;
	return ab_rows_same_key(&reader->layout, &values[0], &values[1]);
}

bool
ab_rowreader_compare(const AbRowReader *reader, const AbWaitingRow *a, const AbWaitingRow *b,
					 AbRowVerdict *verdict)
{
	AbRowValues values[2];
	Buffer		pinned[2];
	bool		told = read_two(reader, a, b, values, pinned);

	if (told)
		*verdict = ab_rows_compare(&reader->layout, &values[0], &values[1]);
	ab_rowpages_unpin(pinned);
	return told;
}

bool
ab_rowreader_columns(const AbRowReader *reader, const AbWaitingRow *a, const AbWaitingRow *b,
					 uint64 *columns)
{
	AbRowValues values[2];
	Buffer		pinned[2];
	bool		told = read_two(reader, a, b, values, pinned);

	if (told)
		*columns = ab_rows_columns(&reader->layout, &values[0], &values[1]);
	ab_rowpages_unpin(pinned);
	return told;
}
