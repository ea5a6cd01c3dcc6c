/*
 * ab_activityflush.h
 *	  Table branch.activity: written from shared memory, read together with it.
 *
 * Only in the control database.
 */
#ifndef AB_ACTIVITYFLUSH_H
#define AB_ACTIVITYFLUSH_H

#include "ab_activity.h"

/* ---- the worker's; each in a transaction ---- */

/* Is the table there? */
extern bool ab_activityflush_possible(void);

/* Which databases are suspended; once after the server has started. */
extern void ab_activityflush_load(void);

/* Write one batch (the transaction gets an id); false: there was nothing to write. */
extern bool ab_activityflush_write(void);

/* Forget databases that are no more: rows and entries. */
extern void ab_activityflush_forget(void);

/* Nobody will read it: forget everything that is not in the table. */
extern void ab_activityflush_discard(void);

/* ---- backends ---- */

/* Totals of one database, table and shared memory together; false: nothing is known. */
extern bool ab_activityflush_read(Oid db, AbActivity *total);

/* The same of all of them, palloc'd; whether each is in the table or not. */
extern AbActivity *ab_activityflush_read_all(int *n);

/*
 * A branch was reset: what was counted of old_db is new_db's from now on.  Part of the
 * transaction; the caller holds AccessExclusiveLock on old_db, and nobody is in it.
 */
extern void ab_activityflush_move(Oid old_db, TimestampTz old_origin_at, Oid new_db,
								  TimestampTz new_origin_at);

#endif							/* AB_ACTIVITYFLUSH_H */
