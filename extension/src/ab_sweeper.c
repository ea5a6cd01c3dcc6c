/*
 * ab_sweeper.c
 *	  The worker that sweeps: branches that have expired, deleted ones whose time is over,
 *	  storage without a row, snapshots without branches.
 *
 * Started by the keeper, connected to the control database, ends by itself.  Its
 * locks are those of ab_gc*.c, all of them conditional, and none of its waits is for
 * something that waits for the keeper.  A crash leaves the rest to the next sweep.
 */
#include "ab_sweeper.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "ab_base.h"
#include "ab_eventsync.h"
#include "ab_firstuse.h"
#include "ab_agentrole.h"
#include "ab_tables.h"
#include "ab_expire.h"
#include "ab_gc.h"
#include "ab_hidden.h"
#include "ab_keptnames.h"
#include "ab_quotaload.h"
#include "ab_settings.h"
#include "ab_snapnames.h"
#include "ab_snaptable.h"
#include "ab_softdelete.h"
#include "ab_worker.h"

PGDLLEXPORT void ab_sweeper_main(Datum arg);

/*
 * Nothing that an administrator sets for sessions may change how these work; plain
 * messages, because they are handed to sessions of other encodings.  A lock that
 * cannot be had soon is an error: the deadlock detector does not see that somebody
 * waits for a worker.
 */
void
ab_sweeper_settings(void)
{
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "2s", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lc_messages", "C", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("max_parallel_workers_per_gather", "0",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_OVERRIDE);
}

static void
sweep_orphans(void)
{
	(void) ab_sweep_orphans(false);
}

/* Branches deleted in one transaction: their locks are held to its end. */
#define EXPIRE_BATCH 100

static bool expired_many;
static bool purged_many;

static void
expire(void)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, ab_expire(false, EXPIRE_BATCH))
		n += ((AbExpired *) lfirst(lc))->deleted;
	expired_many = n == EXPIRE_BATCH;
}

static void
purge_deleted(void)
{
	purged_many = list_length(ab_purge_due(false)) == AB_PURGE_BATCH;
}

/* Of deleted branches that others shared files with, the second sweep gets the rest. */
/*
 * Without the tables nobody can tell which snapshots have names: these may be in a dump
 * of a control database that was lost.  While there is room they wait for it.
 */
static bool
names_are_missing(void)
{
	int			n;

	if (ab_tables_installed())
		return false;
	pfree(ab_snaptable_all(&n));
	return n < ab_max_snapshots / 2;
}

static void
sweep_snapshots(void)
{
	if (names_are_missing())
		return;
	ab_snapnames_expire();
	if (ab_retire_snapshots(false, false, ab_tables_kept_snapshots()) == NIL)
		return;
	(void) ab_sweep_orphans(false);
	(void) ab_retire_snapshots(false, false, ab_tables_kept_snapshots());
}

static void
sweep_bases(void)
{
	ab_base_sweep(false);
}

static void
warn_of_age(void)
{
	ab_hidden_warn(false);
}

static bool more_untold;

static void
compare_events(void)
{
	more_untold = false;		/* should it fail */
	more_untold = ab_eventsync_compare();
}

static bool more_events = false;

static void
prune_events(void)
{
	bool		again = more_events;

	more_events = false;		/* should it fail */
	more_events = ab_eventsync_prune(again) > 0;
}

/* One step in a transaction of its own; an error is logged, not passed on. */
static void
run_step(void (*step) (void), const char *activity)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		step();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		errcontext("%s", activity);
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	pgstat_report_stat(true);
	CHECK_FOR_INTERRUPTS();
}

void
ab_sweeper_main(Datum arg)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(ab_control_database, NULL, 0);
	ab_sweeper_settings();

	/* before anything is done with what a crash has left untold */
	do
		run_step(compare_events, "looking for events that nobody recorded");
	while (more_untold);
	do
	{
		expired_many = false;
		run_step(expire, "deleting branches that have expired");
	} while (expired_many);
	do
	{
		purged_many = false;
		run_step(purge_deleted, "deleting branches that nobody has recovered");
	} while (purged_many);
	run_step(sweep_bases, "dropping databases that states of the past were read in");
	run_step(sweep_orphans, "sweeping storage of dropped branches");
	run_step(sweep_snapshots, "retiring snapshots that nobody needs");
	run_step(ab_agent_roles_sweep, "dropping roles of agents that are gone");
	run_step(ab_firstuse_prepare_old, "making directories of branches that get old");
	run_step(ab_firstuse_prepare_jobs, "making directories of branches that have jobs");
	run_step(warn_of_age, "looking for snapshots that get too old");
	run_step(ab_quotaload_refresh, "looking after quotas");
	run_step(ab_keptnames_refresh, "noting new names of roles and databases");
	do
		run_step(prune_events, "removing old events");
	while (more_events);
}

BackgroundWorkerHandle *
ab_sweeper_start(void)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	ab_worker_describe(&worker, "sweeper", "ab_sweeper_main");
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}
