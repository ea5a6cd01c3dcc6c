/*
 * ab_remote.c
 *	  Sessions in other databases (ab_remote.h): the caller's side.
 *
 * Runs in the backend that opens them.  It starts a dynamic background worker
 * (ab_remote_worker.c), sends it requests through one shared memory queue and reads what
 * it answers from another (ab_remote_answers.c).  Callbacks at the end of a
 * (sub)transaction end the sessions it has opened, so that a cancelled or failed caller
 * leaves no worker behind.  Nothing
 * is shared but a dynamic segment that goes with the two processes: a crash leaves
 * nothing.
 *
 * The worker may wait for a lock that this process holds, while this process waits for
 * the worker; the deadlock detector does not see the second wait.  So whoever waits here
 * looks every deadlock_timeout whether that is so, and ends that session with 40P01.  A
 * longer circle, through another process that waits for its worker, ends by lock_timeout.
 */
#include "ab_remote_session.h"
#include "ab_remote_wire.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "common/relpath.h"
#include "libpq/pqformat.h"
#include "libpq/pqmq.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/dest.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/relcache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_agentrole.h"
#include "ab_base.h"
#include "ab_dir.h"
#include "ab_file.h"
#include "ab_registry.h"
#include "ab_settings.h"
#include "ab_worker.h"

/* How long one that is needed waits for a slot: others' workers may just be ending. */
#define SLOT_WAIT_MS	1000
#define SLOT_POLL_MS	5

static AbRemote *open_sessions = NULL;
static AbRemote *left_sessions = NULL;	/* their workers were not waited for */
static int	last_number = 0;

/* ---- end of a session ---- */

static void
wait_for_latch(long timeout)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	(void) WaitLatch(MyLatch, timeout < 0 ? events : events | WL_TIMEOUT, timeout,
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* The worker is told and not waited for; also called where a transaction aborts. */
static void
let_go(AbRemote *session)
{
	AbRemote  **link = &open_sessions;

	while (*link != session)
		link = &(*link)->next;
	*link = session->next;

	/* an idle one ends when the queues are detached, a busy one has to be told */
	if (session->state == AB_SESSION_BUSY || session->state == AB_SESSION_COMMITTING)
		TerminateBackgroundWorker(session->handle);
	dsm_detach(session->seg);
}

static void
add_left(AbRemote *session)
{
	MemoryContextSetParent(session->context, TopMemoryContext);
	MemoryContextDeleteChildren(session->context);
	session->next = left_sessions;
	left_sessions = session;
}

/* Where a transaction aborts; its worker goes on taking a slot until it has ended. */
static void
leave(AbRemote *session)
{
	let_go(session);
	add_left(session);
}

/* Forgets those that were left and have ended; if told to wait, each has. */
static void
forget_left(bool wait)
{
	AbRemote  **link = &left_sessions;

	while (*link != NULL)
	{
		AbRemote   *session = *link;
		pid_t		pid;

		if (wait)
			(void) WaitForBackgroundWorkerShutdown(session->handle);
		else if (GetBackgroundWorkerPid(session->handle, &pid) != BGWH_STOPPED)
		{
			link = &session->next;
			continue;
		}
		*link = session->next;
		MemoryContextDelete(session->context);
	}
}

/*
 * Wait until it holds no locks and is no connection any more.  Its process takes some time
 * more to end, ten milliseconds if it has looked at much of shared buffers, and a slot until
 * then; false: it has ended already.
 */
static bool
wait_until_disconnected(AbRemote *session)
{
	pid_t		pid;
	BgwHandleStatus status;

	if (!session->connected)	/* it may not be one yet */
		return WaitForBackgroundWorkerShutdown(session->handle) != BGWH_STOPPED;
	while ((status = GetBackgroundWorkerPid(session->handle, &pid)) == BGWH_STARTED &&
		   BackendPidGetProc(pid) != NULL)
		wait_for_latch(1);
	return status != BGWH_STOPPED;
}

void
ab_remote_close_each(AbRemote **sessions, int n)
{
	for (int i = 0; i < n; i++)
	{
		let_go(sessions[i]);
		MemoryContextSetParent(sessions[i]->context, CurTransactionContext);
	}
	for (int i = 0; i < n; i++)
	{
		if (wait_until_disconnected(sessions[i]))
			add_left(sessions[i]);
		else
			MemoryContextDelete(sessions[i]->context);
	}
}

void
ab_remote_close(AbRemote *session)
{
	ab_remote_close_each(&session, 1);
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			while (open_sessions != NULL)
			{
				if (!open_sessions->ahead)
					ereport(WARNING,
							(errmsg("session in database \"%s\" was not closed",
									open_sessions->database),
							 errdetail("What it has not committed is rolled back.")));
				ab_remote_close(open_sessions);
			}
			break;
		case XACT_EVENT_ABORT:
			while (open_sessions != NULL)
				leave(open_sessions);
			break;
		default:
			break;
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	AbRemote   *session;
	AbRemote   *next;

	for (session = open_sessions; session != NULL; session = next)
	{
		next = session->next;
		if (session->opener != mine)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			session->opener = parent;
		else if (event == SUBXACT_EVENT_ABORT_SUB)
			leave(session);
	}
}

static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
	registered = true;
}

