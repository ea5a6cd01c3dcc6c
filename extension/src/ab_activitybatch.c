/*
 * ab_activitybatch.c
 *	  From shared memory to table branch.activity and back to readers: the batch (A2).
 *
 * The worker makes and settles batches; any backend in the control database reads.  The
 * activity lock only.  A crash loses the batch with the rest of shared memory: either its
 * transaction has committed, and it is in the table, or it has not, and it is lost.
 */
#include "ab_activity.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ab_activityfile.h"
#include "ab_pause.h"

/* ---- making it ---- */

bool
ab_activity_anything(void)
{
	bool		found;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	ab_activity_collect(InvalidOid);
	found = ab_activity->spilled > ab_activity->spill_done ||
		ab_activity->lists[AB_TO_WRITE].first != 0;
	LWLockRelease(ab_activity->lock);
	return found;
}

static int
by_db(const void *a, const void *b)
{
	Oid			left = ((const AbActivity *) a)->db;
	Oid			right = ((const AbActivity *) b)->db;

	return left < right ? -1 : left > right;
}

/*
 * A statement that runs in a database without an entry adds to the file all the time:
 * entries have their turn between batches from there.
 */
static bool
is_files_turn(void)
{
	static bool was_files = false;

	was_files = ab_activity->spilled > ab_activity->spill_done &&
		(!was_files || ab_activity->lists[AB_TO_WRITE].first == 0);
	return was_files;
}

int
ab_activity_take(TransactionId xid)
{
	int64		upto;
	int			n;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	Assert(!TransactionIdIsValid(ab_activity->batch_xid));
	ab_activity_collect(InvalidOid);
	ab_activity->batch_spill = 0;
	if (is_files_turn())
	{
		n = ab_activity_read_spill(ab_activity->batch, AB_ACTIVITY_BATCH,
								   ab_activity->spill_done, &upto);
		ab_activity->batch_spill = upto - ab_activity->spill_done;
	}
	else
		n = ab_activity_list_to_write(ab_activity->batch, AB_ACTIVITY_BATCH);
	qsort(ab_activity->batch, n, sizeof(AbActivity), by_db);
	ab_activity->nbatch = n;
	ab_activity->nleft_out = 0;
	if (n > 0)
		ab_activity->batch_xid = xid;
	LWLockRelease(ab_activity->lock);
	return n;
}

AbActivity *
ab_activity_in_batch(Oid db)
{
	AbActivity	key = {.db = db};

	return bsearch(&key, ab_activity->batch, ab_activity->nbatch, sizeof(AbActivity), by_db);
}

void
ab_activity_leave_out(Oid db)
{
	AbActivity *written;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	written = ab_activity_in_batch(db);
	if (written != NULL)
	{
		AbActivity	left_out = *written;
		AbActivity *last = &ab_activity->batch[--ab_activity->nbatch];

		memmove(written, written + 1, (char *) last - (char *) written);
		*last = left_out;
		ab_activity->nleft_out++;
	}
	LWLockRelease(ab_activity->lock);
}

/* ---- ending it ---- */

static void
take_off(const AbActivity *written)
{
	AbActivity *entry = ab_activity_find(written->db);

	if (entry == NULL || entry->origin_at != written->origin_at)
		return;
	ab_use_subtract(&entry->pending, &written->pending);
	entry->naps -= Min(entry->naps, written->naps);
	if (entry->last_active == written->last_active &&
		entry->suspended_at == written->suspended_at && entry->naps == 0)
		entry->changed = false;
	ab_activity_touch(entry);
}

void
ab_activity_settle(void)
{
	TransactionId xid;
	bool		committed;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	xid = ab_activity->batch_xid;
	if (!TransactionIdIsValid(xid) || TransactionIdIsInProgress(xid))
	{
		LWLockRelease(ab_activity->lock);
		return;
	}
	committed = TransactionIdDidCommit(xid);
	if (committed && ab_activity->batch_spill > 0)
	{
		for (int i = 0; i < ab_activity->nleft_out; i++)
			ab_activity_spill(&ab_activity->batch[ab_activity->nbatch + i]);
		ab_activity->spill_done += ab_activity->batch_spill;
		if (ab_activity->spill_done == ab_activity->spilled)
			ab_activity_empty_spill();
	}
	else if (committed)
	{
		for (int i = 0; i < ab_activity->nbatch; i++)
			take_off(&ab_activity->batch[i]);
		ab_activity->none_to_evict = false;
	}
	ab_activity->batch_xid = InvalidTransactionId;
	ab_activity->nbatch = ab_activity->nleft_out = 0;
	ab_activity->batch_spill = 0;
	LWLockRelease(ab_activity->lock);
}

