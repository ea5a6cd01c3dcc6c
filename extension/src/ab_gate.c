/*
 * ab_gate.c
 *	  The quiet moment: keeping the writers of one database out for a snapshot.
 *
 * Backends only.  The gate is a relation lock on a number that names no relation:
 * writers hold it in RowExclusiveLock to the end of their transaction, by lock.c's
 * fast path (M4); a snapshot holds it in ExclusiveLock.  Around it the snapshot
 * holds ShareLock on the database object, which keeps new connections and with
 * them new autovacuum workers out (M2), and the lock under which VACUUM advances
 * datfrozenxid, so that no clog is truncated before the hidden row is committed
 * (F8).
 *
 * While the snapshot waits for the gate, new writers queue behind it.  It therefore
 * waits in slices of a fraction of a second with pauses between them, so that one
 * long writer does not stop all the others, and with a small deadlock timeout, so
 * that it is the victim of any deadlock (M3) and simply tries again.
 *
 * All locks go with the caller's internal subtransaction; a crash leaves nothing.
 */
#include "ab_gate.h"

#include <signal.h>

#include "access/parallel.h"
#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database_d.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/sinvaladt.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "ab_pause.h"
#include "ab_shmem.h"

#define FIRST_SLICE_MS		200 /* how long writers queue behind us at first */
#define LONGEST_SLICE_MS	800
#define PAUSE_MS			50	/* and how long they run free in between */
#define DEADLOCK_MS			50
#define POLL_MS				5
#define DRAIN_SLICE_MS		250

static void
gate_tag(LOCKTAG *tag, Oid db)
{
	SET_LOCKTAG_RELATION(*tag, db, AB_GATE_RELID);
}

static pg_attribute_hot bool
enter(bool wait)
{
	static LocalTransactionId entered = InvalidLocalTransactionId;
	LOCKTAG		tag;

	if (ab_shared == NULL || !OidIsValid(MyDatabaseId) || MyProc == NULL ||
		!IsNormalProcessingMode() || !IsTransactionState() ||
		IsParallelWorker() || RecoveryInProgress())
		return true;
	if (MyProc->lxid == entered)
		return true;

	gate_tag(&tag, MyDatabaseId);
	if (LockAcquire(&tag, RowExclusiveLock, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;

	/* the abort of a subtransaction would release a lock that it has taken */
	if (GetCurrentTransactionNestLevel() == 1)
		entered = MyProc->lxid;
	return true;
}

void
ab_gate_enter(void)
{
	(void) enter(true);
}

bool
ab_gate_try_enter(void)
{
	return enter(false);
}

/* ---- who writes ---- */

/*
 * Is this entry of a prepared transaction a living one?  Their PGPROCs keep the xid
 * after they are finished; but no two members of the process array have the same.
 * ProcArrayLock is held.
 */
static bool
prepared_is_live(PGPROC *proc)
{
	return TransactionIdIsValid(proc->xid) &&
		ProcGlobal->xids[proc->pgxactoff] == proc->xid;
}

/*
 * Does a transaction with an xid run in db?  ProcArrayLock is held.  pids of the
 * first ones are appended to *pids.
 */
static bool
writers_in(Oid db, StringInfo pids)
{
	bool		found = false;

	Assert(LWLockHeldByMe(ProcArrayLock));
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc == MyProc || proc->databaseId != db ||
			!TransactionIdIsValid(proc->xid))
			continue;
		if (pids == NULL)
			return true;
		found = true;
		if (pids->len < 200)
			appendStringInfo(pids, "%s%d", pids->len > 0 ? ", " : "", proc->pid);
	}
	for (int i = 0; i < max_prepared_xacts; i++)
	{
		PGPROC	   *proc = &PreparedXactProcs[i];

		if (proc->databaseId == db && prepared_is_live(proc))
			return true;
	}
	return found;
}

bool
ab_gate_no_writers(Oid db)
{
	Assert(LWLockHeldByMeInMode(XidGenLock, LW_EXCLUSIVE));
	return !writers_in(db, NULL);
}

static bool
any_writers(Oid db)
{
	bool		result;

	LWLockAcquire(ProcArrayLock, LW_SHARED);
	result = writers_in(db, NULL);
	LWLockRelease(ProcArrayLock);
	return result;
}

/* pids that have the gate in our way, transaction or not. */
static void
append_gate_holders(Oid db, StringInfo pids)
{
	VirtualTransactionId *vxids;
	LOCKTAG		tag;
	int			n;

	gate_tag(&tag, db);
	vxids = GetLockConflicts(&tag, ExclusiveLock, &n);
	for (int i = 0; i < n && pids->len < 200; i++)
	{
		PGPROC	   *proc = BackendIdGetProc(vxids[i].backendId);

		if (proc != NULL && proc->pid != 0)
			appendStringInfo(pids, "%s%d", pids->len > 0 ? ", " : "", proc->pid);
	}
}

void
ab_gate_give_up(Oid db, const char *dbname)
{
	StringInfoData holders;
	StringInfoData writers;

	initStringInfo(&holders);
	initStringInfo(&writers);
	append_gate_holders(db, &holders);

	/* room for all, since nothing may fail under the lock */
	enlargeStringInfo(&writers, 512);
	LWLockAcquire(ProcArrayLock, LW_SHARED);
	(void) writers_in(db, &writers);
	LWLockRelease(ProcArrayLock);

	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("could not get a quiet moment in database \"%s\" within agent_branch.snapshot_timeout",
					dbname),
			 holders.len > 0 ?
			 errdetail("Processes in a transaction that writes: %s.", holders.data) :
			 writers.len > 0 ?
			 errdetail("Processes with a running transaction: %s.", writers.data) :
			 errdetail("Nobody writes in it just now, but its contents changed while they were being copied, or a lock on it was not to be had."),
			 errhint("Let these transactions end, or raise agent_branch.snapshot_timeout.")));
}

