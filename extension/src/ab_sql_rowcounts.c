/*
 * ab_sql_rowcounts.c
 *	  branch._changed_counts: how many rows of two tables of one origin differ, told from
 *	  their pages alone; branch._changed_pairs: which, and in which columns.
 *
 * Backends in the control database.  The caller has a session in each of the databases,
 * which holds the table and sees one moment; what the session sees is what counts, so
 * this asks for the snapshots of both and looks at the row versions with them.  Those
 * that a snapshot sees stay where they are as long as its session lives.  Nothing is
 * written but hint bits; a crash leaves nothing.
 */
#include "ab_compat.h"

#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "ab_remote.h"
#include "ab_rowmatch.h"
#include "ab_rowreader.h"
#include "ab_rowshare.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_places.h"
#include "ab_sql_rowpages.h"

PG_FUNCTION_INFO_V1(ab_sql_changed_counts);
PG_FUNCTION_INFO_V1(ab_sql_changed_pairs);

/* A NOTICE for so many rows read: data.py has the same. */
#define ROWS_BETWEEN_NOTICES 100000

/* Pages of which pairs are told of may take this part of shared buffers. */
#define PAIRED_SHARE 4

typedef struct Counting
{
	AbRowReader reader;
	AbRowShare *share;
	AbRowMatch *match;
	bool		pairs;			/* not counted: they are told of one by one */
	MemoryContext context;		/* of some pages' rows */
	int64		read;			/* rows, those of before included */
	char	   *where;
	uint64		left[2];
	uint64		differ;
} Counting;

/* ---- snapshots ---- */

/* False: it is not known what the sessions see, or this process could not see it. */
static bool
take_snapshots(Counting *c, AbRemote **sessions, FunctionCallInfo fcinfo, int first)
{
	AbSeen		seen[2];

	ab_rowpages_sessions(c->reader.pages, fcinfo, first, sessions, seen);
	if (!seen[0].lasts || !seen[1].lasts)
		return false;
	for (int i = 0; i < 2; i++)
		ab_rowreader_parse_snapshot(seen[i].snapshot, &c->reader.snapshot[i]);
	return ab_rowreader_can_see(&c->reader);
}

/* ---- rows ---- */

static void
tell(Counting *c)
{
	if (c->pairs)
		return;					/* who asked for them reads them, and tells then */
	c->read++;
	if (c->read % ROWS_BETWEEN_NOTICES == 0)
		ereport(NOTICE, (errmsg_internal("%lld rows read%s", (long long) c->read, c->where)));
}

/* False: it cannot be told from the pages. */
static bool
count_row(Counting *c, const AbWaitingRow *row)
{
	AbWaitingRow *waiting;
	AbRowVerdict verdict = AB_ROWS_DIFFER;

	if (!ab_rowpart_has(ab_rowmatch_part(c->match), row->code))
		return true;
	tell(c);
	waiting = ab_rowmatch_find(c->match, row->code);
	if (waiting == NULL)
	{
		ab_rowmatch_add(c->match, row);
		return true;
	}
	if (waiting->side == row->side)
		return false;			/* two keys with one code */
	if (c->pairs)
	{
		uint64		columns;

		if (!ab_rowreader_columns(&c->reader, row, waiting, &columns))
			return false;
		ab_rowmatch_keep(c->match, waiting, row, columns);
		return true;
	}
	if ((!c->reader.layout.code_is_key || row->print == waiting->print ||
		 row->print == 0 || waiting->print == 0) &&
		!ab_rowreader_compare(&c->reader, row, waiting, &verdict))
		return false;
	ab_rowmatch_meet(c->match, waiting, row, verdict);
	return true;
}

static bool
count_rows(Counting *c, const AbWaitingRow *rows, int n)
{
	bool		told = true;

	for (int i = 0; told && i < n; i++)
		told = count_row(c, &rows[i]);
	return told;
}

