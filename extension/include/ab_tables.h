/*
 * ab_tables.h
 *	  The extension's own tables in the control database (schema branch).
 *
 * They hold what people add: names of snapshots, which parents have the agents'
 * table.  Nobody but their owner may touch them; the functions below do it with the
 * owner's rights on behalf of whoever calls, so what they are given must be
 * checked before.
 */
#ifndef AB_TABLES_H
#define AB_TABLES_H

#include "ab_types.h"

#include "nodes/pg_list.h"

/*
 * One statement through SPI (the caller is connected), as the owner of the
 * extension's tables and with search_path = pg_catalog, pg_temp.  nulls as in
 * SPI_execute_with_args.  Returns SPI_processed; SPI_tuptable has the rows.
 */
extern uint64 ab_tables_execute(const char *sql, int nargs, Oid *types,
								 Datum *values, const char *nulls);

/* Does a name protect this snapshot now?  Sees what is committed. */
extern bool ab_tables_snapshot_kept(AbSnapId id);

/*
 * All protected ids, as palloc'd AbSnapId *.  expire: rows whose keep_until is
 * over are deleted first.
 */
extern List *ab_tables_kept_snapshots(bool expire);

#endif							/* AB_TABLES_H */
