/*
 * ab_gatherer.c
 *	  The worker that gathers origins (ab_gather.c), and when it is started.
 *
 * Started by the keeper, connected to no database, ends by itself.  The keeper starts it
 * again only when it has rested some times as long as it has worked: each batch writes the
 * whole file.  Its locks are those of ab_gather.c.
 */
#include "ab_gatherer.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "utils/timestamp.h"

#include "ab_gather.h"
#include "ab_worker.h"

#define REST_TIMES	4
#define RETRY_MS	1000

PGDLLEXPORT void ab_gatherer_main(Datum arg);

static BackgroundWorkerHandle *gatherer = NULL; /* the keeper's; running, as far as known */
static TimestampTz started_at = 0;
static TimestampTz rest_until = 0;

void
ab_gatherer_main(Datum arg)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "gathering the origins of new branches");
	StartTransactionCommand();
	ab_gather();
	CommitTransactionCommand();
}

static bool
is_running(void)
{
	pid_t		pid;
	TimestampTz now;

	if (gatherer == NULL)
		return false;
	if (GetBackgroundWorkerPid(gatherer, &pid) != BGWH_STOPPED)
		return true;
	pfree(gatherer);
	gatherer = NULL;
	now = GetCurrentTimestamp();
	rest_until = now + REST_TIMES * (now - started_at);
	return false;
}

static void
start(TimestampTz now)
{
	BackgroundWorker worker;

	started_at = now;
	ab_worker_describe(&worker, "gatherer", "ab_gatherer_main");
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &gatherer))
	{
		gatherer = NULL;
		rest_until = TimestampTzPlusMilliseconds(now, RETRY_MS);
	}
}

long
ab_gatherer_tend(void)
{
	TimestampTz now;

	if (is_running() || !ab_gather_is_due())
		return -1;				/* we are told when it ends */
	now = GetCurrentTimestamp();
	if (now >= rest_until)
		start(now);
	return gatherer != NULL ? -1 : TimestampDifferenceMilliseconds(now, rest_until) + 1;
}
