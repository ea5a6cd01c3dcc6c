/*
 * ab_hidden.h
 *	  Hidden rows: the pg_database rows that stand for snapshots (rules 29, 30).
 *
 * Adding and dropping run in the keeper, in a transaction of its own; everybody else
 * asks for them through ab_request.h.
 */
#ifndef AB_HIDDEN_H
#define AB_HIDDEN_H

#include "ab_types.h"

/* Insert the row of a snapshot and copy its source's pg_shdepend rows. */
extern void ab_hidden_add(AbSnapId id, Oid source_db,
						  TransactionId frozen_xid, MultiXactId min_multi);

/*
 * Delete it; true if it is gone or never was.  False if somebody holds a lock on it
 * (a branch is being made) or a name protects it.  Keeps AccessExclusiveLock on the
 * hidden database until the transaction ends.
 */
extern bool ab_hidden_drop(AbSnapId id);

/*
 * How near the frozen xids are to the point where autovacuum would have to work in
 * a database that has no files: 1.0 is that point.
 */
extern double ab_hidden_age(TransactionId frozen_xid, MultiXactId min_multi);

/*
 * What it has come to (M22).  An unnamed snapshot is closed at the first age, if a
 * new one of its source would be younger; for a named one there are warnings from
 * the second age on; at the third every snapshot is closed.
 */
#define AB_HIDDEN_AGE_UNNAMED	0.5
#define AB_HIDDEN_AGE_WARN		0.75
#define AB_HIDDEN_AGE_CLOSE		0.9

/* Frozen xids of an open snapshot and their ages; false if it is closed. */
typedef struct AbHiddenAge
{
	double		used;			/* ab_hidden_age() */
	int32		xids;			/* transactions since */
	TransactionId frozen_xid;
	MultiXactId min_multi;
} AbHiddenAge;

extern bool ab_hidden_read_age(AbSnapId id, AbHiddenAge *age);

/* Has the source been vacuumed since, so that a new snapshot of it would be younger? */
extern bool ab_hidden_source_is_younger(Oid source_db, const AbHiddenAge *age);

/*
 * Say that named snapshots are about to be closed: all those near it, or (the log)
 * those of which that was not said for a day, and remember it.  Needs a transaction.
 */
extern void ab_hidden_warn(bool all);

#endif							/* AB_HIDDEN_H */
