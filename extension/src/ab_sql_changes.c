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
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "ab_changes.h"
#include "ab_rowreader.h"
#include "ab_rowshare.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_places.h"
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

static void
put_rows(AbPlaces *places, const AbWaitingRow *rows, int n)
{
	for (int i = 0; i < n; i++)
		ab_places_add(&places[rows[i].side], rows[i].block, rows[i].offset);
}

static void
put_line(ReturnSetInfo *rsinfo, AbPlaces *places, int at_least)
{
	Datum		values[2];
	bool		nulls[2];

	if (Max(places[0].n, places[1].n) >= at_least)
		ab_places_put(rsinfo, places, values, nulls);
}

/* What other processes have found. */
static void
put_others(ReturnSetInfo *rsinfo, AbRowShare *share, AbPlaces *places, bool wait)
{
	const AbWaitingRow *rows;
	int			n;

	while (ab_rowshare_rows(share, wait, &rows, &n) == AB_SHARED_ROWS)
	{
		put_rows(places, rows, n);
		put_line(rsinfo, places, AB_PLACES_IN_LINE);
	}
}

static void
put_all_rows(ReturnSetInfo *rsinfo, const AbRowReader *reader, AbRemote **sessions)
{
	AbRowShare *share = ab_rowshare_begin(reader, sessions);
	AbRowPart	all = {0, 0};
	AbPlaces	places[2] = {0};
	BlockNumber blocks[AB_BLOCKS_TAKEN];
	int			nblocks;

	ab_rowshare_part(share, all);
	while (ab_rowshare_take(share, blocks, &nblocks))
	{
		for (int i = 0; i < nblocks; i++)
		{
			AbWaitingRow rows[AB_ROWS_IN_BLOCK];
			int			n;

			CHECK_FOR_INTERRUPTS();
			(void) ab_rowreader_block(reader, blocks[i], all, rows, &n);
			put_rows(places, rows, n);
			put_line(rsinfo, places, AB_PLACES_IN_LINE);
		}
		put_others(rsinfo, share, places, false);
	}
	put_others(rsinfo, share, places, true);
	put_line(rsinfo, places, 1);
}

/*
 * Row versions that only one of two tables of one origin has, in some of their blocks, as
 * texts of tid[], some at a time.
 */
Datum
ab_sql_changed_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	AbRowReader reader = {0};
	AbRemote   *sessions[2];
	AbSeen		seen[2];

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	reader.only_places = true;
	for (int i = 0; i < 2; i++)
		ab_rowpages_open(&reader.pages[i], fcinfo, i * 3);
	reader.ranges = ab_rowpages_ranges(reader.pages, fcinfo, 6);
	ab_rowpages_sessions(reader.pages, fcinfo, 7, sessions, seen);
	reader.strategy = ab_rowpages_strategy(&reader.ranges);
	put_all_rows(rsinfo, &reader, sessions);
	for (int i = 0; i < 2; i++)
		ab_rowpages_release(&reader.pages[i]);
	return (Datum) 0;
}
