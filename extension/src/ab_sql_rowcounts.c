/*
 * ab_sql_rowcounts.c
 *	  branch._changed_counts: how many rows of two tables of one origin differ, told from
 *	  their pages alone.
 *
 * Backends in the control database.  The caller has a session in each of the databases,
 * which holds the table and sees one moment; what the session sees is what counts, so
 * this asks for the snapshots of both and looks at the row versions with them.  Those
 * that a snapshot sees stay where they are as long as its session lives.  Nothing is
 * written but hint bits; a crash leaves nothing.
 */
#include "ab_compat.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "ab_pagerows.h"
#include "ab_remote.h"
#include "ab_rowmatch.h"
#include "ab_rowvalues.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_rowpages.h"

PG_FUNCTION_INFO_V1(ab_sql_changed_counts);

/* A NOTICE for so many rows read: data.py has the same. */
#define ROWS_BETWEEN_NOTICES 100000

typedef struct Counting
{
	AbRowPages	pages[2];
	SnapshotData snapshot[2];
	AbBlockRanges ranges;
	BufferAccessStrategy strategy;	/* of all pages; NULL: they are few */
	AbRowLayout layout;
	AbRowMatch *match;
	BlockNumber block;			/* that is looked at */
	Buffer		pinned[2];		/* of it; InvalidBuffer: it is behind the end */
	MemoryContext context;		/* of one page's rows */
	int64		read;			/* rows, those of before included */
	char	   *where;
	uint64		left[2];
	uint64		differ;
} Counting;

/* ---- snapshots ---- */

/* "xmin:xmax:xid,xid...", with epochs; an id that is no top-level one is looked up. */
static void
parse_snapshot(const char *text, SnapshotData *snapshot)
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

/*
 * What a session sees.  False: it does not see the same to its end, has changes of its
 * own, or sees more than this process could tell.
 */
static bool
take_snapshot(AbRemote *session, SnapshotData *snapshot)
{
	bool		found = false;

	for (;;)
	{
		switch (ab_remote_next(session))
		{
			case AB_REMOTE_ROW:
				{
					char	  **values = ab_remote_values(session, NULL);

					if (strcmp(values[1], "t") == 0)
					{
						parse_snapshot(values[0], snapshot);
						found = TransactionIdPrecedesOrEquals(TransactionXmin, snapshot->xmin);
					}
				}
				break;
			case AB_REMOTE_READY:
				return found;
			default:
				break;
		}
	}
}

static bool
take_snapshots(Counting *c, FunctionCallInfo fcinfo, int first)
{
	AbRemote   *session[2];
	bool		found = true;

	for (int i = 0; i < 2; i++)
	{
		session[i] = ab_remote_find(PG_GETARG_INT32(first + i));
		if (session[i] == NULL ||
			get_database_oid(ab_remote_database(session[i]), true) !=
			c->pages[i].rnode.dbNode)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there is no such session in database %u",
							c->pages[i].rnode.dbNode)));
	}
	for (int i = 0; i < 2; i++)
	{
		while (!ab_remote_is_ready(session[i]))
			(void) ab_remote_next(session[i]);
		ab_remote_send(session[i],
					   "SELECT pg_catalog.pg_current_snapshot(),"
					   " pg_catalog.current_setting('transaction_isolation')"
					   " IN ('repeatable read', 'serializable')"
					   " AND pg_catalog.pg_current_xact_id_if_assigned() IS NULL"
					   " AND pg_catalog.current_setting('old_snapshot_threshold') = '-1'", 0);
	}
	for (int i = 0; i < 2; i++)
		found &= take_snapshot(session[i], &c->snapshot[i]);
	return found;
}

/* ---- rows ---- */

/* The rows of the pinned page that the side's snapshot sees; returns how many. */
static int
keep_visible(Counting *c, int side, OffsetNumber *places, int n)
{
	Buffer		buffer = c->pinned[side];
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
		row.t_tableOid = c->pages[side].rnode.relNode;
		ItemPointerSet(&row.t_self, c->block, places[i]);
		if (HeapTupleSatisfiesVisibility(&row, &c->snapshot[side], buffer))
			places[kept++] = places[i];
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return kept;
}

/*
 * Of a row that is seen, in a pinned page: it stays where it is.  False: there is no row
 * that lies in the page as it should.
 */
