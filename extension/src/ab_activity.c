/*
 * ab_activity.c
 *	  Activity in shared memory: the slots of backends and the entries of databases
 *	  (ab_activity.h).
 *
 * Every client backend, when it begins and ends; statements only write their own slot
 * (ab_activitycount.c).  One LWLock, a leaf but for taking a snapshot under it.  A crash
 * loses what is not in the table.
 */
#include "ab_activity.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/backendid.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "ab_activityfile.h"
#include "ab_settings.h"

/* When there is no room for an entry, this part of them makes room, if it can. */
#define EVICT_PART	16

typedef struct Links
{
	uint32		prev;
	uint32		next;
} Links;

/*
 * What others see of it comes first.  Entries are numbered and refer to each other by
 * number: there is one for every database that is tracked, and they are to be small.
 */
typedef struct Entry
{
	AbActivity	a;				/* db invalid: free */
	uint32		next;			/* in its bucket, or of the free ones */
	Links		links[AB_ACTIVITY_LISTS];
	bool		on[AB_ACTIVITY_LISTS];
} Entry;

AbActivityShared *ab_activity = NULL;
static Entry *entries = NULL;
static uint32 *buckets = NULL;

static uint32
number_of_buckets(void)
{
	return pg_nextpower2_32(ab_max_tracked_branches);
}

static Size
fixed_size(void)
{
	return add_size(CACHELINEALIGN(sizeof(AbActivityShared)),
					mul_size(MaxBackends, sizeof(AbActivitySlot)));
}

static Size
entries_size(void)
{
	return add_size(mul_size(ab_max_tracked_branches, sizeof(Entry)),
					mul_size(number_of_buckets(), sizeof(uint32)));
}

Size
ab_activity_size(void)
{
	return add_size(fixed_size(), entries_size());
}

void
ab_activity_init(LWLock *lock)
{
	bool		found;

	entries = ShmemInitStruct("agent_branch activity of branches", entries_size(), &found);
	buckets = (uint32 *) (entries + ab_max_tracked_branches);
	if (!found)
		memset(entries, 0, entries_size());
	ab_activity = ShmemInitStruct("agent_branch activity", fixed_size(), &found);
	if (found)
		return;
	memset(ab_activity, 0, fixed_size());
	ab_activity->lock = lock;
	ab_activity->slots = (AbActivitySlot *)
		((char *) ab_activity + CACHELINEALIGN(sizeof(AbActivityShared)));
	ab_activity_restore();
}

/* ---- entries by number ---- */

static inline Entry *
entry_of(uint32 number)
{
	return &entries[number - 1];
}

static inline uint32
number_of(const Entry *entry)
{
	return (uint32) (entry - entries) + 1;
}

static uint32 *
bucket_of(Oid db)
{
	return &buckets[murmurhash32(db) & (number_of_buckets() - 1)];
}

/* One that is free, or NULL; in its bucket, and all else in it is the caller's. */
static Entry *
take_entry(Oid db)
{
	uint32	   *bucket = bucket_of(db);
	Entry	   *entry;

	if (ab_activity->free != 0)
	{
		entry = entry_of(ab_activity->free);
		ab_activity->free = entry->next;
	}
	else if (ab_activity->nnumbers < (uint32) ab_max_tracked_branches)
		entry = entry_of(++ab_activity->nnumbers);
	else
		return NULL;
	memset(entry, 0, sizeof(*entry));
	entry->a.db = db;
	entry->next = *bucket;
	*bucket = number_of(entry);
	ab_activity->nentries++;
	return entry;
}

static void
free_entry(Entry *entry)
{
	uint32	   *link = bucket_of(entry->a.db);

	while (*link != number_of(entry))
		link = &entry_of(*link)->next;
	*link = entry->next;
	entry->a.db = InvalidOid;
	entry->next = ab_activity->free;
	ab_activity->free = number_of(entry);
	ab_activity->nentries--;
}

static void
list_append(AbActivityListKind kind, Entry *entry)
{
	AbActivityList *list = &ab_activity->lists[kind];

	entry->links[kind].prev = list->last;
	entry->links[kind].next = 0;
	if (list->last != 0)
		entry_of(list->last)->links[kind].next = number_of(entry);
	else
		list->first = number_of(entry);
	list->last = number_of(entry);
	entry->on[kind] = true;
}

static void
list_remove(AbActivityListKind kind, Entry *entry)
{
	AbActivityList *list = &ab_activity->lists[kind];
	Links		l = entry->links[kind];

	if (l.prev != 0)
		entry_of(l.prev)->links[kind].next = l.next;
	else
		list->first = l.next;
	if (l.next != 0)
		entry_of(l.next)->links[kind].prev = l.prev;
	else
		list->last = l.prev;
	entry->on[kind] = false;
}