/* ---- locks, patiently ---- */

/*
 * Take a lock within ms milliseconds; false if that was too short, or if waiting
 * on would have been a deadlock.
 */
static bool
lock_in_slice(const LOCKTAG *tag, LOCKMODE mode, int ms)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	int			old_lock_timeout = LockTimeout;
	int			old_deadlock_timeout = DeadlockTimeout;
	volatile bool got = false;

	if (LockAcquire(tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL)
		return true;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		LockTimeout = Max(ms, 1);
		DeadlockTimeout = DEADLOCK_MS;
		(void) LockAcquire(tag, mode, false, false);
		LockTimeout = old_lock_timeout;
		DeadlockTimeout = old_deadlock_timeout;
		ReleaseCurrentSubTransaction();
		got = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		LockTimeout = old_lock_timeout;
		DeadlockTimeout = old_deadlock_timeout;
		MemoryContextSwitchTo(oldcontext);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcontext);
		CurrentResourceOwner = oldowner;
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
			edata->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED)
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
	return got;
}

static void
lock_before(Oid db, const char *dbname, const LOCKTAG *tag, LOCKMODE mode,
			TimestampTz deadline)
{
	int			slice = FIRST_SLICE_MS;

	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   deadline);

		if (lock_in_slice(tag, mode, (int) Min(left, slice)))
			return;
		CHECK_FOR_INTERRUPTS();
		if (GetCurrentTimestamp() >= deadline)
			ab_gate_give_up(db, dbname);
		ab_pause(PAUSE_MS);
		slice = Min(slice * 2, LONGEST_SLICE_MS);
	}
}

/* ---- others that must not be there ---- */

/* Ask the autovacuum workers in db to go; false if there are none. */
static bool
signal_autovacuum(Oid db)
{
	int			pids[64];
	int			n = 0;

	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (uint32 i = 0; i < ProcGlobal->allProcCount && n < lengthof(pids); i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		/* entries of processes that have ended keep everything: ask again */
		if (proc->pid != 0 && proc->databaseId == db &&
			(proc->statusFlags & PROC_IS_AUTOVACUUM) &&
			BackendPidGetProcWithLock(proc->pid) == proc)
			pids[n++] = proc->pid;
	}
	LWLockRelease(ProcArrayLock);

	for (int i = 0; i < n; i++)
		(void) kill(pids[i], SIGTERM);
	return n > 0;
}

static void
refuse_prepared(Oid db, const char *dbname)
{
	StringInfoData xids;

	initStringInfo(&xids);
	enlargeStringInfo(&xids, 512);
	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (int i = 0; i < max_prepared_xacts && xids.len < 200; i++)
	{
		PGPROC	   *proc = &PreparedXactProcs[i];

		if (proc->databaseId == db && prepared_is_live(proc))
			appendStringInfo(&xids, "%s%u", xids.len > 0 ? ", " : "", proc->xid);
	}
	LWLockRelease(ProcArrayLock);

	if (xids.len > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot branch database \"%s\" while it has prepared transactions",
						dbname),
				 errdetail("Prepared transactions with these transaction IDs are waiting: %s.",
						   xids.data),
				 errhint("Commit or roll back those that view pg_prepared_xacts shows.")));
	pfree(xids.data);
}

static void
refuse_own_writes(Oid db, const char *dbname)
{
	if (MyDatabaseId == db && TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot branch database \"%s\" in a transaction that has already written in it",
						dbname),
				 errhint("Create the branch first in the transaction, or commit before.")));
}

/* ---- the gate ---- */

void
ab_gate_drain(Oid db, const char *dbname, TimestampTz deadline)
{
	LOCKTAG		tag;

	gate_tag(&tag, db);
	for (;;)
	{
		for (int waited = 0; waited < DRAIN_SLICE_MS; waited += POLL_MS)
		{
			if (!any_writers(db))
			{
				refuse_prepared(db, dbname);
				return;
			}
			if (GetCurrentTimestamp() >= deadline)
				ab_gate_give_up(db, dbname);
			ab_pause(POLL_MS);
		}
		refuse_prepared(db, dbname);

		/*
		 * A transaction that has an xid but not the gate (the subtransaction
		 * that took it was rolled back) may be waiting for the gate now, and
		 * our polling is invisible to the deadlock detector: let it through.
		 */
		LockRelease(&tag, ExclusiveLock, false);
		ab_pause(PAUSE_MS);
		lock_before(db, dbname, &tag, ExclusiveLock, deadline);
	}
}

void
ab_gate_close(Oid db, const char *dbname, TimestampTz deadline)
{
	LOCKTAG		tag;

	refuse_own_writes(db, dbname);
	refuse_prepared(db, dbname);

	gate_tag(&tag, db);
	lock_before(db, dbname, &tag, ExclusiveLock, deadline);
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	lock_before(db, dbname, &tag, ShareLock, deadline);

	while (signal_autovacuum(db))
	{
		if (GetCurrentTimestamp() >= deadline)
			ab_gate_give_up(db, dbname);
		ab_pause(POLL_MS);
	}

	SET_LOCKTAG_DATABASE_FROZEN_IDS(tag, db);
	lock_before(db, dbname, &tag, ExclusiveLock, deadline);

	ab_gate_drain(db, dbname, deadline);
}
