/*
 * ab_quota.c
 *	  Quotas: asking for places, giving them back, and telling why there is none.
 *
 * Backends of any database.  What is used is in shared memory (ab_quotatable.c); here
 * is what this transaction has to do with it, which is applied at its end.  Where there
 * is no quota and no limit, a creation reads two counters and sets a flag.
 */
#include "ab_quota.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ab_catalogrows.h"
#include "ab_diskspace.h"
#include "ab_failpoint.h"
#include "ab_origin.h"
#include "ab_quotacount.h"
#include "ab_settings.h"
#include "ab_storagefiles.h"

#define WAIT_MS 5000			/* for others to commit, or for the keeper */
#define MAX_KEYS 4
#define COUNT_TRIES 10

/* What this transaction does to a quota.  In TopTransactionContext. */
typedef struct Change
{
	dlist_node	node;
	SubTransactionId subid;
	AbQuotaKey	key;
	int64		n;				/* branches more, or less, once it has committed */
	int64		reserved;		/* places that are reserved for it */
	int64		freed;			/* places that it gives back */
	bool		is_set;			/* the quota itself changes: */
	bool		removed;		/* it goes, or has these */
	AbQuotaLimits limits;
} Change;

static dlist_head changes = DLIST_STATIC_INIT(changes);
static bool count_anew = false; /* once this transaction has committed */

/* ---- the transaction's end ---- */

static void
apply(Change *c)
{
	if (c->is_set)
		ab_quotatable_set(c->key, c->removed ? NULL : &c->limits);
	if (c->n != 0)
		ab_quotatable_change(c->key, c->n);
	if (c->reserved > 0)
		ab_quotatable_release(c->key, c->reserved);
}

static void
undo(Change *c)
{
	AbQuota		quota;

	if (c->reserved > 0)
		ab_quotatable_release(c->key, c->reserved);

	/* room that was made for it */
	if (c->is_set && ab_quotatable_get(c->key, &quota) &&
		quota.limits.branches == AB_NO_LIMIT && quota.limits.own_bytes == AB_NO_LIMIT &&
		quota.limits.per_minute == AB_NO_LIMIT && quota.limits.snapshots == AB_NO_LIMIT)
		ab_quotatable_set(c->key, NULL);
}

static void
forget(void)
{
	dlist_init(&changes);
	count_anew = false;
}

static void
at_commit(void)
{
	dlist_iter	it;

	if (count_anew)
		ab_quotatable_forget_counts();
	dlist_foreach(it, &changes)
		apply(dlist_container(Change, node, it.cur));
	if (!dlist_is_empty(&changes))
		ab_quotatable_after_commit();
	forget();
}

static void
at_abort(void)
{
	dlist_iter	it;

	dlist_foreach(it, &changes)
		undo(dlist_container(Change, node, it.cur));
	if (!dlist_is_empty(&changes))
		ab_quotatable_after_commit();
	forget();
}

/* Who commits it would know nothing of them. */
static void
refuse_prepare(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot prepare a transaction that has changed quotas or branches"),
			 errhint("Change them in a transaction of their own.")));
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (!dlist_is_empty(&changes))
				ab_quotatable_before_commit();
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (!dlist_is_empty(&changes))
				refuse_prepare();
			break;
		case XACT_EVENT_COMMIT:
			at_commit();
			break;
		case XACT_EVENT_ABORT:
			at_abort();
			break;
		default:
			break;
	}
}

/* The change of that key that belongs to that subtransaction; they are the list's end. */
static Change *
find_change(AbQuotaKey key, SubTransactionId subid)
{
	dlist_iter	it;

	dlist_reverse_foreach(it, &changes)
	{
		Change	   *c = dlist_container(Change, node, it.cur);

		if (c->subid < subid)
			break;
		if (c->subid == subid && !c->is_set &&
			memcmp(&c->key, &key, sizeof(key)) == 0)
			return c;
	}
	return NULL;
}

/* Make them the parent's, one for each key, so that the list stays short. */
static void
hand_up(SubTransactionId subid, SubTransactionId parent)
{
	dlist_mutable_iter it;

	dlist_foreach_modify(it, &changes)
	{
		Change	   *c = dlist_container(Change, node, it.cur);
		Change	   *same;

		if (c->subid < subid)
			continue;
		same = c->is_set ? NULL : find_change(c->key, parent);
		c->subid = parent;
		if (same == NULL)
			continue;
		same->n += c->n;
		same->reserved += c->reserved;
		same->freed += c->freed;
		dlist_delete(&c->node);
		pfree(c);
	}
}

