/*
 * ab_suspendsession.c
 *	  A session's part in suspending and resuming its branch (ab_suspend.h).
 *
 * Every process that is connected to a database, when it arrives, and then the sessions of
 * branches; registered in the postmaster.  No locks but the activity lock for a moment, at
 * connect, and only while anything is suspended.
 *
 * Resuming: at the end of the transaction of connecting, when the client has been
 * authenticated and let into the database (M35), under the lock that suspending excludes.
 * Autovacuum does not resume anything.
 *
 * Leaving: who suspends sends the signal by which the server has idle sessions look at
 * invalidation messages, until they have left.  It is acted upon only by a session that
 * waits for a command, outside of a transaction by running an empty one, in a transaction
 * by handling the messages, one of which has our callback called.  There is one moment at
 * which it is acted upon and a command has been read already, of which nothing else tells:
 * but then the latch is as the signal has set it, while a session that slept resets it as
 * it wakes.  So who leaves slept, and what came meanwhile is still in the socket.
 */
#include "ab_suspend.h"

#include <poll.h>

/* As in ab_agentlogin.c: the offsets are the same without them. */
#undef ENABLE_GSS
#undef USE_OPENSSL

#include "access/xact.h"
#include "access/xlog.h"
#include "libpq/libpq-be.h"
#include "libpq/libpq.h"
#include "miscadmin.h"
#include "storage/backendid.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "ab_gate.h"
#include "ab_origin.h"
#include "ab_settings.h"

static bool arrived = false;	/* connecting is over */
static bool listening = false;	/* for the message */
static bool leaving = false;	/* it is said once */

/* When the last message came whose transaction is over. */
static TimestampTz last_message = 0;

/* ---- leaving ---- */

static AbActivitySlot *
my_slot(void)
{
	AbActivitySlot *slot;

	if (ab_activity == NULL || MyBackendId < 1 || MyBackendId > MaxBackends)
		return NULL;
	slot = &ab_activity->slots[MyBackendId - 1];
	return slot->pid == MyProcPid && slot->db == MyDatabaseId ? slot : NULL;
}

/* Also if it has hung up: the session will see that by itself. */
static bool
client_has_sent_something(void)
{
	struct pollfd p = {.fd = MyProcPort->sock, .events = POLLIN};

	return pq_buffer_has_data() || poll(&p, 1, 0) != 0;
}

static bool
has_slept(void)
{
	return !MyLatch->is_set;
}

/* A call by the protocol's fast path is no statement, and leaves no query string. */
static bool
is_in_fast_path(void)
{
	return MyBEEntry != NULL && MyBEEntry->st_state == STATE_FASTPATH;
}

static bool
is_to_leave(const volatile AbActivitySlot *slot)
{
	return !leaving && has_slept() && !is_in_fast_path() &&
		slot->leave_if_idle_since != 0 && slot->running_since == 0 &&
		slot->last_active < slot->leave_if_idle_since &&
		debug_query_string == NULL && MyProcPort != NULL &&
		!client_has_sent_something();
}

static void
leave(AbActivitySlot *slot)
{
	leaving = true;
	slot->leaving = true;
	ereport(FATAL,
			(errcode(ERRCODE_ADMIN_SHUTDOWN),
			 errmsg("terminating connection because branch \"%s\" is suspended",
					MyProcPort->database_name),
			 errdetail("This session has been idle since %s.",
					   timestamptz_to_str(slot->last_active)),
			 ab_auto_resume_enabled ?
			 errhint("Connecting again resumes the branch.") :
			 errhint("The branch can be connected to after branch.resume().")));
}

/* Idle in a transaction; the message may be handled at any time, too. */
static void
on_message(Datum arg, Oid relid)
{
	AbActivitySlot *slot;

	if (relid != AB_GATE_RELID || !IsTransactionBlock())
		return;
	slot = my_slot();
	if (slot != NULL && is_to_leave(slot))
		leave(slot);
}

/* A transaction that no message of the client has begun. */
static void
leave_if_asked(void)
{
	static AbActivitySlot *slot = NULL; /* once there is one */

	if (slot == NULL)
		slot = my_slot();
	if (slot != NULL && slot->leave_if_idle_since != 0 &&
		GetCurrentStatementStartTimestamp() == last_message && is_to_leave(slot))
		leave(slot);
}

/* ---- arriving ---- */

static void
arrive(void)
{
	arrived = true;
	if (MyBackendType == B_BACKEND && !listening && ab_branch_lookup(MyDatabaseId) != NULL)
	{
		CacheRegisterRelcacheCallback(on_message, (Datum) 0);
		listening = true;
	}
	if (ab_activity == NULL || ab_activity->nsuspended == 0 ||
		MyBackendType == B_AUTOVAC_WORKER || ab_activity_suspended_at(MyDatabaseId) == 0)
		return;
	/* a standby has nobody who could be told to resume it */
	if (MyBackendType == B_BACKEND && !ab_auto_resume_enabled && !RecoveryInProgress())
		ereport(FATAL,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("branch \"%s\" is suspended", MyProcPort->database_name),
				 errdetail("agent_branch.auto_resume_enabled is off."),
				 errhint("Call branch.resume() in database \"%s\" first.", ab_control_database)));
	(void) ab_resume(MyDatabaseId);
}

static pg_attribute_hot void
at_xact_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (!arrived && OidIsValid(MyDatabaseId) && IsUnderPostmaster)
				arrive();
			else if (arrived)
				leave_if_asked();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			last_message = GetCurrentStatementStartTimestamp();
			break;
		default:
			break;
	}
}

void
ab_suspendsession_install(void)
{
	RegisterXactCallback(at_xact_event, NULL);
}

void
ab_suspendsession_uninstall(void)
{
	if (arrived && !listening)
		UnregisterXactCallback(at_xact_event, NULL);
}
