/*
 * ab_quotatable.c
 *	  Quotas in shared memory (ab_quotatable.h).
 *
 * Backends of all databases and the keeper.  One LWLock, a leaf, for all of it.  The
 * numbers of branches are exact, without anybody waiting for a commit that might still
 * fail, unless it is about the last places:
 *
 * Q1  Who creates reserves a place first.  Committed and reserved ones together never
 *     exceed the limit.
 * Q2  A commit that can be seen is counted, and its reservation given back, before the
 *     transaction's locks are released and its client hears of it.
 * Q3  A count takes its snapshot under the lock.  Transactions that commit just then
 *     have announced themselves (before_commit); those that the snapshot sees are marked,
 *     and not counted again.
 *
 * A crash empties it; the keeper loads it again and counts are made when needed.
 */
#include "ab_quotatable.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/backendid.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ab_settings.h"

AbQuotaShared *ab_quotas = NULL;
static HTAB *table = NULL;

static Size
fixed_size(void)
{
	return add_size(offsetof(AbQuotaShared, commits),
					mul_size(MaxBackends, sizeof(AbQuotaCommit)));
}

Size
ab_quotatable_size(void)
{
	return add_size(fixed_size(),
					hash_estimate_size(ab_max_quotas + 1, sizeof(AbQuota)));
}

static AbQuota *
find(AbQuotaKey key)
{
	return hash_search(table, &key, HASH_FIND, NULL);
}

static const AbQuotaLimits no_limits = {AB_NO_LIMIT, AB_NO_LIMIT, AB_NO_LIMIT, AB_NO_LIMIT};

static AbQuota *
add(AbQuotaKey key)
{
	bool		found;
	AbQuota    *quota = hash_search(table, &key, HASH_ENTER_NULL, &found);

	if (quota != NULL && !found)
	{
		memset(quota, 0, sizeof(*quota));
		quota->key = key;
		quota->limits = no_limits;
	}
	return quota;
}

