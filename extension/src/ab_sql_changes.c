/*
 * ab_sql_changes.c
 *	  branch._changed_blocks: in which blocks tables of two databases may differ, and
 *	  branch._changed_rows: which rows of such blocks do.
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.
 */
#include "ab_compat.h"

#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/smgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "ab_changes.h"
#include "ab_pagerows.h"
#include "ab_settings.h"
#include "ab_sql.h"

PG_FUNCTION_INFO_V1(ab_sql_changed_blocks);
PG_FUNCTION_INFO_V1(ab_sql_changed_rows);

/* Rows told of in one line. */
#define ROWS_IN_LINE 2000

/* One of the two databases, and its tables: tablespaces (0: its default) and file numbers. */
typedef struct Side
{
	Oid			db;
	Oid			default_spc;
	Datum	   *spaces;
	Datum	   *files;
	int			n;
} Side;

static Oid
default_tablespace(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Oid			spc;

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database %u does not exist", db)));
	spc = ((Form_pg_database) GETSTRUCT(tup))->dattablespace;
	ReleaseSysCache(tup);
	return spc;
}

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

/* A database whose files the caller may look at, and its default tablespace. */
static Oid
visible_database(Oid db)
{
	Oid			default_spc = default_tablespace(db);

	if (!ab_sql_may_see(db))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", get_database_name(db))));
	return default_spc;
}

