/*
 * ab_worker.c
 *	  Descriptions of background workers (ab_worker.h).
 *
 * The postmaster, for workers that are always there, and processes that start one for
 * themselves.  No state, no locks.
 */
#include "ab_worker.h"

#include "miscadmin.h"

void
ab_worker_describe(BackgroundWorker *worker, const char *what, const char *main_name)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, "agent_branch", BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, main_name, BGW_MAXLEN);
	snprintf(worker->bgw_name, BGW_MAXLEN, "agent_branch %s", what);
	strlcpy(worker->bgw_type, worker->bgw_name, BGW_MAXLEN);
}

void
ab_worker_register(const char *what, const char *main_name, int restart_s)
{
	BackgroundWorker worker;

	if (IsBinaryUpgrade)
		return;					/* pg_upgrade wants nobody connected */
	ab_worker_describe(&worker, what, main_name);
	worker.bgw_restart_time = restart_s;
	RegisterBackgroundWorker(&worker);
}
