/*
 * ab_request.h
 *	  What backends ask of the keeper.
 */
#ifndef AB_REQUEST_H
#define AB_REQUEST_H

#include "ab_types.h"

#include "datatype/timestamp.h"

/*
 * Have the keeper commit the hidden row of a snapshot: a pg_database row without
 * connections that carries the source's frozen xids and copies of its pg_shdepend
 * rows (rules 29, 30).  Returns when committed; raises the keeper's error, or 55000
 * when it does not run.  Interruptible.
 */
extern void ab_request_add_hidden(AbSnapId id, Oid source_db,
								  TransactionId frozen_xid, MultiXactId min_multi);

/* Remove it; false if somebody holds a lock on it (a branch is being made), if a
 * name protects it, or if the keeper does not run. */
extern bool ab_request_drop_hidden(AbSnapId id);

/* Have the keeper commit the base of a snapshot (ab_base.h), if it is not there. */
extern void ab_request_add_base(AbSnapId id, Oid pattern);

/* Have it drop one; false if somebody reads in it, or the keeper does not run. */
extern bool ab_request_drop_base(Oid db);

/*
 * Until when is a branch protected?  False: it is not, or there is no control database
 * that could say so.  Raises the keeper's error, or 55000 when it does not run.
 */
extern bool ab_request_protection(Oid db, TimestampTz *until);

/* Wait until the sweep after server start is done. */
extern void ab_request_first_sweep(void);

/*
 * Have a sweep and wait until it is over, for so many milliseconds at most; not where
 * agent_branch.sweep_interval says that there are none.  Interruptible.
 */
extern void ab_request_sweep(int timeout);

/* Wake the keeper: there may be something to sweep.  No error, no wait. */
extern void ab_request_wake_keeper(void);

/* Wake it for something else. */
extern void ab_request_poke_keeper(void);

#endif							/* AB_REQUEST_H */