void
ab_quotatable_init(LWLock *lock)
{
	bool		found;
	HASHCTL		info = {0};
	AbQuotaKey	cluster = {InvalidOid, InvalidOid};

	info.keysize = sizeof(AbQuotaKey);
	info.entrysize = sizeof(AbQuota);
	table = ShmemInitHash("agent_branch quotas", ab_max_quotas + 1, ab_max_quotas + 1,
						  &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ab_quotas = ShmemInitStruct("agent_branch quotas' use", fixed_size(), &found);
	if (found)
		return;
	memset(ab_quotas, 0, fixed_size());
	ab_quotas->lock = lock;
	pg_atomic_init_u32(&ab_quotas->loaded, 0);
	pg_atomic_init_u32(&ab_quotas->nquotas, 0);
	pg_atomic_init_u32(&ab_quotas->counted, 0);
	ConditionVariableInit(&ab_quotas->cv);
	(void) add(cluster);
}

static AbQuotaCommit *
my_commit(void)
{
	return &ab_quotas->commits[MyBackendId - 1];
}

/* ---- which there are ---- */

bool
ab_quotatable_any(void)
{
	return pg_atomic_read_u32(&ab_quotas->nquotas) > 0;
}

bool
ab_quotatable_get(AbQuotaKey key, AbQuota *quota)
{
	AbQuota    *found;

	LWLockAcquire(ab_quotas->lock, LW_SHARED);
	found = find(key);
	if (found)
		*quota = *found;
	LWLockRelease(ab_quotas->lock);
	return found != NULL;
}

static void
count_quotas(void)
{
	pg_atomic_write_u32(&ab_quotas->nquotas, hash_get_num_entries(table) - 1);
}

bool
ab_quotatable_make_room(AbQuotaKey key)
{
	bool		made;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	made = add(key) != NULL;
	count_quotas();
	LWLockRelease(ab_quotas->lock);
	return made;
}

void
ab_quotatable_set(AbQuotaKey key, const AbQuotaLimits *limits)
{
	AbQuota    *quota;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = limits ? add(key) : find(key);
	if (quota != NULL && limits != NULL)
		quota->limits = *limits;
	else if (quota != NULL)
		(void) hash_search(table, &key, HASH_REMOVE, NULL);
	count_quotas();
	LWLockRelease(ab_quotas->lock);
	ConditionVariableBroadcast(&ab_quotas->cv);
}

AbQuotaKey *
ab_quotatable_keys(int *n)
{
	AbQuotaKey *keys = palloc(sizeof(AbQuotaKey) * (ab_max_quotas + 1));
	HASH_SEQ_STATUS scan;
	AbQuota    *quota;

	*n = 0;
	LWLockAcquire(ab_quotas->lock, LW_SHARED);
	hash_seq_init(&scan, table);
	while ((quota = hash_seq_search(&scan)) != NULL)
		keys[(*n)++] = quota->key;
	LWLockRelease(ab_quotas->lock);
	return keys;
}

/* ---- places ---- */

static void
turn_minute(AbQuota *quota, TimestampTz now)
{
	if (now < quota->minute || now >= quota->minute + 2 * USECS_PER_MINUTE)
	{
		quota->minute = now;
		quota->in_minute = quota->in_last_minute = 0;
	}
	else if (now >= quota->minute + USECS_PER_MINUTE)
	{
		quota->minute += USECS_PER_MINUTE;
		quota->in_last_minute = quota->in_minute;
		quota->in_minute = 0;
	}
}

/*
 * Creations of the last 60 s, those of the minute before counted by the share of it
 * that is among these.
 */
static int64
recent(const AbQuota *quota, TimestampTz now)
{
	double		left = 1.0 - (now - quota->minute) / (double) USECS_PER_MINUTE;

	return quota->in_minute + (int64) (quota->in_last_minute * left + 0.5);
}

int64
ab_quotatable_recent(AbQuotaKey key)
{
	TimestampTz now = GetCurrentTimestamp();
	AbQuota    *quota;
	int64		n = 0;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = find(key);
	if (quota != NULL)
	{
		turn_minute(quota, now);
		n = recent(quota, now);
	}
	LWLockRelease(ab_quotas->lock);
	return n;
}

static bool
grant_one(const AbQuotaWish *wish, int n, TimestampTz now, AbQuotaReply *reply)
{
	AbQuota    *quota = find(wish->key);

	if (quota == NULL)
		return true;			/* dropped meanwhile */
	if (wish->max_branches != AB_NO_LIMIT)
	{
		reply->used = quota->count;
		if (quota->state != AB_COUNT_KNOWN)
			reply->answer = AB_QUOTA_UNCOUNTED;
		else if (quota->count + wish->own_reserved - wish->own_freed + n >
				 wish->max_branches)
			reply->answer = AB_QUOTA_FULL;
		else if (quota->count + quota->reserved - wish->own_freed + n >
				 wish->max_branches)
			reply->answer = AB_QUOTA_BUSY;
		if (reply->answer != AB_QUOTA_GRANTED)
			return false;
	}
	if (wish->max_per_minute != AB_NO_LIMIT)
	{
		turn_minute(quota, now);
		reply->used = recent(quota, now);
		if (reply->used + n > wish->max_per_minute)
		{
			reply->answer = AB_QUOTA_TOO_FAST;
			reply->seconds = 1 + (quota->minute + USECS_PER_MINUTE - now) / USECS_PER_SEC;
			return false;
		}
	}
	return true;
}

static void
take_one(const AbQuotaWish *wish, int n)
{
	AbQuota    *quota = find(wish->key);

	if (quota == NULL)
		return;
	if (wish->max_branches != AB_NO_LIMIT)
		quota->reserved += n;
	if (wish->max_per_minute != AB_NO_LIMIT)
		quota->in_minute += n;
}

void
ab_quotatable_reserve(const AbQuotaWish *wishes, int nwishes, int n, AbQuotaReply *reply)
{
	TimestampTz now = GetCurrentTimestamp();

	memset(reply, 0, sizeof(*reply));
	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	for (int i = 0; i < nwishes && reply->answer == AB_QUOTA_GRANTED; i++)
	{
		reply->wish = i;
		(void) grant_one(&wishes[i], n, now, reply);
	}
	for (int i = 0; i < nwishes && reply->answer == AB_QUOTA_GRANTED; i++)
		take_one(&wishes[i], n);
	LWLockRelease(ab_quotas->lock);
}

void
ab_quotatable_release(AbQuotaKey key, int64 n)
{
	AbQuota    *quota;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = find(key);
	if (quota != NULL)
		quota->reserved = Max(quota->reserved - n, 0);
	LWLockRelease(ab_quotas->lock);
	ConditionVariableBroadcast(&ab_quotas->cv);
}

/* ---- counts ---- */

uint32
ab_quotatable_begin_count(AbQuotaKey key, Snapshot *snapshot)
{
	AbQuota    *quota;
	uint32		epoch = 0;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = find(key);
	if (quota != NULL && quota->state == AB_COUNT_UNKNOWN)
	{
		*snapshot = GetLatestSnapshot();
		epoch = ++ab_quotas->epoch;
		for (int i = 0; i < MaxBackends; i++)
		{
			AbQuotaCommit *c = &ab_quotas->commits[i];

			if (TransactionIdIsValid(c->xid) && c->seen_by == 0 &&
				!XidInMVCCSnapshot(c->xid, *snapshot))
				c->seen_by = epoch;
		}
		pg_atomic_write_u32(&ab_quotas->counted, 1);
		quota->state = AB_COUNT_BEGUN;
		quota->epoch = epoch;
		quota->count = 0;
	}
	LWLockRelease(ab_quotas->lock);
	return epoch;
}

void
ab_quotatable_end_count(AbQuotaKey key, uint32 epoch, int64 count)
{
	AbQuota    *quota;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = find(key);
	if (quota != NULL && quota->epoch == epoch && quota->state == AB_COUNT_BEGUN)
	{
		quota->state = count < 0 ? AB_COUNT_UNKNOWN : AB_COUNT_KNOWN;
		quota->count += count;
	}
	LWLockRelease(ab_quotas->lock);
	ConditionVariableBroadcast(&ab_quotas->cv);
}

void
ab_quotatable_forget_counts(void)
{
	HASH_SEQ_STATUS scan;
	AbQuota    *quota;

	if (pg_atomic_read_u32(&ab_quotas->counted) == 0)
		return;
	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&ab_quotas->counted, 0);
	hash_seq_init(&scan, table);
	while ((quota = hash_seq_search(&scan)) != NULL)
	{
		quota->state = AB_COUNT_UNKNOWN;
		quota->epoch = 0;
	}
	LWLockRelease(ab_quotas->lock);
	ConditionVariableBroadcast(&ab_quotas->cv);
}