static bool
values_at(const Counting *c, Buffer buffer, OffsetNumber offset, AbRowValues *values)
{
	Page		page = BufferGetPage(buffer);
	ItemId		id;

	if (offset > PageGetMaxOffsetNumber(page))
		return false;
	id = PageGetItemId(page, offset);
	if (!ItemIdIsNormal(id) || ItemIdGetLength(id) < SizeofHeapTupleHeader ||
		ItemIdGetOffset(id) + ItemIdGetLength(id) > BLCKSZ)
		return false;
	ab_row_values(&c->layout, (const HeapTupleHeaderData *) PageGetItem(page, id), values);
	return true;
}

/*
 * The page of a row that waits, pinned; it may be one that was looked at before.  Whoever
 * moves rows in it has done so when its lock was had.
 */
static Buffer
pin_waiting(Counting *c, const AbWaitingRow *row)
{
	Buffer		buffer = ab_rowpages_pin(&c->pages[row->side], row->block, c->strategy);

	if (BufferIsValid(buffer))
	{
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	}
	return buffer;
}

static void
tell(Counting *c)
{
	c->read++;
	if (c->read % ROWS_BETWEEN_NOTICES == 0)
		ereport(NOTICE, (errmsg_internal("%lld rows read%s", (long long) c->read, c->where)));
}

/* False: it cannot be told from the pages. */
static bool
compare_with_waiting(Counting *c, const AbRowValues *values, const AbWaitingRow *waiting,
					 AbRowVerdict *verdict)
{
	AbRowValues others;
	Buffer		buffer = pin_waiting(c, waiting);
	bool		told;

	if (!BufferIsValid(buffer))
		return false;
	told = values_at(c, buffer, waiting->offset, &others) &&
		ab_rows_same_key(&c->layout, values, &others);
	if (told)
		*verdict = ab_rows_compare(&c->layout, values, &others);
	ReleaseBuffer(buffer);
	return told;
}

/* False: it cannot be told from the pages. */
static bool
count_row(Counting *c, int side, OffsetNumber offset)
{
	AbRowValues values;
	AbWaitingRow row = {0};
	AbWaitingRow *waiting;
	AbRowVerdict verdict = AB_ROWS_DIFFER;

	if (!values_at(c, c->pinned[side], offset, &values) ||
		!ab_row_code(&c->layout, &values, &row.code))
		return false;
	if (!ab_rowmatch_wanted(c->match, row.code))
		return true;
	tell(c);
	row.block = c->block;
	row.offset = offset;
	row.side = side;
	row.print = ab_row_print(&c->layout, &values);
	waiting = ab_rowmatch_find(c->match, row.code);
	if (waiting == NULL)
	{
		ab_rowmatch_add(c->match, &row);
		return true;
	}
	if (waiting->side == side)
		return false;			/* two keys with one code */
	if ((!c->layout.code_is_key || row.print == waiting->print ||
		 row.print == 0 || waiting->print == 0) &&
		!compare_with_waiting(c, &values, waiting, &verdict))
		return false;
	ab_rowmatch_meet(c->match, waiting, &row, verdict);
	return true;
}

static bool
count_page(Counting *c, BlockNumber block)
{
	AbPageRows	rows;
	bool		told = true;

	c->block = block;
	ab_rowpages_compare(c->pages, block, c->strategy, &rows, c->pinned);
	if (Max(rows.na, rows.nb) == MaxHeapTuplesPerPage)
		told = false;			/* or a page that is none of a table */
	else
	{
		rows.na = keep_visible(c, 0, rows.of_a, rows.na);
		rows.nb = keep_visible(c, 1, rows.of_b, rows.nb);
	}
	for (int i = 0; told && i < rows.na; i++)
		told = count_row(c, 0, rows.of_a[i]);
	for (int i = 0; told && i < rows.nb; i++)
		told = count_row(c, 1, rows.of_b[i]);
	ab_rowpages_unpin(c->pinned);
	return told;
}

static bool
count_part(Counting *c)
{
	MemoryContext old = MemoryContextSwitchTo(c->context);
	bool		told = true;

	for (int i = 0; told && i < c->ranges.n; i++)
	{
		AbBlockRange range = c->ranges.range[i];

		for (BlockNumber block = range.start; told && block < range.end; block++)
		{
			CHECK_FOR_INTERRUPTS();
			told = count_page(c, block);
		}
		MemoryContextReset(c->context);
	}
	MemoryContextSwitchTo(old);
	return told;
}

/* ---- the answer ---- */

