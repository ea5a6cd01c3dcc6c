/*
 * ab_sql_rowpages.c
 *	  Pages of a table of another database (ab_sql_rowpages.h).
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.  Pages are read through
 * shared buffers, under their content locks.  Nothing is written; a crash leaves nothing.
 */
#include "ab_sql_rowpages.h"

#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "storage/lmgr.h"
#include "storage/smgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "ab_sql.h"

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

Oid
ab_visible_database(Oid db)
{
	Oid			default_spc = default_tablespace(db);

	if (!ab_sql_may_see(db))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", get_database_name(db))));
	return default_spc;
}

void
ab_rowpages_open(AbRowPages *pages, FunctionCallInfo fcinfo, int first)
{
	RelFileNode rnode;
	Oid			default_spc;

	rnode.dbNode = PG_GETARG_OID(first);
	rnode.spcNode = PG_GETARG_OID(first + 1);
	rnode.relNode = PG_GETARG_OID(first + 2);
	(void) ab_visible_database(rnode.dbNode);
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
	pages->rnode = rnode;
	pages->nblocks = ab_relation_blocks(rnode.dbNode, rnode.spcNode, rnode.relNode);
}

void
ab_rowpages_close(AbRowPages *pages)
{
	UnlockSharedObject(DatabaseRelationId, pages->rnode.dbNode, 0, RowExclusiveLock);
}

Buffer
ab_rowpages_pin(const AbRowPages *pages, BlockNumber block, BufferAccessStrategy strategy)
{
	if (block >= pages->nblocks)
		return InvalidBuffer;
	return ReadBufferWithoutRelcache(pages->rnode, MAIN_FORKNUM, block, RBM_NORMAL,
									 strategy, true);
}

/*
 * Nothing is read while the contents are locked: a read may look at a parent's buffer.
 * Who writes locks pages of one database only, so two shared locks are in nobody's circle.
 */
void
ab_rowpages_compare(const AbRowPages *pages, BlockNumber block,
					BufferAccessStrategy strategy, AbPageRows *rows, Buffer *pinned)
{
	const char *page[2] = {NULL, NULL};

	for (int i = 0; i < 2; i++)
		pinned[i] = ab_rowpages_pin(&pages[i], block, strategy);
	for (int i = 0; i < 2; i++)
		if (BufferIsValid(pinned[i]))
		{
			LockBuffer(pinned[i], BUFFER_LOCK_SHARE);
			page[i] = BufferGetPage(pinned[i]);
		}
	ab_page_changed_rows(page[0], page[1], rows);
	for (int i = 0; i < 2; i++)
		if (BufferIsValid(pinned[i]))
			LockBuffer(pinned[i], BUFFER_LOCK_UNLOCK);
}

void
ab_rowpages_unpin(Buffer *pinned)
{
	for (int i = 0; i < 2; i++)
		if (BufferIsValid(pinned[i]))
			ReleaseBuffer(pinned[i]);
}

/*
 * Many pages share a few buffers: what others need stays in memory, and this process does
 * not have to map all of it.
 */
BufferAccessStrategy
ab_rowpages_strategy(const AbBlockRanges *ranges)
{
	uint64		nblocks = 0;

	for (int i = 0; i < ranges->n; i++)
		if (ranges->range[i].start < ranges->range[i].end)
			nblocks += ranges->range[i].end - ranges->range[i].start;
	return nblocks * 2 > NBuffers / 64 ? GetAccessStrategy(BAS_BULKREAD) : NULL;
}

/* ---- which ---- */

static Datum *
numbers_of(ArrayType *array, int *n)
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

AbBlockRanges
ab_rowpages_ranges(const AbRowPages *pages, FunctionCallInfo fcinfo, int first)
{
	AbBlockRanges ranges = {NULL, 0, 0};
	int64		most = Max(pages[0].nblocks, pages[1].nblocks);
	int			nends;
	Datum	   *starts = numbers_of(PG_GETARG_ARRAYTYPE_P(first), &ranges.n);
	Datum	   *ends = numbers_of(PG_GETARG_ARRAYTYPE_P(first + 1), &nends);

	if (ranges.n != nends)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	ranges.max = Max(ranges.n, 1);
	ranges.range = palloc_array(AbBlockRange, ranges.max);
	for (int i = 0; i < ranges.n; i++)
	{
		ranges.range[i].start = Max(0, Min(DatumGetInt64(starts[i]), most));
		ranges.range[i].end = Max(0, Min(DatumGetInt64(ends[i]), most));
	}
	return ranges;
}