void
ab_quotatable_before_commit(void)
{
	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	my_commit()->xid = GetTopTransactionIdIfAny();
	my_commit()->seen_by = 0;
	LWLockRelease(ab_quotas->lock);
}

/* Also called without a commit at hand, then for nothing that anybody has counted. */
void
ab_quotatable_change(AbQuotaKey key, int64 n)
{
	AbQuota    *quota;
	uint32		seen_by;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = find(key);
	seen_by = my_commit()->seen_by;
	if (quota != NULL && quota->state != AB_COUNT_UNKNOWN &&
		(seen_by == 0 || quota->epoch < seen_by))
		quota->count += n;
	LWLockRelease(ab_quotas->lock);
}

void
ab_quotatable_after_commit(void)
{
	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	my_commit()->xid = InvalidTransactionId;
	my_commit()->seen_by = 0;
	LWLockRelease(ab_quotas->lock);
	ConditionVariableBroadcast(&ab_quotas->cv);
}

void
ab_quotatable_set_measure(AbQuotaKey key, int64 bytes, int64 usecs)
{
	AbQuota    *quota;

	LWLockAcquire(ab_quotas->lock, LW_EXCLUSIVE);
	quota = find(key);
	if (quota != NULL)
	{
		quota->own_bytes = bytes;
		quota->measured_at = GetCurrentTimestamp();
		quota->measured_in = usecs;
	}
	LWLockRelease(ab_quotas->lock);
}
