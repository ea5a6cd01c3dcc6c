/*
 * ab_sql_snapshot.h
 *	  Taking snapshots and giving them names.
 */
#ifndef AB_SQL_SNAPSHOT_H
#define AB_SQL_SNAPSHOT_H

#include "ab_types.h"

#include "datatype/timestamp.h"

/* Names: 42602, 42622, 42939 for those that cannot be one. */
extern void ab_sql_check_snapshot_name(const char *name);

/* Now + keep; 22023 if that is not in the future. */
extern TimestampTz ab_sql_keep_until(const Interval *keep);

/*
 * A snapshot of a database as it is now, protected to the end of the transaction.
 * The caller has checked rights; the database is locked here.  kept: it is to be
 * kept, which 55000 says if it could not be for long.
 */
extern AbSnapId ab_sql_take_snapshot(Oid db, const char *dbname, bool kept);

/* Give it a name, until then (NULL: for ever); 42710 if it is taken. */
extern void ab_sql_name_snapshot(const char *name, AbSnapId id, Oid source,
								 const char *source_name, const TimestampTz *until);

#endif							/* AB_SQL_SNAPSHOT_H */