/* ---- entries ---- */

AbActivity *
ab_activity_find(Oid db)
{
	for (uint32 number = *bucket_of(db); number != 0; number = entry_of(number)->next)
		if (entry_of(number)->a.db == db)
			return &entry_of(number)->a;
	return NULL;
}

static void
set_to_write(Entry *entry, bool to_write)
{
	if (to_write && !entry->on[AB_TO_WRITE])
		list_append(AB_TO_WRITE, entry);
	else if (!to_write && entry->on[AB_TO_WRITE])
		list_remove(AB_TO_WRITE, entry);
}

static void
set_to_move(Entry *entry, bool to_move)
{
	ab_activity->nto_move += to_move - entry->on[AB_TO_MOVE];
	if (to_move && !entry->on[AB_TO_MOVE])
		list_append(AB_TO_MOVE, entry);
	else if (!to_move && entry->on[AB_TO_MOVE])
		list_remove(AB_TO_MOVE, entry);
}

void
ab_activity_touch(AbActivity *entry)
{
	set_to_write((Entry *) entry, entry->changed || !ab_use_is_zero(&entry->pending));
	set_to_move((Entry *) entry, (entry->suspended_at != 0) != entry->stats_put_away);
}

void
ab_activity_remove(Oid db)
{
	AbActivity *entry = ab_activity_find(db);

	if (entry == NULL)
		return;
	if (entry->suspended_at != 0)
		ab_activity->nsuspended--;
	set_to_write((Entry *) entry, false);
	set_to_move((Entry *) entry, false);
	free_entry((Entry *) entry);
}

/* Does it say nothing that is not in the table? */
static bool
can_be_evicted(const AbActivity *entry)
{
	return OidIsValid(entry->db) && entry->sessions == 0 && entry->suspended_at == 0 &&
		!entry->changed && !entry->stats_put_away && ab_use_is_zero(&entry->pending) &&
		ab_activity_in_batch(entry->db) == NULL;
}

static void
evict_some(void)
{
	int			left = ab_max_tracked_branches / EVICT_PART + 1;

	ab_activity->none_to_evict = true;
	for (uint32 i = 0; i < ab_activity->nnumbers && left > 0; i++)
	{
		const AbActivity *entry = &entries[i].a;

		if (!can_be_evicted(entry))
			continue;
		ab_activity->none_to_evict = false;
		ab_activity_remove(entry->db);
		left--;
	}
}

static int
count_slots(Oid db)
{
	int			n = 0;

	for (int i = 0; i < MaxBackends; i++)
		n += ab_activity->slots[i].db == db;
	return n;
}

static void
clear(AbActivity *entry, Oid db, TimestampTz origin_at)
{
	memset(entry, 0, sizeof(*entry));
	entry->sessions = count_slots(db);
	entry->db = db;
	entry->origin_at = origin_at;
	entry->since = GetCurrentTimestamp();
	entry->last_active = DT_NOBEGIN;
}

AbActivity *
ab_activity_make(Oid db, TimestampTz origin_at)
{
	AbActivity *entry = ab_activity_find(db);
	Entry	   *taken;

	if (entry != NULL && entry->origin_at == origin_at)
		return entry;
	if (entry != NULL)
	{
		/* the database that had this OID is gone, and its sessions with it */
		if (entry->suspended_at != 0)
			ab_activity->nsuspended--;
		clear(entry, db, origin_at);
		ab_activity_touch(entry);
		return entry;
	}
	if (ab_activity->nentries >= ab_max_tracked_branches && !ab_activity->none_to_evict)
		evict_some();
	taken = take_entry(db);
	if (taken == NULL)
		return NULL;
	clear(&taken->a, db, origin_at);
	return &taken->a;
}

int
ab_activity_room(void)
{
	return ab_max_tracked_branches;
}

int
ab_activity_all(AbActivity *into, int room)
{
	int			n = 0;

	for (uint32 i = 0; i < ab_activity->nnumbers && n < room; i++)
		if (OidIsValid(entries[i].a.db))
			into[n++] = entries[i].a;
	return n;
}

/* Those that were copied go to the end: however many come, each has its turn. */
int
ab_activity_list_to_write(AbActivity *into, int max)
{
	const AbActivityList *list = &ab_activity->lists[AB_TO_WRITE];
	uint32		last = list->last;
	uint32		number = 0;
	int			n = 0;

	while (number != last && n < max)
	{
		Entry	   *entry;

		number = list->first;
		entry = entry_of(number);
		list_remove(AB_TO_WRITE, entry);
		list_append(AB_TO_WRITE, entry);
		into[n++] = entry->a;
	}
	return n;
}

