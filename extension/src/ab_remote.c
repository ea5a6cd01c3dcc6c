/*
 * ab_remote.c
 *	  Running statements in another database with the caller's rights.
 *
 * The caller starts a dynamic background worker that connects to the database as the
 * caller's current role, and reads what the worker sends through a shared memory
 * queue: its notices and errors in the wire protocol, and one 'C' when the
 * transaction is committed.  Nothing is shared but a dynamic segment that goes with
 * the two processes, so a crash leaves nothing.  The worker takes the ordinary
 * locks of what it runs; the deadlock detector does not know that the caller waits
 * for it, hence the lock_timeout.
 */
#include "ab_remote.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "libpq/pqformat.h"
#include "libpq/pqmq.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PGDLLEXPORT void ab_remote_main(Datum arg);

#define REMOTE_QUEUE_SIZE	16384
#define REMOTE_DONE			'C'

/* The segment: this, then the queue, then the statements with their NUL. */
typedef struct AbRemoteTask
{
	Oid			db;
	Oid			role;
	int			encoding;		/* of sql, and of what is sent back */
} AbRemoteTask;

#define TASK_SIZE MAXALIGN(sizeof(AbRemoteTask))

static shm_mq *
task_queue(AbRemoteTask *task)
{
	return (shm_mq *) ((char *) task + TASK_SIZE);
}

static char *
task_sql(AbRemoteTask *task)
{
	return (char *) task + TASK_SIZE + REMOTE_QUEUE_SIZE;
}

/* ---- the worker ---- */

/*
 * Sessions of a role work under the settings of that role in that database, except
 * for those that could make a fixed statement mean something else.
 */
static void
worker_settings(void)
{
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("client_min_messages", "warning", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_read_only", "off", PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_SESSION);
	SetConfigOption("lock_timeout", "10s", PGC_USERSET, PGC_S_SESSION);
}

static void
run_statements(AbRemoteTask *task)
{
	char	   *sql;
	int			ret;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/* answers are read by a session of the other database's encoding */
	if (PrepareClientEncoding(task->encoding) < 0 ||
		SetClientEncoding(task->encoding) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("conversion between %s and %s is not supported",
						pg_encoding_to_char(task->encoding),
						GetDatabaseEncodingName())));
	sql = task_sql(task);
	sql = pg_any_to_server(sql, strlen(sql), task->encoding);

	debug_query_string = sql;
	pgstat_report_activity(STATE_RUNNING, sql);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	ret = SPI_execute(sql, false, 0);
	if (ret < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(ret));
	PopActiveSnapshot();
	SPI_finish();
	CommitTransactionCommand();
	debug_query_string = NULL;
	pgstat_report_stat(true);
}

void
ab_remote_main(Datum arg)
{
	dsm_segment *seg;
	AbRemoteTask *task;
	shm_mq	   *mq;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	CurrentMemoryContext = AllocSetContextCreate(TopMemoryContext,
												 "agent_branch remote",
												 ALLOCSET_DEFAULT_SIZES);

	/* without a resource owner the mapping lives as long as this process */
	seg = dsm_attach(DatumGetUInt32(arg));
	if (seg == NULL)
		return;					/* the caller is gone */
	task = dsm_segment_address(seg);
	mq = task_queue(task);
	shm_mq_set_sender(mq, MyProc);

	/* from here on every message, also of a failing connection, goes there */
	pq_redirect_to_shm_mq(seg, shm_mq_attach(mq, seg, NULL));
	BackgroundWorkerInitializeConnectionByOid(task->db, task->role, 0);
	worker_settings();
	run_statements(task);
	pq_putemptymessage(REMOTE_DONE);
}

/* ---- the caller ---- */

static dsm_segment *
make_task(Oid db, const char *sql)
{
	Size		sql_size = strlen(sql) + 1;
	dsm_segment *seg;
	AbRemoteTask *task;
	shm_mq	   *mq;

	seg = dsm_create(TASK_SIZE + REMOTE_QUEUE_SIZE + sql_size, 0);
	task = dsm_segment_address(seg);
	MemSet(task, 0, sizeof(*task));
	task->db = db;
	task->role = GetUserId();
	task->encoding = GetDatabaseEncoding();
	memcpy(task_sql(task), sql, sql_size);
	mq = shm_mq_create(task_queue(task), REMOTE_QUEUE_SIZE);
	shm_mq_set_receiver(mq, MyProc);
	return seg;
}

static BackgroundWorkerHandle *
start_worker(dsm_segment *seg)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	MemSet(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = UInt32GetDatum(dsm_segment_handle(seg));
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "agent_branch", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "ab_remote_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "agent_branch remote for PID %d", MyProcPid);
	strlcpy(worker.bgw_type, "agent_branch remote", BGW_MAXLEN);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots"),
				 errdetail("Reaching another database takes one for a moment."),
				 errhint("You might need to increase max_worker_processes.")));
	return handle;
}

/* Raise here what was raised there; weaker messages are passed on. */
static void
rethrow(StringInfo msg, Oid db)
{
	ErrorData	edata;
	char	   *where = psprintf("worker in database with OID %u", db);

	pq_parse_errornotice(msg, &edata);

	/* its FATAL ended the worker, not this session */
	edata.elevel = Min(edata.elevel, ERROR);
	edata.context = edata.context ? psprintf("%s\n%s", edata.context, where) : where;
	ThrowErrorData(&edata);
}

/* True when the worker has committed. */
static bool
handle_message(void *data, Size nbytes, Oid db)
{
	StringInfoData msg;
	char		type;

	initStringInfo(&msg);
	appendBinaryStringInfo(&msg, data, nbytes);
	type = pq_getmsgbyte(&msg);
	if (type == 'E' || type == 'N')
		rethrow(&msg, db);
	pfree(msg.data);
	return type == REMOTE_DONE; /* parameter status and the like: of no interest */
}

static void
wait_for_worker(shm_mq_handle *mqh, Oid db)
{
	for (;;)
	{
		Size		nbytes;
		void	   *data;

		switch (shm_mq_receive(mqh, &nbytes, &data, true))
		{
			case SHM_MQ_SUCCESS:
				if (handle_message(data, nbytes, db))
					return;
				break;
			case SHM_MQ_DETACHED:
				ereport(ERROR,
						(errcode(ERRCODE_CONNECTION_FAILURE),
						 errmsg("worker in database with OID %u ended before its transaction was over",
								db),
						 errhint("The server log has the reason.")));
				break;
			case SHM_MQ_WOULD_BLOCK:
				(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, 0,
								 PG_WAIT_EXTENSION);
				ResetLatch(MyLatch);
				break;
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/* The caller is cancelled, or ends: nobody waits for the worker any more. */
static void
give_up(int code, Datum arg)
{
	TerminateBackgroundWorker((BackgroundWorkerHandle *) DatumGetPointer(arg));
}

void
ab_remote_execute(Oid db, const char *sql)
{
	dsm_segment *seg = make_task(db, sql);
	BackgroundWorkerHandle *handle = start_worker(seg);
	shm_mq_handle *mqh;

	mqh = shm_mq_attach(task_queue(dsm_segment_address(seg)), seg, handle);
	PG_ENSURE_ERROR_CLEANUP(give_up, PointerGetDatum(handle));
	{
		wait_for_worker(mqh, db);
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up, PointerGetDatum(handle));

	/* it holds locks and a connection until it is gone */
	(void) WaitForBackgroundWorkerShutdown(handle);
	dsm_detach(seg);
	pfree(handle);
}
