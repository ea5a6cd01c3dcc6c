/*
 * ab_request.c
 *	  The requester's side of the keeper's slots (ab_shmem.h has the states).
 *
 * Any backend.  keeper_lock protects the slots and is never held across a wait;
 * the waiting itself is a condition variable, so a cancelled requester only has
 * to mark its slot.  A slot whose requester went away while it waited is freed
 * by the keeper; a crash resets shared memory and with it all slots.
 */
#include "ab_request.h"

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "ab_settings.h"
#include "ab_shmem.h"

/* The keeper is restarted after 5 s (ab_keeper.c): allow for that much. */
#define KEEPER_PATIENCE_MS	8000
#define KEEPER_POLL_MS		1000

/*
 * Raise an error once the keeper has been away for longer than a restart takes.
 * gone_since: 0 while it was last seen running.
 */
static void
check_keeper(pid_t pid, TimestampTz *gone_since)
{
	TimestampTz now;

	if (pid != 0)
	{
		*gone_since = 0;
		return;
	}
	now = GetCurrentTimestamp();
	if (*gone_since == 0)
		*gone_since = now;
	if (!IsUnderPostmaster ||
		TimestampDifferenceExceeds(*gone_since, now, KEEPER_PATIENCE_MS))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the agent_branch keeper is not running"),
				 errdetail("It is a background worker connected to database \"%s\".",
						   ab_control_database),
				 errhint("Check agent_branch.control_database and max_worker_processes, and see the server log.")));
}

/* Is this process the keeper?  It must never wait for itself. */
static bool
am_keeper(void)
{
	return ab_shared != NULL && ab_shared->keeper_pid == MyProcPid;
}

/*
 * Put the request into a free slot; waits for one.  Not inlined: its variables must
 * not live in the frame that the error cleanup below jumps back into.
 */
