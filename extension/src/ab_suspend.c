/*
 * ab_suspend.c
 *	  Suspending and resuming a branch (ab_suspend.h).
 *
 * Backends in the control database, under AccessExclusiveLock on the database object:
 * who connects waits for that, at most LEAVE_MS and a scan of the buffers, and resumes the
 * branch then.  Pages are dropped only when there is neither a session nor a prepared
 * transaction nor an active replication slot left (M9), so none is dirtied after it was
 * written.  The activity lock, a leaf, for the state and for looking at slots.
 *
 * Sessions are not signalled to end: one that just gets a statement would lose it.  They
 * are asked, and answer in ab_suspendsession.c.
 */
#include "ab_suspend.h"

#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "ab_branchsetting.h"
#include "ab_catalogrows.h"
#include "ab_failpoint.h"
#include "ab_gate.h"
#include "ab_pause.h"
#include "ab_settings.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"

#define LEAVE_MS	1000
#define POLL_MS		5

/* A process that is connected to the branch. */
typedef struct Guest
{
	int			pid;
	BackendId	id;
	Oid			role;
	bool		autovacuum;
	bool		worker;
	bool		in_transaction;
	bool		holds;			/* a snapshot or a transaction id */
	bool		counted;		/* it has a slot, hence is a client's */
	bool		running;
	bool		leaving;
	TimestampTz last_active;
} Guest;

/* ---- who is there ---- */

static void
look_at_slot(Guest *g, Oid db)
{
	const volatile AbActivitySlot *slot = &ab_activity->slots[g->id - 1];

	if (slot->db != db || slot->pid != g->pid)
		return;
	g->counted = true;
	g->running = slot->running_since != 0;
	g->leaving = slot->leaving;
	g->last_active = slot->last_active;
}

/* palloc'd. */
static Guest *
list_guests(Oid db, int *n)
{
	Guest	   *guests = palloc0(sizeof(Guest) * ProcGlobal->allProcCount);

	*n = 0;
	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		Guest	   *g = &guests[*n];

		if (proc->databaseId != db || proc->pid == 0 ||
			BackendPidGetProcWithLock(proc->pid) != proc)
			continue;
		g->pid = proc->pid;
		g->id = proc->backendId;
		g->role = proc->roleId;
		g->autovacuum = (proc->statusFlags & PROC_IS_AUTOVACUUM) != 0;
		g->worker = proc->isBackgroundWorker;
		g->in_transaction = LocalTransactionIdIsValid(proc->lxid);
		g->holds = TransactionIdIsValid(proc->xmin) || TransactionIdIsValid(proc->xid);
		(*n)++;
	}
	LWLockRelease(ProcArrayLock);

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	for (int i = 0; i < *n; i++)
		if (guests[i].id >= 1 && guests[i].id <= MaxBackends)
			look_at_slot(&guests[i], db);
	LWLockRelease(ab_activity->lock);
	return guests;
}

static bool
has_prepared(Oid db)
{
	int			n = 0;

	LWLockAcquire(ProcArrayLock, LW_SHARED);
	for (int i = 0; i < max_prepared_xacts; i++)
	{
		PGPROC	   *proc = &PreparedXactProcs[i];

		n += proc->databaseId == db && TransactionIdIsValid(proc->xid) &&
			ProcGlobal->xids[proc->pgxactoff] == proc->xid;
	}
	LWLockRelease(ProcArrayLock);
	return n > 0;
}

/* A transaction that has stood still for as long as the setting says. */
static bool
idle_long_enough(Oid db, const Guest *g)
{
	int			allowed = ab_branchsetting(db, AB_BRANCH_IDLE_IN_TRANSACTION);

	return allowed >= 0 &&
		GetCurrentTimestamp() - g->last_active >= allowed * USECS_PER_SEC;
}

/* NULL: nothing about it keeps the branch awake. */
static char *
why_awake(Oid db, const Guest *g, TimestampTz idle_since)
{
	if (!g->counted)
		return psprintf("Process %d is a worker or replicates.", g->pid);
	if (g->running)
		return psprintf("Process %d is running a statement.", g->pid);
	if (g->last_active > idle_since)
		return psprintf("Process %d has just been active.", g->pid);
	if (g->in_transaction && g->holds && !idle_long_enough(db, g))
		return psprintf("Process %d is in a transaction.", g->pid);
	return NULL;
}

static bool
may_end(Oid role)
{
	if (superuser())
		return true;
	return !superuser_arg(role) &&
		(has_privs_of_role(GetUserId(), role) ||
		 has_privs_of_role(GetUserId(), ROLE_PG_SIGNAL_BACKEND));
}

