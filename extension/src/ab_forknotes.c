/*
 * ab_forknotes.c
 *	  Notes of forks that changed their length, in shared memory.
 *
 * Any process notes; a backend that takes a snapshot reads.  One table for each guard,
 * with a spinlock; a full one is emptied, and all its databases are listed anew.  What
 * is said of one database is in its AbParent, under the same spinlock.  A crash loses
 * all of it, and then everything is listed anew as well.
 *
 * Moments are the values of the table's clock, which each listing moves on.  A change is
 * noted before it is made, and once more after it if the clock has moved meanwhile: so
 * it is either in the file when the list is made and the file is looked at, or noted for
 * the list after (L2).
 */
#include "ab_forknotes.h"

#include "storage/spin.h"

#include "ab_epoch.h"
#include "ab_shmem.h"

static AbForkNotes *
table_of(Oid db)
{
	return &ab_shared->forknotes[db % AB_GUARDS];
}

/* The clock is read without the lock: a stale value looks like a change before it moved. */
static inline uint64
now(AbForkNotes *t)
{
	return pg_atomic_read_u64(&t->clock);
}

/* Room for a note: that of the same fork, a new one; NULL: there is none. */
static AbForkNote *
place_for(AbForkNotes *t, const AbParent *p, RelFileNode rnode, ForkNumber fork)
{
	AbForkNote *old = NULL;

	for (int i = 0; i < t->n; i++)
	{
		AbForkNote *note = &t->note[i];

		if (note->db != rnode.dbNode)
			continue;
		if (note->key.rel == rnode.relNode && note->key.fork == fork &&
			note->key.spc == rnode.spcNode)
			return note;
		if (note->moment < p->listed_at)
			old = note;
	}
	if (old == NULL && t->n < AB_FORKNOTES)
		old = &t->note[t->n++];
	return old;
}

static void
note(AbForkNotes *t, AbParent *p, RelFileNode rnode, ForkNumber fork, uint64 moment)
{
	AbForkNote *place;

	if (fork == InvalidForkNumber)
	{
		p->names_changed_at = moment;
		return;
	}
	place = place_for(t, p, rnode, fork);
	if (place == NULL)
	{
		t->n = 0;
		t->lost_at = moment;
		return;
	}
	place->db = rnode.dbNode;
	place->key.spc = rnode.spcNode;
	place->key.rel = rnode.relNode;
	place->key.fork = fork;
	place->moment = moment;
}

uint64
ab_forknotes_before(RelFileNode rnode, ForkNumber fork)
{
	typedef struct Noted
	{
		RelFileNode rnode;
		ForkNumber	fork;
		uint64		moment;
	} Noted;
	static Noted noted[64];		/* by this process, not to do it for each block */
	Noted	   *last = &noted[(rnode.relNode * 4 + fork) % lengthof(noted)];
	AbForkNotes *t = table_of(rnode.dbNode);
	AbParent   *p = ab_epoch_parent(rnode.dbNode);
	uint64		moment;

	if (likely(p == NULL))
		return 0;
	moment = now(t);
	if (last->moment == moment && last->fork == fork &&
		RelFileNodeEquals(last->rnode, rnode))
		return moment;
	SpinLockAcquire(&t->mutex);
	moment = now(t);
	note(t, p, rnode, fork, moment);
	SpinLockRelease(&t->mutex);
	last->rnode = rnode;
	last->fork = fork;
	last->moment = moment;
	return moment;
}

void
ab_forknotes_after(RelFileNode rnode, ForkNumber fork, uint64 moment)
{
	if (moment == 0)
		return;
	pg_memory_barrier();
	if (unlikely(now(table_of(rnode.dbNode)) != moment))
		(void) ab_forknotes_before(rnode, fork);
}

uint64
ab_forknotes_listing(Oid db, uint64 stamp, bool *usable, AbSnapId *since,
					 AbForkKey **keys, int *n)
{
	AbForkNotes *t = table_of(db);
	AbParent   *p;
	uint64		moment = 0;

	*keys = palloc(sizeof(AbForkKey) * AB_FORKNOTES);
	*n = 0;
	*usable = false;
	ab_guard_enter(db);
	p = ab_epoch_parent(db);
	if (p != NULL)
	{
		SpinLockAcquire(&t->mutex);
		moment = pg_atomic_read_u64(&t->clock) + 1;
		pg_atomic_write_u64(&t->clock, moment);
		p->listing_at = moment;
		*since = p->listed;
		*usable = p->listed_at > 0 && AbSnapIdEquals(p->listed, p->live) &&
			t->lost_at < p->listed_at && p->names_changed_at < p->listed_at &&
			p->directories == stamp;
		for (int i = 0; i < t->n && *usable; i++)
			if (t->note[i].db == db && t->note[i].moment >= p->listed_at)
				(*keys)[(*n)++] = t->note[i].key;
		SpinLockRelease(&t->mutex);
	}
	ab_guard_leave(db);
	return moment;
}

void
ab_forknotes_listed(Oid db, uint64 moment, uint64 stamp, AbSnapId id)
{
	AbForkNotes *t = table_of(db);
	AbParent   *p = ab_epoch_parent(db);

	/* 0, too, if it had no snapshot for a while since */
	if (moment == 0 || p == NULL || p->listing_at != moment)
		return;
	SpinLockAcquire(&t->mutex);
	p->listed = id;
	p->listed_at = moment;
	p->directories = stamp;
	SpinLockRelease(&t->mutex);
}