static void
take_back(SubTransactionId subid)
{
	while (!dlist_is_empty(&changes))
	{
		Change	   *c = dlist_tail_element(Change, node, &changes);

		if (c->subid < subid)
			break;
		undo(c);
		dlist_delete(&c->node);
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
			   SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		take_back(mySubid);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		hand_up(mySubid, parentSubid);
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

static Change *
add_change(AbQuotaKey key, bool is_set)
{
	Change	   *c = is_set ? NULL : find_change(key, GetCurrentSubTransactionId());

	if (c != NULL)
		return c;
	c = MemoryContextAllocZero(TopTransactionContext, sizeof(Change));
	c->is_set = is_set;
	c->subid = GetCurrentSubTransactionId();
	c->key = key;
	dlist_push_tail(&changes, &c->node);
	return c;
}

/* What this transaction has done to a quota so far. */
static void
sum_own(AbQuotaKey key, int64 *reserved, int64 *freed, int64 *net)
{
	dlist_iter	it;

	*reserved = *freed = *net = 0;
	dlist_foreach(it, &changes)
	{
		Change	   *c = dlist_container(Change, node, it.cur);

		if (memcmp(&c->key, &key, sizeof(key)) != 0)
			continue;
		*reserved += c->reserved;
		*freed += c->freed;
		*net += c->n;
	}
}

/* ---- what is used ---- */

static void
wait_for_news(TimestampTz deadline)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	if (left > 0)
		(void) ConditionVariableTimedSleep(&ab_quotas->cv, left, PG_WAIT_EXTENSION);
}

static TimestampTz
deadline_from_now(void)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WAIT_MS);
}

/* The keeper reads the table when the server starts. */
static void
wait_until_loaded(void)
{
	TimestampTz deadline;

	if (!IsUnderPostmaster || pg_atomic_read_u32(&ab_quotas->loaded) != 0)
		return;
	deadline = deadline_from_now();
	ConditionVariablePrepareToSleep(&ab_quotas->cv);
	while (pg_atomic_read_u32(&ab_quotas->loaded) == 0)
	{
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("quotas of branches are not known yet"),
					 errdetail("The server has just started, and its agent_branch keeper has not read them."),
					 errhint("Try again. If that does not help, look for the keeper in pg_stat_activity and in the server log.")));
		wait_for_news(deadline);
	}
	ConditionVariableCancelSleep();
}

typedef struct Counting
{
	AbQuotaKey	key;
	uint32		epoch;
} Counting;

/* On ERROR and when the session is ended: others may count. */
static void
give_up_counting(int code, Datum arg)
{
	const Counting *c = (const Counting *) DatumGetPointer(arg);

	ab_quotatable_end_count(c->key, c->epoch, -1);
}

/* What this transaction has done is seen by its snapshot, but is not committed. */
static void
count_in(AbQuotaKey key, uint32 epoch, Snapshot snapshot)
{
	Counting	counting = {key, epoch};
	int64		reserved;
	int64		freed;
	int64		net;
	int64		n;

	PG_ENSURE_ERROR_CLEANUP(give_up_counting, PointerGetDatum(&counting));
	{
		AB_FAILPOINT("quota-counting");
		snapshot = RegisterSnapshot(snapshot);
		n = ab_quotacount_branches(key, snapshot);
		UnregisterSnapshot(snapshot);
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up_counting, PointerGetDatum(&counting));
	sum_own(key, &reserved, &freed, &net);
	ab_quotatable_end_count(key, epoch, n < 0 ? -1 : n - net);
}

/* Have the branches of a quota counted, by whomever. */
static void
make_known(AbQuotaKey key)
{
	for (int i = 0; i < COUNT_TRIES; i++)
	{
		AbQuota		quota;
		Snapshot	snapshot;
		uint32		epoch = ab_quotatable_begin_count(key, &snapshot);

		if (epoch > 0)
			count_in(key, epoch, snapshot);
		ConditionVariablePrepareToSleep(&ab_quotas->cv);
		if (!ab_quotatable_get(key, &quota) || quota.state == AB_COUNT_KNOWN)
			break;
		if (quota.state == AB_COUNT_BEGUN)
			wait_for_news(deadline_from_now());
	}
	ConditionVariableCancelSleep();
}