int
ab_activity_list_to_move(AbActivity *into, int max, bool away)
{
	uint32		number = ab_activity->lists[AB_TO_MOVE].first;
	int			n = 0;

	for (; number != 0 && n < max; number = entry_of(number)->links[AB_TO_MOVE].next)
	{
		const AbActivity *entry = &entry_of(number)->a;

		if (entry->stats_put_away != away)
			into[n++] = *entry;
	}
	return n;
}

/* ---- slots ---- */

/* What the owner has written, of one moment; the statement that runs counts up to now. */
static void
read_slot(const AbActivitySlot *slot, TimestampTz now, AbUse *use, TimestampTz *last)
{
	const volatile AbActivitySlot *s = slot;
	uint32		before;
	TimestampTz running;

	do
	{
		before = s->count;
		pg_read_barrier();
		memcpy(use, unconstify(AbUse *, &slot->use), sizeof(*use));
		running = s->running_since;
		*last = s->last_active;
		pg_read_barrier();
	} while ((before & 1) != 0 || before != s->count);

	if (running != 0)
	{
		use->active_us += Max(now - running, 0);
		*last = Max(*last, now);
	}
}

/* Into the entry if there is one or can be made, else into the file. */
static void
collect_slot(AbActivitySlot *slot, TimestampTz now)
{
	AbUse		use;
	AbUse		more;
	TimestampTz last;
	AbActivity *entry;
	AbActivity	spill;

	read_slot(slot, now, &use, &last);
	more = use;
	ab_use_subtract(&more, &slot->collected);

	/* a clock set back: what is too much already is made up for later */
	if (more.active_us < 0)
	{
		use.active_us -= more.active_us;
		more.active_us = 0;
	}
	entry = ab_activity_make(slot->db, slot->origin_at);
	if (ab_use_is_zero(&more) && (entry == NULL || entry->last_active >= last))
		return;
	if (entry == NULL)
	{
		clear(&spill, slot->db, slot->origin_at);
		spill.sessions = 0;		/* as of now: not for later */
		entry = &spill;
	}
	ab_use_add(&entry->pending, &more);
	if (last > entry->last_active)
	{
		entry->last_active = last;
		entry->changed = true;
	}
	slot->collected = use;
	if (entry == &spill)
		ab_activity_spill(&spill);
	else
		ab_activity_touch(entry);
}

void
ab_activity_collect(Oid db)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < MaxBackends; i++)
		if (OidIsValid(db) ? ab_activity->slots[i].db == db :
			OidIsValid(ab_activity->slots[i].db))
			collect_slot(&ab_activity->slots[i], now);
}

AbActivitySlot *
ab_activity_attach(TimestampTz origin_at)
{
	AbActivitySlot *slot;
	AbActivity *entry;

	if (MyBackendId < 1 || MyBackendId > MaxBackends)
		return NULL;
	slot = &ab_activity->slots[MyBackendId - 1];
	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	memset(slot, 0, sizeof(*slot));
	slot->db = MyDatabaseId;
	slot->pid = MyProcPid;
	slot->origin_at = origin_at;
	slot->use.sessions = 1;
	slot->last_active = GetCurrentTimestamp();
	entry = ab_activity_find(MyDatabaseId);
	if (entry != NULL && entry->origin_at == origin_at)
		entry->sessions++;
	else
		(void) ab_activity_make(MyDatabaseId, origin_at);
	LWLockRelease(ab_activity->lock);
	return slot;
}

void
ab_activity_detach(void)
{
	AbActivitySlot *slot = &ab_activity->slots[MyBackendId - 1];
	AbActivity *entry;

	LWLockAcquire(ab_activity->lock, LW_EXCLUSIVE);
	collect_slot(slot, GetCurrentTimestamp());
	entry = ab_activity_find(slot->db);
	if (entry != NULL && entry->origin_at == slot->origin_at && entry->sessions > 0)
		entry->sessions--;
	if (entry != NULL && can_be_evicted(entry))
		ab_activity->none_to_evict = false;
	slot->db = InvalidOid;
	LWLockRelease(ab_activity->lock);
}

TimestampTz
ab_activity_suspended_at(Oid db)
{
	AbActivity *entry;
	TimestampTz at;

	LWLockAcquire(ab_activity->lock, LW_SHARED);
	entry = ab_activity_find(db);
	at = entry == NULL ? 0 : entry->suspended_at;
	LWLockRelease(ab_activity->lock);
	return at;
}