/* ---- opening ---- */

/* The worker would wait for the lock with which this transaction creates or drops it. */
static bool
is_locked_by_me(Oid db)
{
	static const LOCKMODE modes[] = {
		ShareLock, ShareRowExclusiveLock, ExclusiveLock, AccessExclusiveLock
	};
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	for (int i = 0; i < lengthof(modes); i++)
		if (LockHeldByMe(&tag, modes[i]))
			return true;
	return false;
}

static void
refuse_closed(Oid db, const char *name)
{
	AbRegistryRow row;

	if (ab_registry_get(db, &row) && !row.isnull[AB_REGISTRY_DELETED_AT])
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("branch \"%s\" has been deleted",
						row.isnull[AB_REGISTRY_DELETED_NAME] ? name :
						TextDatumGetCString(row.value[AB_REGISTRY_DELETED_NAME])),
				 errhint("branch.recover() brings it back.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("database \"%s\" is not currently accepting connections", name)));
}

/* Has somebody been connected to it since it was made, or changed its catalogs? */
static bool
has_cache_file(Oid db, Oid tablespace)
{
	char	   *directory = GetDatabasePath(db, tablespace);
	char	   *path = psprintf("%s/%s", directory, RELCACHE_INIT_FILENAME);
	bool		found = ab_file_exists(path);

	pfree(path);
	pfree(directory);
	return found;
}

/* An agent's role gets in where it may log in, and nowhere else (ab_agentlogin.c). */
static bool
is_let_in(HeapTuple tup, Oid db)
{
	Oid			role = GetUserId();
	Datum		acl;
	bool		isnull;

	if (pg_database_aclcheck(db, role, ACL_CONNECT) != ACLCHECK_OK)
		return false;
	if (superuser() || !ab_agent_is_role(role))
		return true;
	acl = SysCacheGetAttr(DATABASEOID, tup, Anum_pg_database_datacl, &isnull);
	return ab_agent_may_connect(role, isnull ? NULL : DatumGetAclP(acl));
}

/* Returns the database's name. */
static char *
check_database(Oid db, bool *has_cache, bool *closed)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Form_pg_database form;
	char	   *name;

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", db)));
	form = (Form_pg_database) GETSTRUCT(tup);
	name = pstrdup(NameStr(form->datname));
	*closed = !form->datallowconn;
	if (!is_let_in(tup, db) && !ab_base_is_open(db))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", name),
				 errdetail("Role \"%s\" may not connect to it.",
						   GetUserNameFromId(GetUserId(), true))));
	if (*closed && !ab_base_is_open(db))
		refuse_closed(db, name);
	if (is_locked_by_me(db))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("database \"%s\" cannot be reached by the transaction that has created or changed it",
						name),
				 errhint("Commit first.")));
	ab_dir_ensure(db, form->dattablespace);
	*has_cache = has_cache_file(db, form->dattablespace);
	ReleaseSysCache(tup);
	return name;
}