/* NULL: the branch can be suspended, as soon as those that are left have left. */
static char *
judge(Oid db, const Guest *guests, int n, const AbSuspendHow *how)
{
	for (int i = 0; i < n; i++)
	{
		char	   *why;

		if (guests[i].autovacuum && how->wait)
			continue;			/* it is sent away */
		if (guests[i].autovacuum)
			return psprintf("Process %d is autovacuum's.", guests[i].pid);
		why = why_awake(db, &guests[i], how->idle_since);
		if (why != NULL)
			return why;
		if (how->check_rights && !may_end(guests[i].role))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to end the sessions in the branch"),
					 errdetail("One of them is of role \"%s\".",
							   GetUserNameFromId(guests[i].role, true)),
					 errhint("Its members can end it, roles with pg_signal_backend unless it is a superuser's, and superusers.")));
	}
	return NULL;
}

/* ---- asking them to leave ---- */

static void
ask(Oid db, const Guest *g, TimestampTz judged_at)
{
	AbActivitySlot *slot = &ab_activity->slots[g->id - 1];
	bool		there;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	there = slot->db == db && slot->pid == g->pid;
	if (there)
		slot->leave_if_idle_since = judged_at;
	LWLockRelease(ab_activity->lock);
	if (there)
		(void) SendProcSignal(g->pid, PROCSIG_CATCHUP_INTERRUPT, g->id);
}

/*
 * A session that waits for a command looks at invalidation messages when it is sent this
 * signal: in a transaction of its own, or, if it is in one, by itself.  The message is for
 * the latter: it has a callback called.
 */
static void
send_message(Oid db)
{
	SharedInvalidationMessage msg = {0};

	msg.rc.id = SHAREDINVALRELCACHE_ID;
	msg.rc.dbId = db;
	msg.rc.relId = AB_GATE_RELID;
	SendSharedInvalidMessages(&msg, 1);
}

static void
ask_all(Oid db, const Guest *guests, int n, TimestampTz judged_at)
{
	send_message(db);
	for (int i = 0; i < n; i++)
		if (!guests[i].autovacuum)
			ask(db, &guests[i], judged_at);
}

static void
take_back(Oid db)
{
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MaxBackends; i++)
		if (ab_activity->slots[i].db == db)
			ab_activity->slots[i].leave_if_idle_since = 0;
	LWLockRelease(ab_activity->lock);
}

static int
count_clients(const Guest *guests, int n)
{
	int			nclients = 0;

	for (int i = 0; i < n; i++)
		nclients += !guests[i].autovacuum;
	return nclients;
}

/* A client's process that does as it was asked, or has given its slot back; or it replicates. */
static bool
may_be_leaving(const Guest *guests, int n)
{
	for (int i = 0; i < n; i++)
		if (guests[i].leaving ||
			(!guests[i].counted && !guests[i].autovacuum && !guests[i].worker))
			return true;
	return false;
}

static Guest *
list_guests_but_leaving(Oid db, bool wait, int *n)
{
	TimestampTz began_at = GetCurrentTimestamp();
	Guest	   *guests = list_guests(db, n);

	while (wait && may_be_leaving(guests, *n) &&
		   !TimestampDifferenceExceeds(began_at, GetCurrentTimestamp(), LEAVE_MS))
	{
		ab_pause(POLL_MS);
		pfree(guests);
		guests = list_guests(db, n);
	}
	return guests;
}

/*
 * NULL: they are gone.  Each session decides for itself, so that one that begins to do
 * something stays, and the branch stays awake.
 */
static pg_noinline char *
have_them_leave(Oid db, const Guest *guests, int n, const AbSuspendHow *how)
{
	AbSuspendHow since = *how;
	TimestampTz judged_at = GetCurrentTimestamp();
	char	   *why = NULL;

	since.idle_since = judged_at;
	ask_all(db, guests, n, judged_at);
	for (;;)
	{
		int			nleft;
		Guest	   *left = list_guests(db, &nleft);

		if (count_clients(left, nleft) == 0)
			return NULL;
		if (!may_be_leaving(left, nleft))
			why = judge(db, left, nleft, &since);
		if (why == NULL &&
			TimestampDifferenceExceeds(judged_at, GetCurrentTimestamp(), LEAVE_MS))
			why = pstrdup("Its sessions did not leave.");
		if (why != NULL)
			return why;
		ab_pause(POLL_MS);
		ask_all(db, left, nleft, judged_at);
		pfree(left);
	}
}

/* ---- the branch itself ---- */

