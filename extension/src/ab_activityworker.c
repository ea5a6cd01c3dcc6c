/*
 * ab_activityworker.c
 *	  The worker that writes activity to table branch.activity.
 *
 * One background worker, connected to the control database as the bootstrap superuser.
 * Writes every agent_branch.activity_flush_interval, when something went to the file, and
 * once more when it is told to end; what comes after that the postmaster saves
 * (ab_activityfile.c).  Wherever it ends, nothing is written twice (A2).  Each step is a
 * transaction whose error goes to the log; the next round tries again.
 */
#include "ab_activityworker.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "ab_activityflush.h"
#include "ab_settings.h"
#include "ab_suspendstats.h"
#include "ab_sweeper.h"
#include "ab_worker.h"

#define RESTART_S		5

/* Rounds from one look at all databases to the next. */
#define FORGET_EVERY	6

PGDLLEXPORT void ab_activityworker_main(Datum arg);

static bool again;				/* a step has done a part only */
static int	rounds = 0;

void
ab_activityworker_register(void)
{
	ab_worker_register("activity", "ab_activityworker_main", RESTART_S);
}

/* ---- one round ---- */

static void
write_batch(void)
{
	again = false;
	if (!ab_activityflush_possible())
		ab_activityflush_discard();
	else
	{
		if (!ab_activity->known)
		{
			ab_suspendstats_load();
			ab_activityflush_load();
		}
		again = ab_activityflush_write();
	}
}

static void
put_stats_away(void)
{
	again = ab_activityflush_possible() && ab_suspendstats_put_away();
}

static void
bring_stats_back(void)
{
	again = ab_activityflush_possible() && ab_suspendstats_bring_back();
}

static void
forget(void)
{
	if (ab_activityflush_possible())
		ab_activityflush_forget();
}

/* False: it failed. */
static bool
run_step(void (*step) (void), const char *activity)
{
	volatile bool done = false;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		step();
		PopActiveSnapshot();
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		errcontext("%s", activity);
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		QueryCancelPending = false;
		again = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	ab_activity_settle();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	return done;
}

static void
move_stats(void (*step) (void), const char *activity)
{
	bool		more;
	int			before;

	do
	{
		before = ab_activity->nto_move;
		if (!run_step(step, activity))
			break;
		more = again;
	} while (run_step(ab_suspendstats_committed, activity) && more &&
			 ab_activity->nto_move < before);
}

static void
run_round(void)
{
	uint32		asked = ab_activity_round_begins();
	int64		in_file = (ab_activity->spilled - ab_activity->spill_done) / sizeof(AbActivity);
	int64		batches = 2 + (ab_activity->nentries + in_file) / AB_ACTIVITY_BATCH;

	/* each turn about may be the file's */
	batches *= 2;
	do
		(void) run_step(write_batch, "writing the activity of branches");
	while (again && --batches > 0);
	ab_activity_round_ends(asked);
	if (ab_activity->nto_move > 0)
	{
		move_stats(bring_stats_back, "bringing back the statistics of branches");
		move_stats(put_stats_away, "putting away the statistics of suspended branches");
	}
	if (rounds++ % FORGET_EVERY == 0)
	{
		if (ab_activity->nsuspended > 0)
			(void) run_step(ab_suspendstats_tidy, "looking after suspended branches");
		(void) run_step(forget, "forgetting the activity of databases that are gone");
	}
}

/* ---- life ---- */

static void
retreat(int code, Datum arg)
{
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	ab_activity->worker = NULL;
	LWLockRelease(ab_activity->lock);
	ab_activity_settle();
}

static void
announce(void)
{
	before_shmem_exit(retreat, (Datum) 0);
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	ab_activity->worker = MyLatch;
	LWLockRelease(ab_activity->lock);
	ab_activity_settle();
}

void
ab_activityworker_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	announce();
	BackgroundWorkerInitializeConnection(ab_control_database, NULL, 0);
	ab_sweeper_settings();

	/* a standby that is away must not hold up the last round, and with it a shutdown */
	SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);

	for (;;)
	{
		bool		last = ShutdownRequestPending;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		run_round();
		if (last)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ab_activity_flush_interval * 1000L, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}

	/* not 0: the postmaster starts a worker again only after a failure */
	proc_exit(1);
}