static bool
count_blocks(Counting *c, const BlockNumber *blocks, int n)
{
	AbWaitingRow rows[AB_ROWS_IN_BLOCK];
	bool		told = true;

	for (int i = 0; told && i < n; i++)
	{
		int			nrows;

		CHECK_FOR_INTERRUPTS();
		told = ab_rowreader_block(&c->reader, blocks[i], ab_rowmatch_part(c->match), rows,
								  &nrows) &&
			count_rows(c, rows, nrows);
	}
	return told;
}

/* What the other process has found. */
static bool
count_others(Counting *c, bool wait)
{
	const AbWaitingRow *rows;
	int			n;
	AbRowShared shared;

	while ((shared = ab_rowshare_rows(c->share, wait, &rows, &n)) == AB_SHARED_ROWS)
		if (!count_rows(c, rows, n))
			return false;
	return shared != AB_SHARED_UNTOLD;
}

static bool
count_part(Counting *c)
{
	MemoryContext old = MemoryContextSwitchTo(c->context);
	BlockNumber blocks[AB_BLOCKS_TAKEN];
	bool		told = true;
	int			n;

	ab_rowshare_part(c->share, ab_rowmatch_part(c->match));
	while (told && ab_rowshare_take(c->share, blocks, &n))
	{
		told = count_blocks(c, blocks, n) && count_others(c, false);
		MemoryContextReset(c->context);
	}
	told = told && count_others(c, true);
	if (!told)
		ab_rowshare_stop(c->share);
	MemoryContextSwitchTo(old);
	return told;
}

/* ---- the answer ---- */

static void
add_pairs(AbPlaces *places, const AbRowPair *pairs, uint64 n)
{
	for (uint64 j = 0; j < n; j++)
		for (int i = 0; i < 2; i++)
			ab_places_add(&places[i], pairs[j].block[i], pairs[j].offset[i]);
}