int64
ab_quota_branches(AbQuotaKey key)
{
	AbQuota		quota;

	wait_until_loaded();
	make_known(key);
	return ab_quotatable_get(key, &quota) && quota.state == AB_COUNT_KNOWN ?
		quota.count : -1;
}

/* Measured anew when that costs no more than a hundredth of the time. */
int64
ab_quota_own_bytes(AbQuotaKey key)
{
	AbQuota		quota;
	TimestampTz began = GetCurrentTimestamp();
	int64		bytes;

	if (!ab_quotatable_get(key, &quota))
		return 0;
	if (quota.measured_at != 0 && began >= quota.measured_at &&
		began - quota.measured_at < 100 * quota.measured_in)
		return quota.own_bytes;
	bytes = ab_quotacount_bytes(key);
	ab_quotatable_set_measure(key, bytes, GetCurrentTimestamp() - began);
	return bytes;
}

int64
ab_quota_recent(AbQuotaKey key)
{
	return ab_quotatable_recent(key);
}

/* ---- refusing ---- */

static char *
whose(AbQuotaKey key)
{
	char	   *role = OidIsValid(key.role) ? GetUserNameFromId(key.role, true) : NULL;
	char	   *parent = OidIsValid(key.parent) ? ab_database_name(key.parent) : NULL;

	if (OidIsValid(key.role) && OidIsValid(key.parent))
		return psprintf("role \"%s\" and parent \"%s\"", role ? role : "?",
						parent ? parent : "?");
	if (OidIsValid(key.role))
		return psprintf("role \"%s\"", role ? role : "?");
	return psprintf("parent \"%s\"", parent ? parent : "?");
}

void
ab_quota_refuse(AbQuotaKey key, const char *what, int64 limit, int64 used,
				const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("quota of %s is used up: %s", whose(key), what),
			 errdetail("The limit is %lld; in use: %lld.",
					   (long long) limit, (long long) used),
			 errhint("%s", hint)));
}

static void
refuse_cluster(int64 used)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("there are too many branches"),
			 errdetail("agent_branch.max_branches is %d, and there are %lld.",
					   ab_max_branches, (long long) used),
			 errhint("Delete branches, or raise agent_branch.max_branches.")));
}

/* n: how many were asked for at once. */
static void
refuse(const AbQuotaWish *wish, const AbQuotaReply *reply, int n)
{
	switch (reply->answer)
	{
		case AB_QUOTA_TOO_FAST:
			ab_quota_refuse(wish->key, "creations per minute", wish->max_per_minute,
							reply->used,
							n > wish->max_per_minute ?
							"Have the quota raised with branch.set_quota()." :
							psprintf("Try again in %d s.", reply->seconds));
			break;
		case AB_QUOTA_UNCOUNTED:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("branches could not be counted"),
					 errdetail("Databases are being dropped all the time."),
					 errhint("Try again.")));
			break;
		default:
			if (!OidIsValid(wish->key.role) && !OidIsValid(wish->key.parent))
				refuse_cluster(reply->used);
			ab_quota_refuse(wish->key, "branches", wish->max_branches, reply->used,
							"Delete branches, or have the quota raised with branch.set_quota().");
	}
}

/* ---- asking ---- */

/* Limits that apply to a new branch; own bytes are looked at here. */
static int
find_wishes(Oid owner, Oid parent, AbQuotaWish *wishes)
{
	const AbQuotaKey keys[] = {{owner, InvalidOid}, {InvalidOid, parent}, {owner, parent}};
	int			n = 0;

	if (ab_max_branches > 0)
	{
		AbQuotaWish *w = &wishes[n++];

		memset(w, 0, sizeof(*w));
		w->max_branches = ab_max_branches;
		w->max_per_minute = AB_NO_LIMIT;
	}
	for (int i = 0; i < lengthof(keys) && ab_quotatable_any(); i++)
	{
		AbQuota		quota;
		int64		bytes;

		if (!ab_quotatable_get(keys[i], &quota))
			continue;
		if (quota.limits.own_bytes != AB_NO_LIMIT)
		{
			bytes = ab_quota_own_bytes(keys[i]);
			if (bytes >= quota.limits.own_bytes)
				ab_quota_refuse(keys[i], "bytes of own pages", quota.limits.own_bytes,
								bytes,
								"Delete branches and call branch.gc(), or have the quota raised with branch.set_quota().");
		}
		wishes[n].key = keys[i];
		wishes[n].max_branches = quota.limits.branches;
		wishes[n].max_per_minute = quota.limits.per_minute;
		n++;
	}
	return n;
}