/* Pairs that are to be compared by their types, as texts of two tid[]. */
static void
put_unknown(ReturnSetInfo *rsinfo, const AbRowPair *pairs, uint64 n)
{
	StringInfoData places[2];
	Datum		values[6] = {0};
	bool		nulls[6] = {false, false, true, true, true, true};

	for (int i = 0; i < 2; i++)
	{
		initStringInfo(&places[i]);
		for (uint64 j = 0; j < n; j++)
			appendStringInfo(&places[i], "%s\"(%u,%u)\"", j > 0 ? "," : "{",
							 pairs[j].block[i], pairs[j].offset[i]);
		appendStringInfoChar(&places[i], '}');
		values[i] = CStringGetTextDatum(places[i].data);
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	for (int i = 0; i < 2; i++)
	{
		pfree(DatumGetPointer(values[i]));
		pfree(places[i].data);
	}
}

static void
put_counts(ReturnSetInfo *rsinfo, const Counting *c, int64 read_before)
{
	Datum		values[6] = {0};
	bool		nulls[6] = {true, true, false, false, false, false};

	values[2] = Int64GetDatum(c->left[1]);
	values[3] = Int64GetDatum(c->differ);
	values[4] = Int64GetDatum(c->left[0]);
	values[5] = Int64GetDatum(c->read - read_before);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* False: it cannot be told from the pages. */
static bool
count_all(ReturnSetInfo *rsinfo, Counting *c)
{
	c->strategy = ab_rowpages_strategy(&c->ranges);
	c->match = ab_rowmatch_begin(get_hash_memory_limit());
	while (ab_rowmatch_next(c->match))
	{
		AbRowsFound found;

		if (!count_part(c))
			return false;
		ab_rowmatch_end_part(c->match, &found);
		for (uint64 i = 0; i < found.nunknown; i += AB_ROWS_IN_LINE)
			put_unknown(rsinfo, found.unknown + i, Min(found.nunknown - i, AB_ROWS_IN_LINE));
		c->differ += found.differ;
		c->left[0] += found.left[0];
		c->left[1] += found.left[1];
	}
	ab_rowmatch_end(c->match);
	return true;
}

/* Arguments number first: lengths of the columns, first + 1: alignments, first + 2: kinds. */
static AbRowLayout
layout_of(FunctionCallInfo fcinfo, int first)
{
	AbRowLayout layout = {0};
	ArrayType  *lens = PG_GETARG_ARRAYTYPE_P(first);
	int			n = ArrayGetNItems(ARR_NDIM(lens), ARR_DIMS(lens));

	layout.align = text_to_cstring(PG_GETARG_TEXT_PP(first + 1));
	layout.kind = text_to_cstring(PG_GETARG_TEXT_PP(first + 2));
	if (array_contains_nulls(lens) || n > MaxHeapAttributeNumber ||
		strlen(layout.align) != n || strlen(layout.kind) != n ||
		strspn(layout.align, "csid") != n || strspn(layout.kind, "kpbu-") != n ||
		strchr(layout.kind, AB_COLUMN_KEY) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("columns must have lengths, alignments and kinds, and some must be of the key")));
	layout.len = (int16 *) ARR_DATA_PTR(lens);
	for (int i = 0; i < n; i++)
		if (layout.len[i] < -2 || layout.len[i] == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%d is no length of a column", layout.len[i])));
	ab_row_layout_finish(&layout, n);
	return layout;
}

/*
 * Lines of places of rows that have the same key and may be the same, and a last one with
 * the numbers of rows that differ.  No line at all: it cannot be told from the pages.
 */
Datum
ab_sql_changed_counts(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Counting   *c = palloc0(sizeof(Counting));

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < 2; i++)
		ab_rowpages_open(&c->pages[i], fcinfo, i * 3);
	c->ranges = ab_rowpages_ranges(c->pages, fcinfo, 6);
	c->layout = layout_of(fcinfo, 10);
	c->read = PG_GETARG_INT64(13);
	c->where = text_to_cstring(PG_GETARG_TEXT_PP(14));
	c->context = AllocSetContextCreate(CurrentMemoryContext, "rows of pages",
									   ALLOCSET_DEFAULT_SIZES);
	if (take_snapshots(c, fcinfo, 8) && count_all(rsinfo, c))
		put_counts(rsinfo, c, PG_GETARG_INT64(13));
	else
		tuplestore_clear(rsinfo->setResult);
	MemoryContextDelete(c->context);
	for (int i = 0; i < 2; i++)
		ab_rowpages_close(&c->pages[i]);
	return (Datum) 0;
}
