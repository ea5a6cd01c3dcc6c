/*
 * ab_originsync.h
 *	  Making the origin files of new branches durable, many at a time and not before
 *	  it matters: when a checkpoint leaves their WAL records behind.
 */
#ifndef AB_ORIGINSYNC_H
#define AB_ORIGINSYNC_H

#include "ab_types.h"

/*
 * The origin file of a database has been written and not synced.  The caller holds
 * DELAY_CHKPT_START since before its WAL record, and pg_database in a lock mode that
 * keeps its file where it is.  On return the next checkpoint to complete will have
 * called ab_originsync_before_write().
 */
extern void ab_originsync_later(Oid db);

/* Before a page of a shared relation is written to disk: sync what is waiting. */
extern void ab_originsync_before_write(void);

/* The keeper, now and then: if many are waiting, sync them. */
extern void ab_originsync_tend(void);

#endif							/* AB_ORIGINSYNC_H */