/* NULL: nobody can dirty a page of it any more. */
static char *
why_not_empty(Oid db)
{
	int			nsessions;
	int			nprepared;
	int			nslots;
	int			nactive;

	if (CountOtherDBBackends(db, &nsessions, &nprepared))
		return nprepared > 0 ? pstrdup("It has prepared transactions.") :
			pstrdup("Somebody is connected to it.");
	if (ReplicationSlotsCountDBSlots(db, &nslots, &nactive) && nactive > 0)
		return pstrdup("A replication slot of it is in use.");
	return NULL;
}

/* Whatever comes of it, nobody is asked any more afterwards. */
static pg_noinline char *
try_to_have_them_leave(Oid db, const Guest *guests, int n, const AbSuspendHow *how)
{
	char	   *volatile why = NULL;

	PG_TRY();
	{
		why = have_them_leave(db, guests, n, how);
	}
	PG_CATCH();
	{
		take_back(db);
		PG_RE_THROW();
	}
	PG_END_TRY();
	take_back(db);
	return why;
}

static char *
empty(Oid db, const AbSuspendHow *how)
{
	int			n;
	Guest	   *guests = list_guests_but_leaving(db, how->wait, &n);
	char	   *why = has_prepared(db) ? pstrdup("It has prepared transactions.") :
		judge(db, guests, n, how);

	if (why == NULL && count_clients(guests, n) > 0)
		why = try_to_have_them_leave(db, guests, n, how);
	return why != NULL ? why : why_not_empty(db);
}

static bool
make_room(Oid db, TimestampTz origin_at)
{
	bool		made;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	made = ab_activity_make(db, origin_at) != NULL;
	LWLockRelease(ab_activity->lock);
	return made;
}

static bool
mark(Oid db, TimestampTz origin_at, AbSuspendReason reason)
{
	AbActivity *entry;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	entry = ab_activity_make(db, origin_at);
	if (entry != NULL && entry->suspended_at == 0)
	{
		entry->suspended_at = GetCurrentTimestamp();
		entry->suspended_for = reason;
		entry->moved_by = GetUserId();
		entry->changed = true;
		ab_activity->nsuspended++;
		ab_activity_touch(entry);
		if (ab_activity->worker != NULL)
			SetLatch(ab_activity->worker);
	}
	LWLockRelease(ab_activity->lock);
	return entry != NULL;
}

/* Nobody has come since it was suspended. */
static bool
is_suspended(Oid db)
{
	int			n;
	Guest	   *guests;

	if (ab_activity_suspended_at(db) == 0)
		return false;
	guests = list_guests(db, &n);
	pfree(guests);
	return n == 0;
}

static AbSuspendOutcome
suspend_locked(Oid db, const AbSuspendHow *how, char **why)
{
	AbOriginHeader origin;

	if (ab_database_name(db) == NULL || ab_database_is_deleted(db) ||
		!ab_storage_read_origin(db, &origin))
		return AB_SUSPEND_GONE;
	if (is_suspended(db))
		return AB_SUSPEND_DONE;
	if (!make_room(db, origin.created_at))
		return AB_SUSPEND_NO_ROOM;
	*why = empty(db, how);
	if (*why != NULL)
		return AB_SUSPEND_BUSY;

	FlushDatabaseBuffers(db);
	AB_FAILPOINT("suspend-flushed");
	DropDatabaseBuffers(db);
	AB_FAILPOINT("suspend-cold");
	return mark(db, origin.created_at, how->reason) ? AB_SUSPEND_DONE : AB_SUSPEND_NO_ROOM;
}

AbSuspendOutcome
ab_suspend(Oid db, const AbSuspendHow *how, char **why)
{
	LOCKTAG		tag;
	AbSuspendOutcome outcome;

	*why = NULL;
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	if (LockAcquire(&tag, AccessExclusiveLock, false, !how->wait) == LOCKACQUIRE_NOT_AVAIL)
		return AB_SUSPEND_LOCKED;
	AcceptInvalidationMessages();
	outcome = suspend_locked(db, how, why);
	(void) LockRelease(&tag, AccessExclusiveLock, false);
	return outcome;
}

bool
ab_resume(Oid db)
{
	AbActivity *entry;
	bool		was;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	entry = ab_activity_find(db);
	was = entry != NULL && entry->suspended_at != 0;
	if (was)
	{
		entry->suspended_at = 0;
		entry->naps += entry->naps < PG_UINT8_MAX;
		entry->moved_by = GetUserId();
		entry->changed = true;
		ab_activity->nsuspended--;
		ab_activity_touch(entry);
		if (ab_activity->worker != NULL)
			SetLatch(ab_activity->worker);
	}
	LWLockRelease(ab_activity->lock);
	return was;
}