/* Pairs that are to be compared by their types. */
static void
put_unknown(ReturnSetInfo *rsinfo, const AbRowPair *pairs, uint64 n)
{
	AbPlaces	places[2] = {0};
	Datum		values[6] = {0};
	bool		nulls[6] = {false, false, true, true, true, true};

	add_pairs(places, pairs, n);
	ab_places_put(rsinfo, places, values, nulls);
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

/* Of pairs that differ in the same columns, or of which that is not told. */
static void
put_pairs(ReturnSetInfo *rsinfo, const AbRowPair *pairs, uint64 n)
{
	AbPlaces	places[2] = {0};
	Datum		values[3] = {0};
	bool		nulls[3] = {false};

	nulls[2] = pairs->columns == AB_COLUMNS_UNTOLD;
	values[2] = Int64GetDatum((int64) pairs->columns);
	add_pairs(places, pairs, n);
	ab_places_put(rsinfo, places, values, nulls);
}

static int
by_columns(const void *a, const void *b)
{
	const AbRowPair *one = a;
	const AbRowPair *other = b;

	if (one->columns != other->columns)
		return one->columns < other->columns ? -1 : 1;
	if (one->block[0] != other->block[0])
		return one->block[0] < other->block[0] ? -1 : 1;
	return one->offset[0] - other->offset[0];
}

/* Those that are the same after all are left out. */
static void
put_all_pairs(ReturnSetInfo *rsinfo, AbRowPair *pairs, uint64 n)
{
	uint64		first = 0;

	qsort(pairs, n, sizeof(AbRowPair), by_columns);
	for (uint64 i = 1; i <= n; i++)
	{
		if (i < n && pairs[i].columns == pairs[first].columns && i - first < AB_PLACES_IN_LINE)
			continue;
		if (pairs[first].columns != 0)
			put_pairs(rsinfo, pairs + first, i - first);
		first = i;
	}
}

/* Rows with a key that the other side has not. */
static void
put_left(ReturnSetInfo *rsinfo, Counting *c)
{
	AbWaitingRow *rows;
	uint64		n = ab_rowmatch_left(c->match, &rows);
	AbPlaces	places[2] = {0};
	Datum		values[3] = {0};
	bool		nulls[3] = {true, true, true};

	for (uint64 i = 0; i < n; i++)
	{
		ab_places_add(&places[rows[i].side], rows[i].block, rows[i].offset);
		if (places[0].n + places[1].n == AB_PLACES_IN_LINE)
			ab_places_put(rsinfo, places, values, nulls);
	}
	if (places[0].n + places[1].n > 0)
		ab_places_put(rsinfo, places, values, nulls);
	pfree(rows);
}

static void
put_part(ReturnSetInfo *rsinfo, Counting *c)
{
	AbRowsFound found;

	ab_rowmatch_end_part(c->match, &found);
	if (c->pairs)
	{
		put_all_pairs(rsinfo, found.unknown, found.nunknown);
		put_left(rsinfo, c);
		return;
	}
	for (uint64 i = 0; i < found.nunknown; i += AB_PLACES_IN_LINE)
		put_unknown(rsinfo, found.unknown + i, Min(found.nunknown - i, AB_PLACES_IN_LINE));
	c->differ += found.differ;
	c->left[0] += found.left[0];
	c->left[1] += found.left[1];
}

/* False: it cannot be told from the pages. */
static bool
count_all(ReturnSetInfo *rsinfo, Counting *c, AbRemote **sessions)
{
	c->share = ab_rowshare_begin(&c->reader, sessions);
	c->match = ab_rowmatch_begin(get_hash_memory_limit());
	while (ab_rowmatch_next(c->match))
	{
		if (!count_part(c))
			return false;
		put_part(rsinfo, c);
	}
	ab_rowmatch_end(c->match);
	ab_rowpages_sessions_last(sessions);
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

static Counting *
begin(FunctionCallInfo fcinfo, bool pairs)
{
	Counting   *c = palloc0(sizeof(Counting));
	AbRowReader *reader = &c->reader;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < 2; i++)
		ab_rowpages_open(&reader->pages[i], fcinfo, i * 3);
	reader->ranges = ab_rowpages_ranges(reader->pages, fcinfo, 6);
	/* what is found in pairs is read again, here and by who asked */
	if (!pairs || ab_rowpages_count(&reader->ranges) * 2 > NBuffers / PAIRED_SHARE)
		reader->strategy = ab_rowpages_strategy(&reader->ranges);
	reader->layout = layout_of(fcinfo, 9);
	c->pairs = pairs;
	c->read = PG_GETARG_INT64(12);
	c->where = text_to_cstring(PG_GETARG_TEXT_PP(13));
	c->context = AllocSetContextCreate(CurrentMemoryContext, "rows of pages",
									   ALLOCSET_DEFAULT_SIZES);
	return c;
}

static void
end(Counting *c)
{
	MemoryContextDelete(c->context);
	for (int i = 0; i < 2; i++)
		ab_rowpages_release(&c->reader.pages[i]);
}

/*
 * Lines of places of rows that have the same key and may be the same, and a last one with
 * the numbers of rows that differ.  No line at all: it cannot be told from the pages.
 */
Datum
ab_sql_changed_counts(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Counting   *c = begin(fcinfo, false);
	AbRemote   *sessions[2];

	if (take_snapshots(c, sessions, fcinfo, 7) && count_all(rsinfo, c, sessions))
		put_counts(rsinfo, c, PG_GETARG_INT64(12));
	else
		tuplestore_clear(rsinfo->setResult);
	end(c);
	return (Datum) 0;
}

/*
 * A line without values, then places of rows: of either side in the same order with the
 * columns in which the two versions differ, as bits by number; else rows of which that is
 * not known, or that only one side has.  No line at all: it cannot be told from the pages.
 */
Datum
ab_sql_changed_pairs(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Counting   *c = begin(fcinfo, true);
	Datum		values[3] = {0};
	bool		nulls[3] = {true, true, true};
	AbRemote   *sessions[2];

	if (c->reader.layout.natts > AB_COLUMNS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are more columns than bits")));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	if (!take_snapshots(c, sessions, fcinfo, 7) || !count_all(rsinfo, c, sessions))
		tuplestore_clear(rsinfo->setResult);
	end(c);
	return (Datum) 0;
}
