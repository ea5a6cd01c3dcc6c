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

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/backendid.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "ab_activityfile.h"
#include "ab_settings.h"

/* When there is no room for an entry, this part of them makes room, if it can. */
#define EVICT_PART	16

/* What others see of it comes first. */
typedef struct Entry
{
	AbActivity	a;
	bool		to_write;		/* on the list */
	bool		to_move;
	dlist_node	write_node;
	dlist_node	move_node;
} Entry;

AbActivityShared *ab_activity = NULL;
static HTAB *entries = NULL;

static Size
fixed_size(void)
{
	return add_size(CACHELINEALIGN(sizeof(AbActivityShared)),
					mul_size(MaxBackends, sizeof(AbActivitySlot)));
}

Size
ab_activity_size(void)
{
	return add_size(fixed_size(),
					hash_estimate_size(ab_max_tracked_branches, sizeof(Entry)));
}

void
ab_activity_init(LWLock *lock)
{
	bool		found;
	HASHCTL		info = {0};

	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(Entry);
	entries = ShmemInitHash("agent_branch activity of databases",
							ab_max_tracked_branches, ab_max_tracked_branches,
							&info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ab_activity = ShmemInitStruct("agent_branch activity", fixed_size(), &found);
	if (found)
		return;
	memset(ab_activity, 0, fixed_size());
	ab_activity->lock = lock;
	ab_activity->slots = (AbActivitySlot *)
		((char *) ab_activity + CACHELINEALIGN(sizeof(AbActivityShared)));
	dlist_init(&ab_activity->to_write);
	dlist_init(&ab_activity->to_move);
	ab_activity_restore();
}

/* ---- entries ---- */

AbActivity *
ab_activity_find(Oid db)
{
	return hash_search(entries, &db, HASH_FIND, NULL);
}

static void
set_to_write(Entry *entry, bool to_write)
{
	if (to_write && !entry->to_write)
		dlist_push_tail(&ab_activity->to_write, &entry->write_node);
	else if (!to_write && entry->to_write)
		dlist_delete(&entry->write_node);
	entry->to_write = to_write;
}

static void
set_to_move(Entry *entry, bool to_move)
{
	if (to_move && !entry->to_move)
		dlist_push_tail(&ab_activity->to_move, &entry->move_node);
	else if (!to_move && entry->to_move)
		dlist_delete(&entry->move_node);
	ab_activity->nto_move += to_move - entry->to_move;
	entry->to_move = to_move;
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
	(void) hash_search(entries, &db, HASH_REMOVE, NULL);
	ab_activity->nentries--;
}

/* Those that say nothing that is not in the table. */
static void
evict_some(void)
{
	HASH_SEQ_STATUS seq;
	AbActivity *entry;
	int			left = ab_max_tracked_branches / EVICT_PART + 1;

	ab_activity->none_to_evict = true;
	hash_seq_init(&seq, entries);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (entry->sessions > 0 || entry->suspended_at != 0 || entry->changed ||
			entry->stats_put_away ||
			!ab_use_is_zero(&entry->pending) || ab_activity_in_batch(entry->db) != NULL)
			continue;
		ab_activity->none_to_evict = false;
		ab_activity_remove(entry->db);
		if (--left == 0)
		{
			hash_seq_term(&seq);
			return;
		}
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
	bool		found;
	AbActivity *entry = ab_activity_find(db);

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
	if (ab_activity->nentries >= ab_max_tracked_branches)
		return NULL;
	entry = hash_search(entries, &db, HASH_ENTER_NULL, &found);
	if (entry == NULL)
		return NULL;
	((Entry *) entry)->to_write = ((Entry *) entry)->to_move = false;
	clear(entry, db, origin_at);
	ab_activity->nentries++;
	return entry;
}

int
ab_activity_room(void)
{
	return ab_max_tracked_branches;
}

int
ab_activity_all(AbActivity *into, int room)
{
	HASH_SEQ_STATUS seq;
	AbActivity *entry;
	int			n = 0;

	hash_seq_init(&seq, entries);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (n == room)
		{
			hash_seq_term(&seq);
			break;
		}
		into[n++] = *entry;
	}
	return n;
}

/* Those that were copied go to the end: however many come, each has its turn. */
int
ab_activity_list_to_write(AbActivity *into, int max)
{
	dlist_head *list = &ab_activity->to_write;
	dlist_node *last = dlist_is_empty(list) ? NULL : dlist_tail_node(list);
	dlist_node *node = NULL;
	int			n = 0;

	while (node != last && n < max)
	{
		node = dlist_pop_head_node(list);
		dlist_push_tail(list, node);
		into[n++] = dlist_container(Entry, write_node, node)->a;
	}
	return n;
}

int
ab_activity_list_to_move(AbActivity *into, int max, bool away)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &ab_activity->to_move)
	{
		const AbActivity *entry = &dlist_container(Entry, move_node, iter.cur)->a;

		if (n == max)
			break;
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
