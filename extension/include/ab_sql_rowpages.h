/*
 * ab_sql_rowpages.h
 *	  Arguments that say which pages of a table of another database to look at.
 */
#ifndef AB_SQL_ROWPAGES_H
#define AB_SQL_ROWPAGES_H

#include "ab_compat.h"

#include "fmgr.h"

#include "ab_remote.h"
#include "ab_rowpages.h"

/*
 * Arguments number first (a database), first + 1 (tablespace, 0: the database's) and
 * first + 2 (file).  The database is held until ab_rowpages_release().
 * Errors: 3D000, 42501, 22023 the table is unlogged.
 */
extern void ab_rowpages_open(AbRowPages *pages, FunctionCallInfo fcinfo, int first);

/*
 * An argument with ranges of blocks, each its first one and the one behind its last, of
 * 4 bytes in this machine's order: cut to the longer one of two tables.  In the order
 * given.  Errors: 22023.
 */
extern AbBlockRanges ab_rowpages_ranges(const AbRowPages *pages, FunctionCallInfo fcinfo,
										int arg);

/* What a session sees, as pg_current_snapshot() gives it. */
typedef struct AbSeen
{
	char	   *snapshot;
	bool		lasts;			/* the same to its end, and it has no changes of its own */
} AbSeen;

/*
 * Arguments number first and first + 1: the caller's sessions in the two databases.  They
 * are ready then, what was still to come of them is thrown away.  Each side's file has to be
 * a table's that the session's role may read as a whole, for its rows are told of without
 * reading them.  Errors: 22023; 42501 no SELECT right, or a policy hides rows of it.
 */
extern void ab_rowpages_sessions(const AbRowPages *pages, FunctionCallInfo fcinfo, int first,
								 AbRemote **sessions, AbSeen *seen);

/*
 * Both have lived until now, so what they see was not removed while pages were looked at;
 * else raise why not.
 */
extern void ab_rowpages_sessions_last(AbRemote **sessions);

/* A database whose files the caller may look at, and its default tablespace.  42501. */
extern Oid	ab_visible_database(Oid db);

/* A tablespace as it is given, 0 for a database's default one.  22023: it is not of databases. */
extern Oid	ab_tablespace_of(Oid spc, Oid default_spc);

#endif							/* AB_SQL_ROWPAGES_H */
