/*
 * ab_sql_changes.c
 *	  branch._changed_blocks: in which blocks tables of two databases may differ, and
 *	  branch._changed_rows: which rows of such blocks do.
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.
 */
#include "ab_compat.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "ab_changes.h"
#include "ab_pagerows.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_rowpages.h"

PG_FUNCTION_INFO_V1(ab_sql_changed_blocks);
PG_FUNCTION_INFO_V1(ab_sql_changed_rows);

/* One of the two databases, and its tables: tablespaces (0: its default) and file numbers. */
typedef struct Side
{
	Oid			db;
	Oid			default_spc;
	Datum	   *spaces;
	Datum	   *files;
	int			n;
} Side;

static Datum *
oids_of(ArrayType *array, int *n)
{
	Datum	   *oids;

	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays must be one-dimensional and without nulls")));
	deconstruct_array(array, OIDOID, sizeof(Oid), true, TYPALIGN_INT, &oids, NULL, n);
	return oids;
}

/* Arguments number first (a database), first + 1 and first + 2 (arrays). */
static Side
side_of(FunctionCallInfo fcinfo, int first)
{
	Side		side;
	int			n;

	side.db = PG_GETARG_OID(first);
	side.default_spc = ab_visible_database(side.db);
	side.spaces = oids_of(PG_GETARG_ARRAYTYPE_P(first + 1), &side.n);
	side.files = oids_of(PG_GETARG_ARRAYTYPE_P(first + 2), &n);
	if (n != side.n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	return side;
}

static Oid
space_of(const Side *side, int i)
{
	return ab_tablespace_of(DatumGetObjectId(side->spaces[i]), side->default_spc);
}

static Oid
file_of(const Side *side, int i)
{
	return DatumGetObjectId(side->files[i]);
}

/* Number of blocks; NULL without a table. */
static void
put_size(const Side *side, int i, Datum *value, bool *null)
{
	*null = !OidIsValid(file_of(side, i));
	if (!*null)
		*value = Int64GetDatum(ab_relation_blocks(side->db, space_of(side, i),
												  file_of(side, i)));
}

static int
by_start(const void *a, const void *b)
{
	BlockNumber one = ((const AbBlockRange *) a)->start;
	BlockNumber other = ((const AbBlockRange *) b)->start;

	return (one > other) - (one < other);
}

/* Ascending, with gaps between them. */
static void
merge_ranges(AbBlockRanges *ranges)
{
	int			n = 0;

	if (ranges->n == 0)
		return;
	qsort(ranges->range, ranges->n, sizeof(AbBlockRange), by_start);
	for (int i = 1; i < ranges->n; i++)
	{
		if (ranges->range[i].start <= ranges->range[n].end)
			ranges->range[n].end = Max(ranges->range[n].end, ranges->range[i].end);
		else
			ranges->range[++n] = ranges->range[i];
	}
	ranges->n = n + 1;
}

/* Ranges as ab_rowpages_ranges() takes them. */
static Datum
packed(const AbBlockRanges *ranges)
{
	Size		size = sizeof(AbBlockRange) * ranges->n;
	bytea	   *bytes = palloc(VARHDRSZ + size);

	SET_VARSIZE(bytes, VARHDRSZ + size);
	if (size > 0)
		memcpy(VARDATA(bytes), ranges->range, size);
	return PointerGetDatum(bytes);
}

static void
put_changes(AbKinship *k, const Side *a, const Side *b, int i, Datum *value, bool *null)
{
	AbBlockRanges ranges = {NULL, 0, 0};

	*null = true;
	if (k == NULL || !OidIsValid(file_of(a, i)) || file_of(a, i) != file_of(b, i) ||
		space_of(a, i) != space_of(b, i) ||
		!ab_kinship_changes(k, space_of(a, i), file_of(a, i), &ranges))
		return;
	merge_ranges(&ranges);
	*value = packed(&ranges);
	*null = false;
}

static void
put_table(ReturnSetInfo *rsinfo, AbKinship *k, const Side *a, const Side *b, int i)
{
	Datum		values[4] = {0};
	bool		nulls[4] = {false};

	CHECK_FOR_INTERRUPTS();
	values[0] = Int32GetDatum(i + 1);
	put_size(a, i, &values[1], &nulls[1]);
	put_size(b, i, &values[2], &nulls[2]);
	put_changes(k, a, b, i, &values[3], &nulls[3]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * (number from 1, size in a, size in b, ranges of blocks) of each table; the last,
 * ascending and with gaps between ranges, is NULL if it cannot be told.
 */
Datum
ab_sql_changed_blocks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Side		a;
	Side		b;
	AbKinship  *k;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	a = side_of(fcinfo, 0);
	b = side_of(fcinfo, 3);
	if (a.n != b.n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	k = ab_kinship(a.db, b.db);
	PG_TRY();
	{
		for (int i = 0; i < a.n; i++)
			put_table(rsinfo, k, &a, &b, i);
	}
	PG_FINALLY();
	{
		if (k != NULL)
			ab_kinship_release(k);
	}
	PG_END_TRY();
	return (Datum) 0;
}

/* ---- rows ---- */

/* Rows of one side in the line that is being put together. */
typedef struct Line
{
	StringInfoData places;
	int			n;
} Line;

static void
begin_line(Line *line)
{
	resetStringInfo(&line->places);
	line->n = 0;
}

static void
add_places(Line *line, BlockNumber block, const OffsetNumber *places, int n)
{
	for (int i = 0; i < n; i++)
		appendStringInfo(&line->places, "%s\"(%u,%u)\"", line->n++ > 0 ? "," : "{",
						 block, places[i]);
}

/* Places of both sides as the text of arrays of tids; NULL: none. */
static void
end_line(ReturnSetInfo *rsinfo, Line *lines)
{
	Datum		values[2];
	bool		nulls[2];

	if (lines[0].n == 0 && lines[1].n == 0)
		return;
	for (int i = 0; i < 2; i++)
	{
		nulls[i] = lines[i].n == 0;
		if (nulls[i])
			continue;
		appendStringInfoChar(&lines[i].places, '}');
		values[i] = CStringGetTextDatum(lines[i].places.data);
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	for (int i = 0; i < 2; i++)
	{
		if (!nulls[i])
			pfree(DatumGetPointer(values[i]));
		begin_line(&lines[i]);
	}
}

static void
put_rows_of(ReturnSetInfo *rsinfo, const AbRowPages *pages, Line *lines,
			BufferAccessStrategy strategy, const AbBlockRange *range)
{
	for (BlockNumber block = range->start; block < range->end; block++)
	{
		AbPageRows	rows;
		Buffer		pinned[2];

		CHECK_FOR_INTERRUPTS();
		ab_rowpages_compare(pages, block, strategy, &rows, pinned);
		ab_rowpages_unpin(pinned);
		add_places(&lines[0], block, rows.of_a, rows.na);
		add_places(&lines[1], block, rows.of_b, rows.nb);
		if (Max(lines[0].n, lines[1].n) >= AB_ROWS_IN_LINE)
			end_line(rsinfo, lines);
	}
}

/*
 * Row versions that only one of two tables of one origin has, in some of their blocks, as
 * texts of tid[], some at a time.
 */
Datum
ab_sql_changed_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	AbRowPages	pages[2];
	Line		lines[2];
	AbBlockRanges ranges;
	BufferAccessStrategy strategy;
	AbRemote   *sessions[2];
	AbSeen		seen[2];

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < 2; i++)
	{
		ab_rowpages_open(&pages[i], fcinfo, i * 3);
		initStringInfo(&lines[i].places);
		begin_line(&lines[i]);
	}
	ranges = ab_rowpages_ranges(pages, fcinfo, 6);
	ab_rowpages_sessions(pages, fcinfo, 7, sessions, seen);
	strategy = ab_rowpages_strategy(&ranges);
	for (int i = 0; i < ranges.n; i++)
		put_rows_of(rsinfo, pages, lines, strategy, &ranges.range[i]);
	end_line(rsinfo, lines);
	for (int i = 0; i < 2; i++)
		ab_rowpages_release(&pages[i]);
	return (Datum) 0;
}
