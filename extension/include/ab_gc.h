/*
 * ab_gc.h
 *	  Giving back what nobody needs: storage without a pg_database row, and
 *	  snapshots without branches.
 */
#ifndef AB_GC_H
#define AB_GC_H

#include "ab_types.h"

#include "nodes/pg_list.h"

typedef struct AbGcItem
{
	const char *kind;			/* "branch", "snapshot", "layer", "deleted branch" */
	char	   *name;			/* database OID or snapshot id as text, or the name it had */
	int64		bytes;			/* disk space given back */
} AbGcItem;

/*
 * Storage of databases that have no row any more (invariant B1), logged, in
 * dropdb's order; returns a list of AbGcItem *.  Needs a transaction.
 */
extern List *ab_sweep_orphans(bool dry_run);

/*
 * Before a database is dropped or moved, with its object locked: raises an error if
 * its files are needed as they are (ab_pins_check_files), and removes the storage of
 * deleted branches, which may inherit from them.
 */
extern void ab_gc_before_files_go(Oid db, const char *verb);

/* After that, before a move: files that were kept for snapshots go. */
extern void ab_gc_kept_before_move(Oid db);

/*
 * Superseded snapshots: an unnamed snapshot that is not its source's newest loses
 * its hidden row (through the keeper); without branches its manifest; and layers
 * that no readable manifest names are removed.  unused_too: also the newest one if
 * it has no branches.  keep: ids (AbSnapId *) that named
 * snapshots protect.  Same result list.
 */
extern List *ab_retire_snapshots(bool dry_run, bool unused_too, List *keep);

/*
 * Keep everybody from giving anything back.  Waits, except in a background worker,
 * where it may return false.  Released by the end of the transaction, too.
 */
extern bool ab_gc_lock(void);
extern void ab_gc_unlock(void);

#endif							/* AB_GC_H */
