/*
 * ab_eventnotes.c
 *	  The notes of ab_eventnotes.h.
 *
 * Backends of all databases put notes, the keeper takes them.  event_lock protects
 * them and is a leaf; the count of those that are not free is read without it, by who
 * only wants to know whether there are any.  They do not survive a crash; the
 * comparison that every start asks for finds what was lost.
 */
#include "ab_eventnotes.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/timestamp.h"

#include "ab_shmem.h"

#define WAIT_MS 2000

static inline bool
any_note(void)
{
	return pg_atomic_read_u32(&ab_shared->notes_used) > 0;
}

static void
free_note(AbNote *note)
{
	note->state = AB_NOTE_FREE;
	pg_atomic_fetch_sub_u32(&ab_shared->notes_used, 1);
}

bool
ab_eventnotes_put(const AbNote *note)
{
	bool		found = false;

	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	for (int i = 0; i < AB_NOTES && !found; i++)
	{
		AbNote	   *slot = &ab_shared->notes[i];

		if (slot->state != AB_NOTE_FREE)
			continue;
		*slot = *note;
		slot->state = AB_NOTE_PENDING;
		slot->pid = MyProcPid;
		slot->seq = ++ab_shared->notes_seq;
		pg_atomic_fetch_add_u32(&ab_shared->notes_used, 1);
		found = true;
	}
	LWLockRelease(ab_shared->event_lock);
	return found;
}

void
ab_eventnotes_settle(bool committed)
{
	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	for (int i = 0; i < AB_NOTES; i++)
	{
		AbNote	   *slot = &ab_shared->notes[i];

		if (slot->state != AB_NOTE_PENDING || slot->pid != MyProcPid)
			continue;
		if (committed)
			slot->state = AB_NOTE_READY;
		else
			free_note(slot);
	}
	LWLockRelease(ab_shared->event_lock);
}

bool
ab_eventnotes_any_ready(void)
{
	bool		found = false;

	if (!any_note())
		return false;
	LWLockAcquire(ab_shared->event_lock, LW_SHARED);
	for (int i = 0; i < AB_NOTES && !found; i++)
		found = ab_shared->notes[i].state == AB_NOTE_READY;
	LWLockRelease(ab_shared->event_lock);
	return found;
}

static AbNote *
oldest_ready(void)
{
	AbNote	   *oldest = NULL;

	for (int i = 0; i < AB_NOTES; i++)
	{
		AbNote	   *slot = &ab_shared->notes[i];

		if (slot->state == AB_NOTE_READY && (oldest == NULL || slot->seq < oldest->seq))
			oldest = slot;
	}
	return oldest;
}

int
ab_eventnotes_take(AbNote *notes, int max)
{
	int			n = 0;
	AbNote	   *slot;

	if (!any_note())
		return 0;
	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	while (n < max && (slot = oldest_ready()) != NULL)
	{
		slot->state = AB_NOTE_TAKEN;
		notes[n++] = *slot;
	}
	LWLockRelease(ab_shared->event_lock);
	return n;
}

void
ab_eventnotes_done(bool written)
{
	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	for (int i = 0; i < AB_NOTES; i++)
	{
		AbNote	   *slot = &ab_shared->notes[i];

		if (slot->state != AB_NOTE_TAKEN)
			continue;
		if (written)
			free_note(slot);
		else
			slot->state = AB_NOTE_READY;
	}
	LWLockRelease(ab_shared->event_lock);
	ConditionVariableBroadcast(&ab_shared->notes_cv);
}

bool
ab_eventnotes_has(Oid db)
{
	bool		found = false;

	if (!any_note())
		return false;
	LWLockAcquire(ab_shared->event_lock, LW_SHARED);
	for (int i = 0; i < AB_NOTES && !found; i++)
		found = ab_shared->notes[i].state != AB_NOTE_FREE &&
			ab_shared->notes[i].db == db;
	LWLockRelease(ab_shared->event_lock);
	return found;
}

bool
ab_eventnotes_wait(Oid db)
{
	TimestampTz deadline;
	bool		has;

	if (!ab_eventnotes_has(db))
		return true;
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WAIT_MS);
	ConditionVariablePrepareToSleep(&ab_shared->notes_cv);
	while ((has = ab_eventnotes_has(db)))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

		if (left <= 0 ||
			ConditionVariableTimedSleep(&ab_shared->notes_cv, left, PG_WAIT_EXTENSION))
			break;
	}
	ConditionVariableCancelSleep();
	return !has;
}

void
ab_eventnotes_want_comparison(void)
{
	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	ab_shared->events_wanted++;
	LWLockRelease(ab_shared->event_lock);
}

uint64
ab_eventnotes_comparison_wanted(void)
{
	uint64		wanted;

	LWLockAcquire(ab_shared->event_lock, LW_SHARED);
	wanted = ab_shared->events_wanted > ab_shared->events_compared ?
		ab_shared->events_wanted : 0;
	LWLockRelease(ab_shared->event_lock);
	return wanted;
}

void
ab_eventnotes_compared(uint64 wanted)
{
	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	ab_shared->events_compared = Max(ab_shared->events_compared, wanted);
	LWLockRelease(ab_shared->event_lock);
}
