/*
 * ab_keeper.c
 *	  The keeper: commits hidden rows and bases for backends and looks into the extension's tables
 *	  for those in other databases, has the sweeper and the gatherer started, and logs
 *	  WITNESS records.
 *
 * One background worker, connected to the control database as the bootstrap
 * superuser.  keeper_lock protects the slots and is never held across work.  Each
 * request is a transaction of its own whose error goes back to the requester.  If it
 * ends (or is ended) it is started again after 5 s and finds the slots as they were;
 * all kinds of request can be repeated.
 */
#include "ab_keeper.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ab_base.h"
#include "ab_eventsync.h"
#include "ab_gatherer.h"
#include "ab_hidden.h"
#include "ab_latesync.h"
#include "ab_registry.h"
#include "ab_quotaload.h"
#include "ab_settings.h"
#include "ab_shmem.h"
#include "ab_snapshot.h"
#include "ab_sweeper.h"
#include "ab_witness.h"
#include "ab_worker.h"

#define KEEPER_RESTART_S	5
#define SWEEP_MIN_DELAY_MS	10000
#define SWEEP_AWAITED_MS	1000	/* if somebody waits for it */
#define QUOTA_RETRY_MS		200

PGDLLEXPORT void ab_keeper_main(Datum arg);

static BackgroundWorkerHandle *sweeper = NULL;	/* running, as far as we know */
static instr_time last_sweep;	/* when one was last started, by a clock that nobody sets */

void
ab_keeper_register(void)
{
	ab_worker_register("keeper", "ab_keeper_main", KEEPER_RESTART_S);
}

/* ---- requests ---- */

/* Copy out a waiting request; slots whose requester went away are freed. */
static int
next_request(AbRequest *req)
{
	int			found = -1;
	bool		freed = false;

	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	for (int i = 0; i < AB_REQUESTS && found < 0; i++)
	{
		AbRequest  *slot = &ab_shared->request[i];

		if (slot->state == AB_REQ_ABANDONED)
		{
			slot->state = AB_REQ_FREE;
			freed = true;
		}
		else if (slot->state == AB_REQ_WAITING)
		{
			*req = *slot;
			found = i;
		}
	}
	LWLockRelease(ab_shared->keeper_lock);
	if (freed)
		ConditionVariableBroadcast(&ab_shared->keeper_cv);
	return found;
}

static void
finish_request(int i, const AbRequest *req)
{
	AbRequest  *slot = &ab_shared->request[i];

	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	if (slot->state == AB_REQ_ABANDONED)
	{
		/* a row for a snapshot that will not be: have it swept */
		if (req->kind == AB_REQ_ADD_HIDDEN && req->state == AB_REQ_DONE)
			ab_shared->sweep_wanted = true;
		slot->state = AB_REQ_FREE;
	}
	else
		*slot = *req;
	LWLockRelease(ab_shared->keeper_lock);
	ConditionVariableBroadcast(&ab_shared->keeper_cv);
}

static void
fail_request(AbRequest *req, int sqlerrcode, const char *message)
{
	req->state = AB_REQ_FAILED;
	req->sqlerrcode = sqlerrcode;
	strlcpy(req->message, message, sizeof(req->message));
}

/* In a transaction.  Sets the outcome. */
static void
do_request(AbRequest *req)
{
	req->state = AB_REQ_DONE;
	switch (req->kind)
	{
		case AB_REQ_ADD_HIDDEN:
			ab_hidden_add(req->snapshot, req->source_db,
						  req->frozen_xid, req->min_multi);
			break;
		case AB_REQ_DROP_HIDDEN:
			if (!ab_hidden_drop(req->snapshot))
				fail_request(req, ERRCODE_LOCK_NOT_AVAILABLE, "snapshot is in use");
			break;
		case AB_REQ_PROTECTION:
			if (!ab_registry_protected(req->source_db, &req->protected_until))
				req->protected_until = DT_NOBEGIN;
			break;
		case AB_REQ_ADD_BASE:
			ab_base_add(req->snapshot, req->source_db);
			break;
		case AB_REQ_DROP_BASE:
			if (!ab_base_drop(req->source_db))
				fail_request(req, ERRCODE_LOCK_NOT_AVAILABLE, "base is in use");
			break;
		case AB_REQ_NONE:
			elog(ERROR, "empty request");
	}
}

static const char *
activity_of(const AbRequest *req)
{
	switch (req->kind)
	{
		case AB_REQ_ADD_HIDDEN:
			return "registering a snapshot";
		case AB_REQ_DROP_HIDDEN:
			return "closing a snapshot";
		case AB_REQ_PROTECTION:
			return "looking whether a branch is protected";
		case AB_REQ_ADD_BASE:
			return "making the base of a snapshot";
		case AB_REQ_DROP_BASE:
			return "dropping the base of a snapshot";
		case AB_REQ_NONE:
			break;
	}
	return NULL;
}

static void
run_request(AbRequest *req)
{
	MemoryContext caller = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity_of(req));
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		do_request(req);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(caller);
		edata = CopyErrorData();
		fail_request(req, edata->sqlerrcode, edata->message);
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(caller);
		elog(DEBUG1, "agent_branch keeper: request failed: %s", edata->message);
		FreeErrorData(edata);
		QueryCancelPending = false; /* lock_timeout sends one */
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	pgstat_report_activity(STATE_IDLE, NULL);
}

static void
serve_requests(void)
{
	AbRequest	req;
	int			i;

	while (!ShutdownRequestPending && (i = next_request(&req)) >= 0)
	{
		run_request(&req);
		finish_request(i, &req);
	}
}