/*
 * What was said by SET, or when the caller connected: that is meant for what it does in other
 * databases, too.
 */
static int
said_lock_timeout(void)
{
	static const struct config_generic *setting = NULL;

	return ab_setting_source("lock_timeout", &setting) >= PGC_S_CLIENT ? LockTimeout : 0;
}

/* A read-only transaction does not write elsewhere either. */
static void
make_segment(AbRemote *session, Oid db, const AbRemoteOptions *options, bool has_cache,
			 bool closed)
{
	AbRemoteTask *task;

	session->seg = dsm_create(AB_REMOTE_SEGMENT_SIZE, 0);
	dsm_pin_mapping(session->seg);
	task = dsm_segment_address(session->seg);
	MemSet(task, 0, sizeof(*task));
	task->db = db;
	task->role = GetUserId();
	task->role_is_superuser = superuser();
	task->encoding = GetDatabaseEncoding();
	task->closed = closed;
	task->leave_no_cache = options->autocommit && !has_cache;
	task->options = *options;
	if (options->purpose != AB_REMOTE_FOR_BOOK)
		task->lock_timeout = said_lock_timeout();
	if (XactReadOnly)
		task->options.access = AB_REMOTE_READ_ONLY;

	shm_mq_set_receiver(shm_mq_create(ab_remote_answers(task), AB_REMOTE_ANSWERS_SIZE),
						MyProc);
	shm_mq_set_sender(shm_mq_create(ab_remote_requests(task), AB_REMOTE_REQUESTS_SIZE),
					  MyProc);
}

/* Calls that fail one after the other do not use up the slots. */
static bool
start_worker(AbRemote *session)
{
	BackgroundWorker worker;

	ab_worker_describe(&worker, "remote", "ab_remote_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "agent_branch remote for PID %d", MyProcPid);
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_main_arg = UInt32GetDatum(dsm_segment_handle(session->seg));
	worker.bgw_notify_pid = MyProcPid;
	forget_left(false);
	if (RegisterDynamicBackgroundWorker(&worker, &session->handle))
		return true;
	if (left_sessions == NULL)
		return false;
	forget_left(true);
	return RegisterDynamicBackgroundWorker(&worker, &session->handle);
}

static void
attach_queues(AbRemote *session)
{
	AbRemoteTask *task = dsm_segment_address(session->seg);

	session->answers = shm_mq_attach(ab_remote_answers(task), session->seg,
									 session->handle);
	session->requests = shm_mq_attach(ab_remote_requests(task), session->seg,
									  session->handle);
}

AbRemote *
ab_remote_try_open(Oid db, const AbRemoteOptions *options)
{
	char	   *name;
	MemoryContext context;
	MemoryContext old;
	AbRemote   *session;
	bool		has_cache;
	bool		closed;
	bool		started;

	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot reach another database within security-restricted operation")));
	name = check_database(db, &has_cache, &closed);
	register_callbacks();

	context = AllocSetContextCreate(CurTransactionContext, "agent_branch remote session",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	session = palloc0(sizeof(AbRemote));
	session->context = context;
	session->database = pstrdup(name);
	session->number = ++last_number;
	session->role = GetUserId();
	session->opener = GetCurrentSubTransactionId();
	session->db = db;
	session->options = *options;
	session->columns_context = AllocSetContextCreate(context, "columns",
													 ALLOCSET_SMALL_SIZES);
	initStringInfo(&session->message);
	make_segment(session, db, options, has_cache, closed);
	started = start_worker(session);
	if (started)
	{
		attach_queues(session);
		MemoryContextSetParent(context, TopMemoryContext);
		session->next = open_sessions;
		open_sessions = session;
	}
	else
		dsm_detach(session->seg);
	MemoryContextSwitchTo(old);
	pfree(name);
	if (started)
		return session;
	MemoryContextDelete(context);
	return NULL;
}

void
ab_remote_open_ahead(Oid db, const AbRemoteOptions *options)
{
	AbRemote   *session = ab_remote_try_open(db, options);

	if (session != NULL)
		session->ahead = true;
}

/* One that was opened ahead is as one that is opened now; NULL: there is none. */
static AbRemote *
find_ahead(Oid db, const AbRemoteOptions *options)
{
	for (AbRemote *session = open_sessions; session != NULL; session = session->next)
		if (session->ahead && session->db == db && session->role == GetUserId() &&
			session->options.access == options->access &&
			session->options.isolation == options->isolation &&
			session->options.autocommit == options->autocommit &&
			session->options.purpose == options->purpose)
		{
			session->ahead = false;
			session->opener = GetCurrentSubTransactionId();
			return session;
		}
	return NULL;
}

AbRemote *
ab_remote_open(Oid db, const AbRemoteOptions *options)
{
	AbRemote   *session = find_ahead(db, options);
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SLOT_WAIT_MS);

	while (session == NULL && (session = ab_remote_try_open(db, options)) == NULL &&
		   GetCurrentTimestamp() < deadline)
		wait_for_latch(SLOT_POLL_MS);
	if (session == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots"),
				 errdetail("Reaching another database takes one for a moment."),
				 errhint("You might need to increase max_worker_processes.")));
	return session;
}

