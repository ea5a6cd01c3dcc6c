/*
 * ab_eventorder.c
 *	  The order of events (ab_eventorder.h).
 *
 * Backends and the keeper in the control database.  Each process writes its own
 * announcement and reads all of them, without a lock:
 *
 * E1  A process announces a number not above any id it will take, before it takes one,
 *     and withdraws it after its transaction can be seen or is undone.
 * E2  events_last is raised to an id after that was taken.
 * E3  Who asks reads events_last first, then the announcements, and takes its snapshot
 *     last.  An id up to events_last was taken by somebody whose announcement is still
 *     there (the answer is less, then) or whose transaction is over.
 *
 * Shared memory begins empty; the first to come finds out where the sequence is by
 * taking an id that no event will have.  The same after the extension was created anew.
 * event_lock is for that alone.
 */
#include "ab_eventorder.h"

#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/backendid.h"

#include "ab_shmem.h"

static bool announced = false;	/* by this process */

static pg_atomic_uint64 *
my_announcement(void)
{
	return &ab_shared->events_from[MyBackendId - 1];
}

static void
begin_order(Oid sequence)
{
	int64		here;

	if (ab_shared->events_sequence == sequence)
		return;
	here = nextval_internal(sequence, false);
	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	if (ab_shared->events_sequence != sequence)
	{
		pg_atomic_write_u64(&ab_shared->events_last, here);
		ab_shared->events_notified = here;
		pg_write_barrier();
		ab_shared->events_sequence = sequence;
	}
	LWLockRelease(ab_shared->event_lock);
}

static void
raise_last(uint64 id)
{
	uint64		last = pg_atomic_read_u64(&ab_shared->events_last);

	while (last < id &&
		   !pg_atomic_compare_exchange_u64(&ab_shared->events_last, &last, id))
		 /* last has been read again */ ;
}

int64
ab_eventorder_next(Oid sequence)
{
	int64		id;

	if (!announced)
	{
		begin_order(sequence);
		announced = true;
		pg_atomic_write_u64(my_announcement(),
							pg_atomic_read_u64(&ab_shared->events_last) + 1);
		pg_memory_barrier();
	}
	id = nextval_internal(sequence, false);
	raise_last((uint64) id);
	return id;
}

void
ab_eventorder_end(void)
{
	if (!announced)
		return;
	pg_memory_barrier();
	pg_atomic_write_u64(my_announcement(), 0);
	announced = false;
}

int64
ab_eventorder_settled(Oid sequence)
{
	uint64		upto;

	begin_order(sequence);
	upto = pg_atomic_read_u64(&ab_shared->events_last);
	pg_memory_barrier();
	for (int i = 0; i < MaxBackends; i++)
	{
		uint64		from = pg_atomic_read_u64(&ab_shared->events_from[i]);

		if (from > 0 && from <= upto)
			upto = from - 1;
	}
	return (int64) upto;
}

int64
ab_eventorder_notified(Oid sequence)
{
	begin_order(sequence);
	return ab_shared->events_notified;
}

void
ab_eventorder_set_notified(int64 id)
{
	ab_shared->events_notified = id;
}
