/*
 * ab_sql_at.h
 *	  Which snapshot the argument "at" means.
 *
 * A name, else an id, else a position in the WAL (X/X), else a timestamp.  A position
 * or a time means the newest snapshot not after it that a branch can be made of.
 * What the caller may not see does not exist.
 */
#ifndef AB_SQL_AT_H
#define AB_SQL_AT_H

#include "ab_lifecycle.h"
#include "ab_shmem.h"

/* A snapshot, and whom it belongs to. */
typedef struct AbKnownSnapshot
{
	AbSnapSlot	slot;
	Oid			owner;			/* the source; what that became, if it was reset */
	List	   *names;			/* char * */
} AbKnownSnapshot;

/* All confirmed snapshots, by position; palloc'd. */
extern AbKnownSnapshot *ab_sql_known_snapshots(int *n);

/*
 * Fill in parent, at and at_parent of a branch to be created.  22023 if there is
 * nothing that suits, 42704 if the text means nothing, 55000 for a closed snapshot.
 */
extern void ab_sql_find_at(const char *at, AbCreateOptions *opt);

/* One of a database: the same errors. */
extern AbSnapId ab_sql_find_snapshot(const char *at, Oid db, const char *name);

/* Fill in at, at_db and at_own of a branch to be restored; its own snapshots first. */
extern void ab_sql_find_restore_point(const char *at, AbResetOptions *opt);

#endif							/* AB_SQL_AT_H */