/* ---- having it done at once ---- */

#define WRITE_NOW_MS	2000
#define POLL_MS			5

uint32
ab_activity_round_begins(void)
{
	uint32		asked;

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	asked = ab_activity->rounds_asked;
	LWLockRelease(ab_activity->lock);
	return asked;
}

void
ab_activity_round_ends(uint32 asked)
{
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	ab_activity->rounds_done = asked;
	LWLockRelease(ab_activity->lock);
}

static bool
ask_for_round(uint32 *number)
{
	bool		running;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	running = ab_activity->worker != NULL;
	if (running)
	{
		*number = ++ab_activity->rounds_asked;
		SetLatch(ab_activity->worker);
	}
	LWLockRelease(ab_activity->lock);
	return running;
}

static bool
is_done(uint32 number)
{
	bool		done;

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	done = (int32) (ab_activity->rounds_done - number) >= 0 || ab_activity->worker == NULL;
	LWLockRelease(ab_activity->lock);
	return done;
}

void
ab_activity_write_now(void)
{
	TimestampTz began_at = GetCurrentTimestamp();
	uint32		number;

	if (!ask_for_round(&number))
		return;
	while (!is_done(number) &&
		   !TimestampDifferenceExceeds(began_at, GetCurrentTimestamp(), WRITE_NOW_MS))
		ab_pause(POLL_MS);
}

/* ---- reading ---- */

/* Does this snapshot see the table with the batch in it? */
static bool
sees_batch(Snapshot snapshot)
{
	return TransactionIdIsValid(ab_activity->batch_xid) &&
		!XidInMVCCSnapshot(ab_activity->batch_xid, snapshot) &&
		TransactionIdDidCommit(ab_activity->batch_xid);
}

static void
take_off_batch(AbActivity *all, int n)
{
	for (int i = 0; i < n; i++)
	{
		const AbActivity *written = ab_activity_in_batch(all[i].db);

		if (written != NULL && written->origin_at == all[i].origin_at)
			ab_use_subtract(&all[i].pending, &written->pending);
	}
}

/* Records of the file that are not in the table; those of one database, or all. */
static AbActivity *
add_spill(AbActivity *all, int *n, Oid db, int64 from)
{
	AbActivity *part = palloc(sizeof(AbActivity) * AB_ACTIVITY_BATCH);

	while (from < ab_activity->spilled)
	{
		int			nread = ab_activity_read_spill(part, AB_ACTIVITY_BATCH, from, &from);

		if (nread == 0)
			break;
		all = repalloc_huge(all, sizeof(AbActivity) * (*n + nread));
		for (int i = 0; i < nread; i++)
			if (!OidIsValid(db) || part[i].db == db)
				all[(*n)++] = part[i];
	}
	pfree(part);
	return all;
}

/* Sessions are with the entries; these have none. */
static AbActivity *
add_untracked_sessions(AbActivity *all, int *n, Oid db)
{
	for (int i = 0; i < MaxBackends; i++)
	{
		const AbActivitySlot *slot = &ab_activity->slots[i];

		if (!OidIsValid(slot->db) || (OidIsValid(db) && slot->db != db) ||
			ab_activity_find(slot->db) != NULL)
			continue;
		all = repalloc_huge(all, sizeof(AbActivity) * (*n + 1));
		all[(*n)++] = (AbActivity)
		{
			.db = slot->db, .sessions = 1, .origin_at = slot->origin_at,
				.since = slot->last_active, .last_active = slot->last_active
		};
	}
	return all;
}

/*
 * The slots are collected first, which makes no difference to anybody.  The answer may
 * have a database more than once, if some of it is in the file.
 */
AbActivity *
ab_activity_read(Oid db, Snapshot *snapshot, int *n)
{
	int			room = OidIsValid(db) ? 1 : ab_activity_room();
	AbActivity *all = palloc_extended(sizeof(AbActivity) * room, MCXT_ALLOC_HUGE);
	AbActivity *one;
	int64		from;

	*n = 0;
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	*snapshot = RegisterSnapshot(GetLatestSnapshot());
	ab_activity_collect(db);
	if (!OidIsValid(db))
		*n = ab_activity_all(all, room);
	else if ((one = ab_activity_find(db)) != NULL)
		all[(*n)++] = *one;
	all = add_untracked_sessions(all, n, db);

	from = ab_activity->spill_done;
	if (sees_batch(*snapshot))
	{
		if (ab_activity->batch_spill > 0)
			from += ab_activity->batch_spill;
		else
			take_off_batch(all, *n);
	}
	if (from < ab_activity->spilled)
		all = add_spill(all, n, db, from);
	LWLockRelease(ab_activity->lock);
	return all;
}