static void
look_at_own(AbQuotaWish *wishes, int n)
{
	for (int i = 0; i < n; i++)
	{
		int64		net;

		sum_own(wishes[i].key, &wishes[i].own_reserved, &wishes[i].own_freed, &net);
	}
}

static void
reserve(AbQuotaWish *wishes, int nwishes, int n)
{
	TimestampTz deadline = deadline_from_now();
	AbQuotaReply reply;
	int			counted = 0;

	look_at_own(wishes, nwishes);
	for (;;)
	{
		ConditionVariablePrepareToSleep(&ab_quotas->cv);
		ab_quotatable_reserve(wishes, nwishes, n, &reply);
		if (reply.answer == AB_QUOTA_GRANTED)
			break;
		if (reply.answer == AB_QUOTA_UNCOUNTED && counted++ < COUNT_TRIES)
		{
			ConditionVariableCancelSleep();
			make_known(wishes[reply.wish].key);
		}
		else if (reply.answer == AB_QUOTA_BUSY && GetCurrentTimestamp() < deadline)
			wait_for_news(deadline);
		else
			break;
	}
	ConditionVariableCancelSleep();
	if (reply.answer != AB_QUOTA_GRANTED)
		refuse(&wishes[reply.wish], &reply, n);
}

/* Each key that has, or may get, a quota. */
static void
record(Oid owner, Oid parent, int n, const AbQuotaWish *wishes, int nwishes)
{
	const AbQuotaKey keys[MAX_KEYS] = {{InvalidOid, InvalidOid}, {owner, InvalidOid},
	{InvalidOid, parent}, {owner, parent}};

	for (int i = 0; i < MAX_KEYS; i++)
	{
		Change	   *c = add_change(keys[i], false);

		c->n += n;
		c->freed += Max(-n, 0);
		for (int w = 0; w < nwishes; w++)
			if (memcmp(&wishes[w].key, &keys[i], sizeof(AbQuotaKey)) == 0 &&
				wishes[w].max_branches != AB_NO_LIMIT)
				c->reserved += n;
	}
}

static bool
nothing_is_limited(void)
{
	return !ab_quotatable_any() && ab_max_branches == 0;
}

void
ab_quota_check_create(Oid owner, Oid parent_db, int n)
{
	AbQuotaWish wishes[MAX_KEYS];
	int			nwishes;

	ab_diskspace_check();
	wait_until_loaded();
	register_callbacks();
	if (nothing_is_limited())
	{
		count_anew = true;		/* nothing is recorded */
		return;
	}
	nwishes = find_wishes(owner, parent_db, wishes);
	reserve(wishes, nwishes, n);
	record(owner, parent_db, n, wishes, nwishes);
}

void
ab_quota_gone(Oid db)
{
	AbOriginHeader header;

	register_callbacks();
	if (nothing_is_limited() || !ab_storage_read_origin(db, &header))
	{
		count_anew = true;		/* nothing is recorded */
		return;
	}
	record(ab_database_owner(db), header.parent_db, -1, NULL, 0);
}

void
ab_quota_count_anew(void)
{
	register_callbacks();
	count_anew = true;
}

void
ab_quota_change(AbQuotaKey key, const AbQuotaLimits *limits)
{
	Change	   *c;

	register_callbacks();
	if (limits != NULL && !ab_quotatable_make_room(key))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("there are too many quotas"),
				 errdetail("agent_branch.max_quotas is %d.", ab_max_quotas),
				 errhint("Raise it, which needs a restart, or remove quotas that nobody needs.")));
	c = add_change(key, true);
	c->removed = limits == NULL;
	if (limits)
		c->limits = *limits;
}