static pg_noinline int
claim_slot(const AbRequest *req)
{
	TimestampTz gone_since = 0;
	int			slot = -1;

	for (;;)
	{
		pid_t		pid;

		LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
		for (int i = 0; i < AB_REQUESTS && slot < 0; i++)
		{
			if (ab_shared->request[i].state == AB_REQ_FREE)
				slot = i;
		}
		if (slot >= 0)
		{
			ab_shared->request[slot] = *req;
			ab_shared->request[slot].state = AB_REQ_WAITING;
			if (ab_shared->keeper_latch != NULL)
				SetLatch(ab_shared->keeper_latch);
		}
		pid = ab_shared->keeper_pid;
		LWLockRelease(ab_shared->keeper_lock);
		if (slot >= 0)
			break;
		check_keeper(pid, &gone_since);
		ConditionVariableTimedSleep(&ab_shared->keeper_cv, KEEPER_POLL_MS,
									PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return slot;
}

/*
 * The requester goes away early, by ERROR or by FATAL.  What the keeper has
 * finished is ours to free; anything else it frees itself when it comes by.
 */
static void
abandon_slot(int code, Datum arg)
{
	AbRequest  *slot = &ab_shared->request[DatumGetInt32(arg)];

	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	if (slot->state == AB_REQ_WAITING)
		slot->state = AB_REQ_ABANDONED;
	else
		slot->state = AB_REQ_FREE;
	if (ab_shared->keeper_latch != NULL)
		SetLatch(ab_shared->keeper_latch);
	LWLockRelease(ab_shared->keeper_lock);
}

static void
wait_for_slot(int slot)
{
	TimestampTz gone_since = 0;

	for (;;)
	{
		AbRequestState state;
		pid_t		pid;

		LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
		state = ab_shared->request[slot].state;
		pid = ab_shared->keeper_pid;
		LWLockRelease(ab_shared->keeper_lock);
		if (state == AB_REQ_DONE || state == AB_REQ_FAILED)
			break;
		check_keeper(pid, &gone_since);
		ConditionVariableTimedSleep(&ab_shared->keeper_cv, KEEPER_POLL_MS,
									PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* Run a request to its end; the finished slot's contents come back in *req. */
static void
submit(AbRequest *req)
{
	int			slot;

	ab_require_preloaded();
	slot = claim_slot(req);
	PG_ENSURE_ERROR_CLEANUP(abandon_slot, Int32GetDatum(slot));
	{
		wait_for_slot(slot);
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon_slot, Int32GetDatum(slot));

	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	*req = ab_shared->request[slot];
	ab_shared->request[slot].state = AB_REQ_FREE;
	LWLockRelease(ab_shared->keeper_lock);
	ConditionVariableBroadcast(&ab_shared->keeper_cv);	/* a slot is free */
}

/* What the keeper could not do is the requester's error. */
static void
raise_failure(const AbRequest *req, const char *doing)
{
	ereport(ERROR,
			(errcode(req->sqlerrcode),
			 errmsg("%s", req->message),
			 errcontext("keeper %s", doing)));
}

void
ab_request_add_hidden(AbSnapId id, Oid source_db,
					  TransactionId frozen_xid, MultiXactId min_multi)
{
	AbRequest	req;

	MemSet(&req, 0, sizeof(req));
	req.kind = AB_REQ_ADD_HIDDEN;
	req.snapshot = id;
	req.source_db = source_db;
	req.frozen_xid = frozen_xid;
	req.min_multi = min_multi;
	submit(&req);
	if (req.state == AB_REQ_FAILED)
		raise_failure(&req, psprintf("registering snapshot %08X/%X/%X",
									 id.tli, LSN_FORMAT_ARGS(id.lsn)));
}

/* What can be done later is not asked of a keeper that is not there; false then, or if it is in use. */
static bool
submit_drop(AbRequest *req)
{
	bool		running;

	ab_require_preloaded();
	LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
	running = ab_shared->keeper_pid != 0;
	LWLockRelease(ab_shared->keeper_lock);
	if (!running)
		return false;
	submit(req);
	return req->state == AB_REQ_DONE || req->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE;
}

bool
ab_request_drop_hidden(AbSnapId id)
{
	AbRequest	req;

	MemSet(&req, 0, sizeof(req));
	req.kind = AB_REQ_DROP_HIDDEN;
	req.snapshot = id;
	if (!submit_drop(&req))
		return false;
	if (req.state == AB_REQ_FAILED)
		raise_failure(&req, psprintf("closing snapshot %08X/%X/%X",
									 id.tli, LSN_FORMAT_ARGS(id.lsn)));
	return true;
}

bool
ab_request_drop_base(Oid db)
{
	AbRequest	req;

	MemSet(&req, 0, sizeof(req));
	req.kind = AB_REQ_DROP_BASE;
	req.source_db = db;
	if (!submit_drop(&req))
		return false;
	if (req.state == AB_REQ_FAILED)
		raise_failure(&req, psprintf("dropping base %u", db));
	return true;
}

void
ab_request_add_base(AbSnapId id, Oid pattern)
{
	AbRequest	req;

	MemSet(&req, 0, sizeof(req));
	req.kind = AB_REQ_ADD_BASE;
	req.snapshot = id;
	req.source_db = pattern;
	submit(&req);
	if (req.state == AB_REQ_FAILED)
		raise_failure(&req, psprintf("making a base of snapshot %08X/%X/%X",
									 id.tli, LSN_FORMAT_ARGS(id.lsn)));
}

/* In single-user mode an administrator wants to get in whatever happened. */
bool
ab_request_protection(Oid db, TimestampTz *until)
{
	AbRequest	req;

	if (!IsUnderPostmaster || !OidIsValid(get_database_oid(ab_control_database, true)))
		return false;
	MemSet(&req, 0, sizeof(req));
	req.kind = AB_REQ_PROTECTION;
	req.source_db = db;
	submit(&req);
	if (req.state == AB_REQ_FAILED)
		raise_failure(&req, psprintf("looking whether database %u is protected", db));
	*until = req.protected_until;
	return !TIMESTAMP_IS_NOBEGIN(*until);
}

/*
 * A standby has no keeper and makes no branches; neither is there one in
 * single-user mode, where an administrator wants to get in whatever happened.
 */
void
ab_request_first_sweep(void)
{
	TimestampTz gone_since = 0;

	if (!IsUnderPostmaster || RecoveryInProgress() || am_keeper())
		return;
	for (;;)
	{
		bool		done;
		pid_t		pid;

		LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
		done = ab_shared->first_sweep_done;
		pid = ab_shared->keeper_pid;
		LWLockRelease(ab_shared->keeper_lock);
		if (done)
			break;
		check_keeper(pid, &gone_since);
		ConditionVariableTimedSleep(&ab_shared->keeper_cv, KEEPER_POLL_MS,
									PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* One that runs already may have passed what is wanted of it: the next one counts. */
void
ab_request_sweep(int timeout)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	uint32		begun;
	long		left;

	if (!IsUnderPostmaster || ab_sweep_interval <= 0)
		return;
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	begun = ab_shared->sweeps_begun;
	ab_shared->sweep_awaited = true;
	if (ab_shared->keeper_latch != NULL)
		SetLatch(ab_shared->keeper_latch);
	LWLockRelease(ab_shared->keeper_lock);
	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline)) > 0)
	{
		bool		over;

		LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
		over = (int32) (ab_shared->sweeps_ended - begun) > 0;
		LWLockRelease(ab_shared->keeper_lock);
		if (over)
			break;
		ConditionVariableTimedSleep(&ab_shared->keeper_cv, Min(left, KEEPER_POLL_MS),
									PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

static void
wake_keeper(bool sweep)
{
	if (ab_shared == NULL)
		return;
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	if (sweep)
		ab_shared->sweep_wanted = true;
	if (ab_shared->keeper_latch != NULL)
		SetLatch(ab_shared->keeper_latch);
	LWLockRelease(ab_shared->keeper_lock);
}

void
ab_request_wake_keeper(void)
{
	wake_keeper(true);
}

void
ab_request_poke_keeper(void)
{
	wake_keeper(false);
}
