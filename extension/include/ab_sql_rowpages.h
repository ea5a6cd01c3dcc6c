/*
 * ab_sql_rowpages.h
 *	  Arguments that say which pages of a table of another database to look at.
 */
#ifndef AB_SQL_ROWPAGES_H
#define AB_SQL_ROWPAGES_H

#include "ab_compat.h"

#include "fmgr.h"
#include "ab_rowpages.h"

/* Places of rows told of in one line of a result. */
#define AB_ROWS_IN_LINE 2000

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

/* A database whose files the caller may look at, and its default tablespace.  42501. */
extern Oid	ab_visible_database(Oid db);

#endif							/* AB_SQL_ROWPAGES_H */
