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

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* Names of snapshots (ab_snapnames.c), in schema branch. */
#define AB_NAMED_TABLE "named_snapshots"

/* One name of a snapshot. */
typedef struct AbNamedSnapshot
{
	char	   *name;
	AbSnapId	id;
	Oid			source_db;		/* whom it belongs to: a reset of that moves it over */
	TimestampTz closed_at;		/* 0, or when it became too old to be branched */
	TimestampTz warned_at;		/* 0, or when the log last said that this is near */
} AbNamedSnapshot;

/* Is the extension created in this database? */
extern bool ab_tables_installed(void);

/* Who owns the tables. */
extern Oid	ab_tables_owner(void);

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
 * Is it the base of the next merge of two databases?  Nobody is kept from dropping or
 * detaching one of them by that, so only the sweep leaves it alone.
 */
extern bool ab_tables_is_merge_base(AbSnapId id);

/* All protected ids, as palloc'd AbSnapId *. */
extern List *ab_tables_kept_snapshots(void);

/* All names, as palloc'd AbNamedSnapshot *, in order of name. */
extern List *ab_tables_names(void);

/* Of which later merges need a snapshot, likewise: the merge's number is the name. */
extern List *ab_tables_merge_bases(void);

/* Forget what merges changed longer ago than agent_branch.merge_retention says. */
extern void ab_tables_prune_merges(void);

#endif							/* AB_TABLES_H */
