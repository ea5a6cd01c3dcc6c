/*
 * ab_hidden.h
 *	  Hidden rows: the pg_database rows that stand for snapshots (rules 29, 30).
 *
 * Both functions run in the keeper, in a transaction of its own; everybody else
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

/* Unnamed snapshots are closed at the first age, named ones at the second (M22). */
#define AB_HIDDEN_AGE_UNNAMED	0.5
#define AB_HIDDEN_AGE_NAMED		0.9

#endif							/* AB_HIDDEN_H */
