/*
 * ab_sql.h
 *	  What the functions that SQL calls have in common.
 *
 * Each of them begins with ab_require_control_database(), checks rights itself where
 * PUBLIC may call it, and answers with rows of the extension's views, read with the
 * caller's rights.
 */
#ifndef AB_SQL_H
#define AB_SQL_H

#include "ab_types.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/timestamp.h"

/* 22023, which names the argument, if it is null. */
extern void ab_sql_require(FunctionCallInfo fcinfo, int n, const char *argument);

/* A text argument as a C string; NULL if it is null or was not given. */
extern char *ab_sql_text(FunctionCallInfo fcinfo, int n);

/* Same, but it is required. */
extern char *ab_sql_required_text(FunctionCallInfo fcinfo, int n, const char *argument);

/* Boolean argument; null counts as the value given. */
extern bool ab_sql_bool(FunctionCallInfo fcinfo, int n, bool when_null);

/*
 * The time that lies an interval argument after another one, or before it (sign -1); 22023
 * if there is no such time.
 */
extern TimestampTz ab_sql_time_from(TimestampTz from, const Interval *span, int sign,
									const char *argument);

/*
 * The single row a query gives for its one parameter, as one composite value in the
 * caller's memory; 42501 if it gives none.  The query selects one column.
 */
extern Datum ab_sql_row(const char *query, Oid type, Datum value, const char *what);

/* That error. */
extern void ab_sql_raise_unseen(const char *what) pg_attribute_noreturn();

/*
 * The row of a branch in branch.branches, without pinned_bytes, in the caller's memory;
 * 42501 if the caller may not see it (ab_sql_branchrow.c).
 */
extern Datum ab_sql_branch_row(Oid db, const char *name);

/*
 * The branch of that name, to be handed out instead of a new one; InvalidOid if the name
 * is free, 42P04 if something else has it.  Somebody else's would put the caller's
 * statements at the mercy of that role's triggers: it has to be the wanted role's own,
 * or a superuser's.
 */
extern Oid	ab_sql_living_branch(const char *name, Oid wanted);

/* May the caller see sizes and relations of a database?  Like pg_database_size(),
 * but its owner always may; of one that is gone: those who may read all. */
extern bool ab_sql_may_see(Oid db);

/* Disk space of a file of a snapshot; 0 if there is none. */
extern int64 ab_sql_file_bytes(AbSnapId id, const char *suffix);

#endif							/* AB_SQL_H */