/* Arguments number first (a database), first + 1 and first + 2 (arrays). */
static Side
side_of(FunctionCallInfo fcinfo, int first)
{
	Side		side;
	int			n;

	side.db = PG_GETARG_OID(first);
	side.default_spc = visible_database(side.db);
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
	Oid			spc = DatumGetObjectId(side->spaces[i]);

	return OidIsValid(spc) ? spc : side->default_spc;
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

static Datum
bounds(const AbBlockRanges *ranges, bool ends)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(ranges->n, 1));

	for (int i = 0; i < ranges->n; i++)
		values[i] = Int64GetDatum(ends ? ranges->range[i].end : ranges->range[i].start);
	return PointerGetDatum(construct_array(values, ranges->n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static void
put_changes(AbKinship *k, const Side *a, const Side *b, int i, Datum *values, bool *nulls)
{
	AbBlockRanges ranges = {NULL, 0, 0};

	nulls[0] = nulls[1] = true;
	if (k == NULL || !OidIsValid(file_of(a, i)) || file_of(a, i) != file_of(b, i) ||
		space_of(a, i) != space_of(b, i) ||
		!ab_kinship_changes(k, space_of(a, i), file_of(a, i), &ranges))
		return;
	values[0] = bounds(&ranges, false);
	values[1] = bounds(&ranges, true);
	nulls[0] = nulls[1] = false;
}

static void
put_table(ReturnSetInfo *rsinfo, AbKinship *k, const Side *a, const Side *b, int i)
{
	Datum		values[5] = {0};
	bool		nulls[5] = {false};

	CHECK_FOR_INTERRUPTS();
	values[0] = Int32GetDatum(i + 1);
	put_size(a, i, &values[1], &nulls[1]);
	put_size(b, i, &values[2], &nulls[2]);
	put_changes(k, a, b, i, &values[3], &nulls[3]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * (number from 1, size in a, size in b, first blocks, blocks behind the last ones) of
 * each table; the last two are NULL if it cannot be told.
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

/* One side's file, and its rows in the line that is being put together. */
typedef struct RowSide
{
	RelFileNode rnode;
	BlockNumber nblocks;
	PGAlignedBlock page;
	StringInfoData places;
	int			n;
} RowSide;

static void
begin_line(RowSide *side)
{
	resetStringInfo(&side->places);
	side->n = 0;
}

/*
 * Arguments number first (a database), first + 1 and first + 2 (its table).  The database
 * is held until close_row_side(): pages of one that is dropped must not come into shared
 * buffers any more.
 */
static void
open_row_side(RowSide *side, FunctionCallInfo fcinfo, int first)
{
	Oid			default_spc;
	RelFileNode rnode;

	rnode.dbNode = PG_GETARG_OID(first);
	rnode.spcNode = PG_GETARG_OID(first + 1);
	rnode.relNode = PG_GETARG_OID(first + 2);
	(void) visible_database(rnode.dbNode);
	LockSharedObject(DatabaseRelationId, rnode.dbNode, 0, RowExclusiveLock);
	default_spc = default_tablespace(rnode.dbNode);
	if (!OidIsValid(rnode.spcNode))
		rnode.spcNode = default_spc;
	/* buffers do not know of a relation of another database that it is unlogged */
	if (smgrexists(smgropen(rnode, InvalidBackendId), INIT_FORKNUM))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("file %u of database %u is of an unlogged relation",
						rnode.relNode, rnode.dbNode)));
	side->rnode = rnode;
	side->nblocks = ab_relation_blocks(rnode.dbNode, rnode.spcNode, rnode.relNode);
	initStringInfo(&side->places);
	begin_line(side);
}

static void
close_row_side(RowSide *side)
{
	UnlockSharedObject(DatabaseRelationId, side->rnode.dbNode, 0, RowExclusiveLock);
}

/* NULL behind the end. */
static const char *
read_row_page(RowSide *side, BlockNumber block, BufferAccessStrategy strategy)
{
	Buffer		buffer;

	if (block >= side->nblocks)
		return NULL;
	buffer = ReadBufferWithoutRelcache(side->rnode, MAIN_FORKNUM, block, RBM_NORMAL,
									   strategy, true);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	memcpy(side->page.data, BufferGetPage(buffer), BLCKSZ);
	UnlockReleaseBuffer(buffer);
	return side->page.data;
}

static void
add_places(RowSide *side, BlockNumber block, const OffsetNumber *places, int n)
{
	for (int i = 0; i < n; i++)
		appendStringInfo(&side->places, "%s\"(%u,%u)\"", side->n++ > 0 ? "," : "{",
						 block, places[i]);
}

/* Places of both sides as the text of arrays of tids; NULL: none. */
static void
end_line(ReturnSetInfo *rsinfo, RowSide *sides)
{
	Datum		values[2];
	bool		nulls[2];

	if (sides[0].n == 0 && sides[1].n == 0)
		return;
	for (int i = 0; i < 2; i++)
	{
		nulls[i] = sides[i].n == 0;
		if (nulls[i])
			continue;
		appendStringInfoChar(&sides[i].places, '}');
		values[i] = CStringGetTextDatum(sides[i].places.data);
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	for (int i = 0; i < 2; i++)
	{
		if (!nulls[i])
			pfree(DatumGetPointer(values[i]));
		begin_line(&sides[i]);
	}
}

static void
put_rows_of(ReturnSetInfo *rsinfo, RowSide *sides, BlockNumber start, BlockNumber end)
{
	BufferAccessStrategy strategy = NULL;

	if (end - start > (BlockNumber) NBuffers / 4)
		strategy = GetAccessStrategy(BAS_BULKREAD);
	for (BlockNumber block = start; block < end; block++)
	{
		AbPageRows	rows;

		CHECK_FOR_INTERRUPTS();
		ab_page_changed_rows(read_row_page(&sides[0], block, strategy),
							 read_row_page(&sides[1], block, strategy), &rows);
		add_places(&sides[0], block, rows.of_a, rows.na);
		add_places(&sides[1], block, rows.of_b, rows.nb);
		if (Max(sides[0].n, sides[1].n) >= ROWS_IN_LINE)
			end_line(rsinfo, sides);
	}
	if (strategy != NULL)
		FreeAccessStrategy(strategy);
}

/* Blocks [start, end) of arguments, of the longer of the two. */
static BlockNumber
block_of(Datum number, const RowSide *sides)
{
	int64		most = Max(sides[0].nblocks, sides[1].nblocks);

	return (BlockNumber) Max(0, Min(DatumGetInt64(number), most));
}

static Datum *
bounds_of(ArrayType *array, int *n)
{
	Datum	   *numbers;

	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays must be one-dimensional and without nulls")));
	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &numbers, NULL, n);
	return numbers;
}

/*
 * Row versions that only one of two tables of one origin has, in some of their blocks, as
 * texts of tid[], some at a time.
 */
Datum
ab_sql_changed_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	RowSide    *sides = palloc0_array(RowSide, 2);
	Datum	   *starts;
	Datum	   *ends;
	int			n;
	int			nends;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	open_row_side(&sides[0], fcinfo, 0);
	open_row_side(&sides[1], fcinfo, 3);
	starts = bounds_of(PG_GETARG_ARRAYTYPE_P(6), &n);
	ends = bounds_of(PG_GETARG_ARRAYTYPE_P(7), &nends);
	if (n != nends)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	for (int i = 0; i < n; i++)
		put_rows_of(rsinfo, sides, block_of(starts[i], sides), block_of(ends[i], sides));
	end_line(rsinfo, sides);
	close_row_side(&sides[0]);
	close_row_side(&sides[1]);
	return (Datum) 0;
}
