/*
 * ab_sql_rowpages.c
 *	  Arguments that say which pages of a table of another database (ab_sql_rowpages.h).
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.  The databases are not
 * this one: whether he may read a table, his session there says.  What it is asked means
 * the same whatever he has made there or set.  Nothing is written; a crash leaves nothing.
 */
#include "ab_sql_rowpages.h"

#include "catalog/pg_database.h"
#include "catalog/pg_tablespace_d.h"
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

Oid
ab_tablespace_of(Oid spc, Oid default_spc)
{
	if (spc == GLOBALTABLESPACE_OID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("relations in tablespace %u are no database's", spc)));
	return OidIsValid(spc) ? spc : default_spc;
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
	pages->rnode.spcNode = ab_tablespace_of(pages->rnode.spcNode, default_spc);
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

/* ---- sessions ---- */

/* What the session sees, whether it sees that to its end, and what the role may do. */
#define QUESTION \
	"SELECT pg_catalog.pg_current_snapshot()," \
	" pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=)" \
	" ANY ('{repeatable read,serializable}'::pg_catalog.text[])" \
	" AND pg_catalog.pg_current_xact_id_if_assigned() IS NULL" \
	" AND pg_catalog.current_setting('old_snapshot_threshold') OPERATOR(pg_catalog.=) '-1'," \
	" (SELECT CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'SELECT') THEN 'denied'" \
	" WHEN pg_catalog.row_security_active(c.oid) THEN 'policy' ELSE 'read' END" \
	" FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=)" \
	" pg_catalog.pg_filenode_relation(%u, %u) AND c.relkind OPERATOR(pg_catalog.=) 'r')," \
	" pg_catalog.pg_filenode_relation(%u, %u)"

/* The caller's own, in the database that the pages are of. */
static AbRemote *
session_in(const AbRowPages *pages, int number)
{
	AbRemote   *session = ab_remote_find(number);

	if (session == NULL ||
		get_database_oid(ab_remote_database(session), true) != pages->rnode.dbNode)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no such session in database %u", pages->rnode.dbNode)));
	return session;
}

static void
ask(const AbRowPages *pages, AbRemote *session)
{
	Oid			spc = pages->rnode.spcNode;
	Oid			file = pages->rnode.relNode;
	char	   *sql = psprintf(QUESTION, spc, file, spc, file);

	while (!ab_remote_is_ready(session))
		(void) ab_remote_next(session);
	ab_remote_send(session, sql, 0);
	pfree(sql);
}

/* The row of the answer. */
static void
take_answer(const AbRowPages *pages, AbRemote *session, AbSeen *seen)
{
	char	  **values = ab_remote_values(session, NULL);
	const char *right = values[2];

	if (right == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("file %u of database \"%s\" is not a table's",
						pages->rnode.relNode, ab_remote_database(session))));
	if (strcmp(right, "denied") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", values[3]),
				 errdetail("It is in database \"%s\".", ab_remote_database(session))));
	if (strcmp(right, "policy") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("query would be affected by row-level security policy for table \"%s\"",
						values[3]),
				 errdetail("It is in database \"%s\".", ab_remote_database(session))));
	seen->snapshot = pstrdup(values[0]);
	seen->lasts = strcmp(values[1], "t") == 0;
}

void
ab_rowpages_sessions(const AbRowPages *pages, FunctionCallInfo fcinfo, int first,
					 AbRemote **sessions, AbSeen *seen)
{
	for (int i = 0; i < 2; i++)
		sessions[i] = session_in(&pages[i], PG_GETARG_INT32(first + i));
	for (int i = 0; i < 2; i++)
		ask(&pages[i], sessions[i]);
	for (int i = 0; i < 2; i++)
	{
		AbRemoteEvent event;

		seen[i].snapshot = NULL;
		while ((event = ab_remote_next(sessions[i])) != AB_REMOTE_READY)
			if (event == AB_REMOTE_ROW)
				take_answer(&pages[i], sessions[i], &seen[i]);
		if (seen[i].snapshot == NULL)
			elog(ERROR, "session in database \"%s\" has not answered",
				 ab_remote_database(sessions[i]));
	}
}

void
ab_rowpages_sessions_last(AbRemote **sessions)
{
	for (int i = 0; i < 2; i++)
		ab_remote_send(sessions[i], "SELECT", 0);
	for (int i = 0; i < 2; i++)
		while (ab_remote_next(sessions[i]) != AB_REMOTE_READY)
			;
}