int
ab_remote_number(AbRemote *session)
{
	return session->number;
}

AbRemote *
ab_remote_find(int number)
{
	AbRemote   *session = open_sessions;

	while (session != NULL && session->number != number)
		session = session->next;
	return session != NULL && session->role == GetUserId() ? session : NULL;
}

AbRemotePurpose
ab_remote_purpose(const AbRemote *session)
{
	return session->options.purpose;
}

const char *
ab_remote_database(const AbRemote *session)
{
	return session->database;
}

/* ---- requests ---- */

bool
ab_remote_is_ready(AbRemote *session)
{
	return session->state == AB_SESSION_READY;
}

int
ab_remote_check(const char *sql)
{
	return list_length(ab_remote_parse(sql, false));
}

/*
 * A worker that waits for requests reads what comes.  If it has ended instead, its
 * answers say why: not seen here, but by whoever reads them.
 */
void
ab_remote_request(AbRemote *session, const StringInfo request)
{
	if (session->state != AB_SESSION_READY)
		elog(ERROR, "session in database \"%s\" takes no request", session->database);
	session->state = AB_SESSION_BUSY;
	session->failed = false;
	while (shm_mq_send(session->requests, request->len, request->data, true, true) ==
		   SHM_MQ_WOULD_BLOCK)
		wait_for_latch(-1);
}

void
ab_remote_send(AbRemote *session, const char *sql, int flags)
{
	StringInfoData request;

	Assert(!(session->options.autocommit && (flags & AB_REMOTE_SAVEPOINT)));
	initStringInfo(&request);
	appendStringInfoChar(&request, AB_REMOTE_QUERY);
	appendStringInfoChar(&request, (char) flags);
	appendBinaryStringInfo(&request, sql, strlen(sql) + 1);
	session->binary = (flags & AB_REMOTE_BINARY) != 0;
	session->survives = (flags & AB_REMOTE_SAVEPOINT) != 0;
	ab_remote_request(session, &request);
	pfree(request.data);
}

