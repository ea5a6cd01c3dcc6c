/*
 * ab_sessions.c
 *	  Getting the sessions of a database out of it, before that is deleted, reset or
 *	  detached.
 *
 * Backends that hold AccessExclusiveLock on the database object: who connects waits for
 * that, so the sessions only get fewer.  Only ProcArrayLock is taken, for a look.  While
 * sessions get their grace we wait without a lock request, so nobody is deadlocked by
 * that; a session that itself waits for us, directly or not, gets no grace.
 *
 * What was ended stays ended, also if the transaction is rolled back.
 */
#include "ab_sessions.h"

#include <signal.h>

#include "access/twophase.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "ab_pause.h"
#include "ab_settings.h"

#define POLL_MS		20

/* Until a session that was told to go has gone; as long as the server waits. */
#define EXIT_MS		5000

/* Until a session that we must not end has gone by itself: it may be leaving already. */
#define LEAVE_MS	1000

/* Processes looked at to find out who waits for whom. */
#define MAX_CHAIN	64

typedef struct Session
{
	int			pid;
	Oid			role;			/* invalid: a worker of the server's own */
	bool		busy;			/* in a transaction */
	bool		waits;			/* for a lock */
} Session;

/* ---- who is there ---- */

/* palloc'd. */
static Session *
other_sessions(Oid db, int *n)
{
	Session    *sessions = palloc(sizeof(Session) * ProcGlobal->allProcCount);

	*n = 0;
	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		Session    *s = &sessions[*n];

		/* entries of processes that have gone keep their looks */
		if (proc->databaseId != db || proc == MyProc || proc->pid == 0 ||
			BackendPidGetProcWithLock(proc->pid) != proc)
			continue;
		s->pid = proc->pid;
		s->role = proc->roleId;
		s->busy = LocalTransactionIdIsValid(proc->lxid);
		s->waits = proc->waitStatus == PROC_WAIT_STATUS_WAITING;
		(*n)++;
	}
	LWLockRelease(ProcArrayLock);
	return sessions;
}

static void
add_blockers(int *pids, int *n, int pid)
{
	ArrayType  *array = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids,
															   Int32GetDatum(pid)));
	int			nblockers = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	int		   *blockers = (int *) ARR_DATA_PTR(array);

	for (int i = 0; i < nblockers && *n < MAX_CHAIN; i++)
	{
		bool		known = false;

		for (int k = 0; k < *n && !known; k++)
			known = pids[k] == blockers[i];
		if (!known)
			pids[(*n)++] = blockers[i];
	}
	pfree(array);
}

/* Does it wait for a lock that only our end will free? */
static bool
waits_for_us(const Session *s)
{
	int			chain[MAX_CHAIN];
	int			n = 1;

	if (!s->waits)
		return false;
	chain[0] = s->pid;
	for (int i = 0; i < n; i++)
	{
		if (chain[i] == MyProcPid)
			return true;
		add_blockers(chain, &n, chain[i]);
	}
	return false;
}

/* ---- telling them to go ---- */

static void
refuse_prepared(Oid db, const char *name)
{
	int			nprepared = 0;

	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (int i = 0; i < max_prepared_xacts; i++)
	{
		PGPROC	   *proc = &PreparedXactProcs[i];

		nprepared += proc->databaseId == db && TransactionIdIsValid(proc->xid) &&
			ProcGlobal->xids[proc->pgxactoff] == proc->xid;
	}
	LWLockRelease(ProcArrayLock);
	if (nprepared > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("branch \"%s\" is being used by prepared transactions", name),
				 errdetail_plural("There is %d prepared transaction using it.",
								  "There are %d prepared transactions using it.",
								  nprepared, nprepared),
				 errhint("Finish them with COMMIT PREPARED or ROLLBACK PREPARED.")));
}

/*
 * As DROP DATABASE ... WITH (FORCE) has it, but whoever may do that may also end
 * processes that belong to nobody: autovacuum goes by itself anyway.
 */
static bool
may_end(const Session *s)
{
	if (!OidIsValid(s->role) || superuser())
		return true;
	return !superuser_arg(s->role) &&
		(has_privs_of_role(GetUserId(), s->role) ||
		 has_privs_of_role(GetUserId(), ROLE_PG_SIGNAL_BACKEND));
}

/* Once is enough: no others come.  A session may just be leaving. */
static void
check_rights(Oid db, const char *name)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);

	for (;;)
	{
		int			n;
		Session    *sessions = other_sessions(db, &n);
		int			i;

		for (i = 0; i < n && may_end(&sessions[i]); i++)
			;
		if (i == n)
			return;
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to end the sessions in branch \"%s\"", name),
					 errdetail("One of them is of role \"%s\".",
							   GetUserNameFromId(sessions[i].role, true)),
					 errhint("Its members can end it, roles with pg_signal_backend unless it is a superuser's, and superusers.")));
		pfree(sessions);
		ab_pause(POLL_MS);
	}
}

static void
end_session(Oid db, const Session *s)
{
	PGPROC	   *proc = BackendPidGetProc(s->pid);

	if (proc == NULL || proc->databaseId != db)
		return;					/* gone meanwhile */
#ifdef HAVE_SETSID
	(void) kill(-s->pid, SIGTERM);
#else
	(void) kill(s->pid, SIGTERM);
#endif
}

/* ---- waiting ---- */

/* End those whose time has come; how many are left to finish what they do? */
static int
end_some(Oid db, const Session *sessions, int n, bool all)
{
	int			nbusy = 0;

	for (int i = 0; i < n; i++)
	{
		if (all || !sessions[i].busy || !OidIsValid(sessions[i].role) ||
			waits_for_us(&sessions[i]))
			end_session(db, &sessions[i]);
		else
			nbusy++;
	}
	return nbusy;
}

void
ab_sessions_end(Oid db, const char *name)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   ab_session_grace);
	TimestampTz all_told = 0;
	bool		said = false;

	refuse_prepared(db, name);
	check_rights(db, name);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		int			n;
		Session    *sessions = other_sessions(db, &n);
		int			nbusy = end_some(db, sessions, n, now >= deadline);

		pfree(sessions);
		if (n == 0)
			return;
		if (nbusy > 0 && !said)
			ereport(NOTICE,
					(errmsg_plural("waiting for %d session of branch \"%s\" to finish its transaction",
								   "waiting for %d sessions of branch \"%s\" to finish their transactions",
								   nbusy, nbusy, name),
					 errdetail("agent_branch.session_grace is %d ms.", ab_session_grace)));
		said |= nbusy > 0;

		/* a session that does not go is the caller's to complain about */
		if (nbusy == 0 && all_told == 0)
			all_told = now;
		if (all_told != 0 && now >= TimestampTzPlusMilliseconds(all_told, EXIT_MS))
			return;
		ab_pause(POLL_MS);
	}
}

void
ab_sessions_check(Oid db, const char *name)
{
	int			nsessions;
	int			nprepared;

	if (!CountOtherDBBackends(db, &nsessions, &nprepared))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("branch \"%s\" is being accessed by other users", name),
			 errdetail("Other sessions using it: %d; prepared transactions in it: %d.",
					   nsessions, nprepared),
			 nprepared > 0 ?
			 errhint("Finish its prepared transactions with COMMIT PREPARED or ROLLBACK PREPARED.") :
			 errhint("Disconnect them, or call the function with force => true.")));
}