/* ---- sweeping ---- */

static bool
first_sweep_done(void)
{
	bool		done;

	LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
	done = ab_shared->first_sweep_done;
	LWLockRelease(ab_shared->keeper_lock);
	return done;
}

static void
set_first_sweep_done(void)
{
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	ab_shared->first_sweep_done = true;
	LWLockRelease(ab_shared->keeper_lock);
	ConditionVariableBroadcast(&ab_shared->keeper_cv);
}

/* Those who wait for it go on. */
static void
note_sweep_ended(void)
{
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	ab_shared->sweeps_ended = ab_shared->sweeps_begun;
	LWLockRelease(ab_shared->keeper_lock);
	ConditionVariableBroadcast(&ab_shared->keeper_cv);
}

/* Has the sweeper ended?  Then nobody has to wait for the first sweep any more. */
static void
check_sweeper(void)
{
	pid_t		pid;

	if (sweeper == NULL || GetBackgroundWorkerPid(sweeper, &pid) != BGWH_STOPPED)
		return;
	pfree(sweeper);
	sweeper = NULL;
	note_sweep_ended();
	if (!first_sweep_done())
		set_first_sweep_done();
}

/* Milliseconds until a sweep is due; 0: now; -1: none is. */
static long
sweep_due_in(void)
{
	instr_time	passed;
	long		delay;
	long		ms;
	bool		wanted;
	bool		awaited;

	if (sweeper != NULL)
		return -1;
	if (!first_sweep_done() && INSTR_TIME_IS_ZERO(last_sweep))
		return 0;
	if (ab_sweep_interval <= 0)
		return -1;
	LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
	wanted = ab_shared->sweep_wanted;
	awaited = ab_shared->sweep_awaited;
	LWLockRelease(ab_shared->keeper_lock);
	delay = ab_sweep_interval * 1000L;
	if (awaited)
		delay = Min(delay, SWEEP_AWAITED_MS);
	else if (wanted)
		delay = Min(delay, SWEEP_MIN_DELAY_MS);
	INSTR_TIME_SET_CURRENT(passed);
	INSTR_TIME_SUBTRACT(passed, last_sweep);
	ms = (long) INSTR_TIME_GET_MILLISEC(passed);
	return ms >= delay ? 0 : delay - ms;
}

static void
start_sweep(void)
{
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	ab_shared->sweep_wanted = false;
	ab_shared->sweep_awaited = false;
	ab_shared->sweeps_begun++;
	LWLockRelease(ab_shared->keeper_lock);
	INSTR_TIME_SET_CURRENT(last_sweep);
	sweeper = ab_sweeper_start();
	if (sweeper != NULL)
		return;
	note_sweep_ended();
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("agent_branch could not start its sweeper"),
			 errhint("Raise max_worker_processes.")));
	if (!first_sweep_done())
		set_first_sweep_done(); /* later is soon enough; branches must be usable */
}

/* What a crash left of snapshots that were being taken; nobody takes one yet. */
static void
remove_pending(void)
{
	SetCurrentStatementStartTimestamp();
	PG_TRY();
	{
		StartTransactionCommand();
		ab_snapshot_remove_pending();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
}

/* ---- life ---- */

static void
retreat(int code, Datum arg)
{
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	if (ab_shared->keeper_pid == MyProcPid)
	{
		ab_shared->keeper_pid = 0;
		ab_shared->keeper_latch = NULL;
	}
	LWLockRelease(ab_shared->keeper_lock);
	ConditionVariableBroadcast(&ab_shared->keeper_cv);
}

static void
announce(void)
{
	before_shmem_exit(retreat, (Datum) 0);
	LWLockAcquire(ab_shared->keeper_lock, LW_EXCLUSIVE);
	ab_shared->keeper_pid = MyProcPid;
	ab_shared->keeper_latch = MyLatch;
	LWLockRelease(ab_shared->keeper_lock);
	ConditionVariableBroadcast(&ab_shared->keeper_cv);
}

void
ab_keeper_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	ab_witness_recovered();
	BackgroundWorkerInitializeConnection(ab_control_database, NULL, 0);
	ab_sweeper_settings();
	CurrentMemoryContext = AllocSetContextCreate(TopMemoryContext,
												 "agent_branch keeper",
												 ALLOCSET_DEFAULT_SIZES);
	if (!first_sweep_done())
		remove_pending();
	announce();

	while (!ShutdownRequestPending)
	{
		long		timeout;
		long		tend;
		long		retry;
		long		gather;
		int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		serve_requests();
		retry = ab_eventsync_tend();
		if (!ab_quotaload_first())
			retry = QUOTA_RETRY_MS;
		ab_latesync_tend();
		tend = ab_witness_tend();
		gather = ab_gatherer_tend();
		check_sweeper();
		timeout = sweep_due_in();
		if (timeout == 0)
		{
			start_sweep();
			continue;
		}
		if (retry > 0)
			timeout = timeout > 0 ? Min(timeout, retry) : retry;
		if (gather > 0)
			timeout = timeout > 0 ? Min(timeout, gather) : gather;
		if (tend > 0)
			timeout = timeout > 0 ? Min(timeout, tend) : tend;
		if (timeout > 0)
			events |= WL_TIMEOUT;
		(void) WaitLatch(MyLatch, events, timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}

	/* not 0: the postmaster starts a worker again only after a failure */
	proc_exit(1);
}
