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

#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
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
#include "ab_sql_rowpages.h"

PG_FUNCTION_INFO_V1(ab_sql_changed_counts);

/* A NOTICE for so many rows read: data.py has the same. */
#define ROWS_BETWEEN_NOTICES 100000

typedef struct Counting
{
	AbRowReader reader;
	AbRowShare *share;
	AbRowMatch *match;
	MemoryContext context;		/* of some pages' rows */
	int64		read;			/* rows, those of before included */
	char	   *where;
	uint64		left[2];
	uint64		differ;
} Counting;

/* ---- snapshots ---- */

/* What a session sees.  False: it does not see the same to its end, or has changes of its own. */
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
						ab_rowreader_parse_snapshot(values[0], snapshot);
						found = true;
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

/* False: it is not known what they see, or this process could not see it. */
static bool
take_snapshots(Counting *c, AbRemote **session, FunctionCallInfo fcinfo, int first)
{
	bool		found = true;

	for (int i = 0; i < 2; i++)
	{
		session[i] = ab_remote_find(PG_GETARG_INT32(first + i));
		if (session[i] == NULL ||
			get_database_oid(ab_remote_database(session[i]), true) !=
			c->reader.pages[i].rnode.dbNode)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there is no such session in database %u",
							c->reader.pages[i].rnode.dbNode)));
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
		found &= take_snapshot(session[i], &c->reader.snapshot[i]);
	return found && ab_rowreader_can_see(&c->reader);
}

/* ---- rows ---- */

static void
tell(Counting *c)
{
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
count_all(ReturnSetInfo *rsinfo, Counting *c, AbRemote **sessions)
{
	c->share = ab_rowshare_begin(&c->reader, sessions);
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
	AbRowReader *reader = &c->reader;
	AbRemote   *sessions[2];

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < 2; i++)
		ab_rowpages_open(&reader->pages[i], fcinfo, i * 3);
	reader->ranges = ab_rowpages_ranges(reader->pages, fcinfo, 6);
	reader->strategy = ab_rowpages_strategy(&reader->ranges);
	reader->layout = layout_of(fcinfo, 9);
	c->read = PG_GETARG_INT64(12);
	c->where = text_to_cstring(PG_GETARG_TEXT_PP(13));
	c->context = AllocSetContextCreate(CurrentMemoryContext, "rows of pages",
									   ALLOCSET_DEFAULT_SIZES);
	if (take_snapshots(c, sessions, fcinfo, 7) && count_all(rsinfo, c, sessions))
		put_counts(rsinfo, c, PG_GETARG_INT64(12));
	else
		tuplestore_clear(rsinfo->setResult);
	MemoryContextDelete(c->context);
	for (int i = 0; i < 2; i++)
		ab_rowpages_release(&reader->pages[i]);
	return (Datum) 0;
}
