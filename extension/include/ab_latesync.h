/*
 * ab_latesync.h
 *	  Making files that replay would make again durable, many at a time and not before
 *	  it matters: when a checkpoint leaves their WAL records behind.
 */
#ifndef AB_LATESYNC_H
#define AB_LATESYNC_H

#include "ab_types.h"

/*
 * A WAL record and a file that belong together are made between these two.  They keep a
 * checkpoint from beginning in between, and pg_database's file where it is (a lock on
 * pg_database, AccessShareLock: do not wait for the keeper).  After an error too.
 */
extern void ab_latesync_begin(void);
extern void ab_latesync_end(void);

/*
 * Written and not synced: the origin file of a database; the manifest and the epoch's file
 * of a snapshot of db; renamed and not synced: that manifest.  Between the two above.  On
 * return the next checkpoint to complete will have called ab_latesync_before_write().
 */
extern void ab_latesync_origin(Oid db);
extern void ab_latesync_snapshot(Oid db, AbSnapId snapshot);
extern void ab_latesync_name(Oid db, AbSnapId snapshot);

/* Before a page of a shared relation is written to disk: sync what is waiting. */
extern void ab_latesync_before_write(void);

/* The keeper, now and then: if many are waiting, sync them. */
extern void ab_latesync_tend(void);

#endif							/* AB_LATESYNC_H */
