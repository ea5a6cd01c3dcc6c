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
#include "storage/procarray.h"
#include "utils/snapmgr.h"

#include "ab_activityfile.h"

/* ---- making it ---- */

static bool
is_to_write(const AbActivity *entry)
{
	return entry->changed || !ab_use_is_zero(&entry->pending);
}

/* Palloc'd; the lock is taken and left to the caller. */
static AbActivity *
lock_and_copy(int *n)
{
	int			room = ab_activity_room();
	AbActivity *all = palloc_extended(sizeof(AbActivity) * room, MCXT_ALLOC_HUGE);

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	ab_activity_collect();
	*n = ab_activity_all(all, room);
	return all;
}

bool
ab_activity_anything(void)
{
	int			n;
	AbActivity *all = lock_and_copy(&n);
	bool		found = ab_activity->spilled > ab_activity->spill_done;

	LWLockRelease(ab_activity->lock);
	for (int i = 0; i < n && !found; i++)
		found = is_to_write(&all[i]);
	pfree(all);
	return found;
}

int
ab_activity_take(TransactionId xid)
{
	int			n;
	AbActivity *all = lock_and_copy(&n);
	int64		upto;

	Assert(!TransactionIdIsValid(ab_activity->batch_xid));
	ab_activity->nbatch = 0;
	ab_activity->batch_spill = 0;
	if (ab_activity->spilled > ab_activity->spill_done)
	{
		ab_activity->nbatch = ab_activity_read_spill(ab_activity->batch, AB_ACTIVITY_BATCH,
													 ab_activity->spill_done, &upto);
		ab_activity->batch_spill = upto - ab_activity->spill_done;
	}
	else
	{
		for (int i = 0; i < n && ab_activity->nbatch < AB_ACTIVITY_BATCH; i++)
			if (is_to_write(&all[i]))
				ab_activity->batch[ab_activity->nbatch++] = all[i];
	}
	if (ab_activity->nbatch > 0)
		ab_activity->batch_xid = xid;
	n = ab_activity->nbatch;
	LWLockRelease(ab_activity->lock);
	pfree(all);
	return n;
}

void
ab_activity_leave_out(Oid db)
{
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	for (int i = 0; i < ab_activity->nbatch; i++)
		if (ab_activity->batch[i].db == db)
			ab_activity->batch[i].db = InvalidOid;
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
	ab_activity->nbatch = 0;
	ab_activity->batch_spill = 0;
	LWLockRelease(ab_activity->lock);
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
	for (int i = 0; i < ab_activity->nbatch; i++)
	{
		AbActivity *written = &ab_activity->batch[i];

		for (int k = 0; k < n; k++)
			if (all[k].db == written->db && all[k].origin_at == written->origin_at)
				ab_use_subtract(&all[k].pending, &written->pending);
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
	ab_activity_collect();
	if (!OidIsValid(db))
		*n = ab_activity_all(all, room);
	else if ((one = ab_activity_find(db)) != NULL)
		all[(*n)++] = *one;

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
