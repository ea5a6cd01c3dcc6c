/*
 * ab_gate.h
 *	  The quiet moment: how a snapshot keeps a database's writers out.
 *
 * Writers of a database hold the gate lock (RowExclusiveLock on a relation OID
 * that names no relation, so that lock.c's fast path serves it: M4) until their
 * transaction ends; the snapshot holds it in ExclusiveLock.  This is politeness
 * (rule 27): exactness comes from ab_gate_no_writers() and ab_walscan.h.
 */
#ifndef AB_GATE_H
#define AB_GATE_H

#include "ab_compat.h"

#include "storage/block.h"
#include "utils/timestamp.h"

#define AB_GATE_RELID ((Oid) 9417)	/* no catalog has it; only a lock tag */

/* Called by the executor and utility hooks before a statement that writes. */
extern void ab_gate_enter(void);

/* The same for the keeper, which must not wait: false if a snapshot is being taken. */
extern bool ab_gate_try_enter(void);

/*
 * Take the gate of db exclusively, keep new connections and autovacuum out, and
 * wait until no transaction with an xid runs in it.  The caller has begun an
 * internal subtransaction, whose rollback releases everything.  deadline: give
 * up with 55P03 naming the pids that still write.  55006 for prepared
 * transactions in db, 55000 if this transaction itself has written in db.
 */
extern void ab_gate_close(Oid db, const char *dbname, TimestampTz deadline);

/*
 * No transaction with an xid is in db?  The caller holds ProcArrayLock (shared) and
 * then XidGenLock (exclusively), acquired in this order, the server's own; as long
 * as XidGenLock is held the answer stays true.
 */
extern bool ab_gate_no_writers(Oid db);

/*
 * Wait for the writers that ab_gate_no_writers() saw, same deadline and error.  May
 * open the gate for a moment: what was captured before is worth nothing afterwards.
 */
extern void ab_gate_drain(Oid db, const char *dbname, TimestampTz deadline);

/* The 55P03 of all of them; names who writes now. */
extern void ab_gate_give_up(Oid db, const char *dbname) pg_attribute_noreturn();

#endif							/* AB_GATE_H */