void
ab_remote_send_with(AbRemote *session, const char *sql, const char *parameter, Size len)
{
	StringInfoData request;

	initStringInfo(&request);
	appendStringInfoChar(&request, AB_REMOTE_QUERY_WITH);
	appendBinaryStringInfo(&request, sql, strlen(sql) + 1);
	appendBinaryStringInfo(&request, parameter, len);
	appendStringInfoChar(&request, '\0');
	session->binary = session->survives = false;
	ab_remote_request(session, &request);
	pfree(request.data);
}

/* ---- waiting ---- */

/*
 * Does that process wait, directly or through others, for a lock of this one?  Not one
 * moment's picture: what is found has to be found twice.
 */
static bool
waits_for_me(int pid)
{
	List	   *pids = list_make1_int(pid);
	ListCell   *lc;

	foreach(lc, pids)
	{
		ArrayType  *array = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids,
																	Int32GetDatum(lfirst_int(lc))));
		int32	   *blockers = (int32 *) ARR_DATA_PTR(array);
		int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

		for (int i = 0; i < n; i++)
		{
			if (blockers[i] == MyProcPid)
				return true;
			pids = list_append_unique_int(pids, blockers[i]);
		}
	}
	return false;
}

static void
break_deadlocks(void)
{
	for (AbRemote *session = open_sessions; session != NULL; session = session->next)
	{
		bool		suspected = session->suspected;

		session->suspected = session->pid != 0 &&
			(session->state == AB_SESSION_BUSY || session->state == AB_SESSION_COMMITTING) &&
			waits_for_me(session->pid);
		if (!session->suspected || !suspected)
			continue;
		TerminateBackgroundWorker(session->handle);
		ab_remote_fail(session, ERRCODE_T_R_DEADLOCK_DETECTED,
					 psprintf("deadlock between this session and its session in database \"%s\"",
							  session->database),
					 psprintf("Process %d waits for a lock that process %d holds, which waits for its answer.",
							  session->pid, MyProcPid),
					 "Commit before reaching the other database.");
	}
}

void
ab_remote_wait(void)
{
	static TimestampTz checked_at = 0;
	TimestampTz now;

	wait_for_latch(DeadlockTimeout);
	now = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds(checked_at, now, DeadlockTimeout))
		return;
	checked_at = now;
	break_deadlocks();
}

AbRemoteEvent
ab_remote_next(AbRemote *session)
{
	AbRemoteEvent event;

	while ((event = ab_remote_poll(session)) == AB_REMOTE_WAIT)
		ab_remote_wait();
	if (event == AB_REMOTE_FAILED)
	{
		/* its locks are in nobody's way any more when the error is seen */
		if (session->state == AB_SESSION_OVER)
			(void) WaitForBackgroundWorkerShutdown(session->handle);
		ThrowErrorData(&session->error);
	}
	return event;
}

/* ---- all at once ---- */

void
ab_remote_run(AbRemote *session, const char *sql)
{
	ab_remote_send(session, sql, 0);
	while (ab_remote_next(session) != AB_REMOTE_READY)
		;
}

static void
commit(AbRemote *session, char letter)
{
	StringInfoData request;

	Assert(!session->options.autocommit);
	initStringInfo(&request);
	appendStringInfoChar(&request, letter);
	session->survives = false;
	session->goes_on = letter == AB_REMOTE_SAVE;
	ab_remote_request(session, &request);
	session->state = AB_SESSION_COMMITTING;
	while (ab_remote_next(session) != AB_REMOTE_READY)
		;
	pfree(request.data);
}

void
ab_remote_commit(AbRemote *session)
{
	commit(session, AB_REMOTE_COMMIT);
}

void
ab_remote_save(AbRemote *session)
{
	commit(session, AB_REMOTE_SAVE);
}

void
ab_remote_execute(Oid db, const char *sql)
{
	AbRemoteOptions options = {AB_REMOTE_READ_WRITE, XACT_READ_COMMITTED, false};
	AbRemote   *session = ab_remote_open(db, &options);

	ab_remote_run(session, sql);
	ab_remote_commit(session);
	ab_remote_close(session);
}
