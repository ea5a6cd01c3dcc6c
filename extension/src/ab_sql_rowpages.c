/*
 * ab_sql_rowpages.c
 *	  Arguments that say which pages of a table of another database (ab_sql_rowpages.h).
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.  Nothing is written; a
 * crash leaves nothing.
 */
#include "ab_sql_rowpages.h"

#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "storage/smgr.h"
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
	Oid			default_spc;

	pages->rnode.dbNode = PG_GETARG_OID(first);
	pages->rnode.spcNode = PG_GETARG_OID(first + 1);
	pages->rnode.relNode = PG_GETARG_OID(first + 2);
	(void) ab_visible_database(pages->rnode.dbNode);
	ab_rowpages_hold(pages);
	default_spc = default_tablespace(pages->rnode.dbNode);
	if (!OidIsValid(pages->rnode.spcNode))
		pages->rnode.spcNode = default_spc;
	/* buffers do not know of a relation of another database that it is unlogged */
	if (smgrexists(smgropen(pages->rnode, InvalidBackendId), INIT_FORKNUM))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("file %u of database %u is of an unlogged relation",
						pages->rnode.relNode, pages->rnode.dbNode)));
	pages->nblocks = ab_relation_blocks(pages->rnode.dbNode, pages->rnode.spcNode,
										pages->rnode.relNode);
}

AbBlockRanges
ab_rowpages_ranges(const AbRowPages *pages, FunctionCallInfo fcinfo, int arg)
{
	bytea	   *given = PG_GETARG_BYTEA_PP(arg);
	AbBlockRanges ranges = {NULL, 0, 0};
	BlockNumber most = Max(pages[0].nblocks, pages[1].nblocks);

	if (VARSIZE_ANY_EXHDR(given) % sizeof(AbBlockRange) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%d bytes are no ranges of blocks",
						(int) VARSIZE_ANY_EXHDR(given))));
	ranges.n = VARSIZE_ANY_EXHDR(given) / sizeof(AbBlockRange);
	ranges.max = Max(ranges.n, 1);
	ranges.range = palloc_array(AbBlockRange, ranges.max);
	memcpy(ranges.range, VARDATA_ANY(given), VARSIZE_ANY_EXHDR(given));
	for (int i = 0; i < ranges.n; i++)
	{
		ranges.range[i].start = Min(ranges.range[i].start, most);
		ranges.range[i].end = Min(ranges.range[i].end, most);
	}
	return ranges;
}
