/*
 * ab_shmem.c
 *	  Shared memory of the library: asking for it and setting it up.
 *
 * The hooks run in the postmaster, at start and again after a backend crashed.
 * No other process of the server exists then, so no locks are taken.
 */
#include "ab_shmem.h"

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "ab_activity.h"
#include "ab_format.h"
#include "ab_quotatable.h"
#include "ab_settings.h"

#define TRANCHE "agent_branch"
#define SPARE_SLOTS 16			/* beside those that are taken at start */
#define OTHER_LOCKS (3 * AB_GUARDS + 9)
#define QUOTA_LOCK (AB_ORIGIN_LOCKS + OTHER_LOCKS - 1)
#define ACTIVITY_LOCK (AB_ORIGIN_LOCKS + OTHER_LOCKS - 2)
#define GENERATIONS_OF_A_START (1 << 22)	/* many more than it has snapshots */

AbShared   *ab_shared = NULL;

static int	nslots;			/* of the table of snapshots; set in the postmaster */

static shmem_request_hook_type prev_shmem_request = NULL;
static shmem_startup_hook_type prev_shmem_startup = NULL;

/*
 * Slots: the setting, but never less than there are snapshots, since one without a slot
 * would not have its pages kept.
 */
static int
count_slots(void)
{
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;
	int			n = 0;

	if (dir == NULL)
		return ab_max_snapshots;
	while ((de = ReadDirExtended(dir, AB_SNAPSHOT_DIR, LOG)) != NULL)
		if (strstr(de->d_name, ".pages") == NULL)
			n++;
	FreeDir(dir);
	return Max(ab_max_snapshots, n + SPARE_SLOTS);
}

static Size
shared_size(void)
{
	Size		size = add_size(offsetof(AbShared, snap),
								mul_size(nslots,
										 sizeof(AbSnapSlot) + sizeof(AbParent)));

	return add_size(MAXALIGN(size), mul_size(MaxBackends, sizeof(pg_atomic_uint64)));
}

static void
request_shmem(void)
{
	if (prev_shmem_request)
		prev_shmem_request();
	nslots = count_slots();
	RequestAddinShmemSpace(add_size(shared_size(), ab_quotatable_size()));
	RequestAddinShmemSpace(ab_activity_size());
	RequestNamedLWLockTranche(TRANCHE, AB_ORIGIN_LOCKS + OTHER_LOCKS);
}

/*
 * Where generations begin.  The postmaster lives on when it makes shared memory anew after a
 * crash, and with it what it had found in the old one while it started, each with its
 * generation; all its children get that.  So no later life may come to a number that one
 * before had by the end of its start.
 */
static uint32
first_generation(void)
{
	static uint32 first = 1;
	uint32		this_life = first;

	first += GENERATIONS_OF_A_START;
	return this_life;
}

static void
init_shared(void)
{
	LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE);
	uint32		first = first_generation();

	memset(ab_shared, 0, shared_size());
	ab_shared->origin_locks = locks;
	ab_shared->guards = locks + AB_ORIGIN_LOCKS;
	ab_shared->capture_locks = ab_shared->guards + AB_GUARDS;
	ab_shared->image_locks = ab_shared->capture_locks + AB_GUARDS;
	locks = ab_shared->image_locks + AB_GUARDS;
	ab_shared->journal_lock = &locks[0].lock;
	ab_shared->snap_lock = &locks[1].lock;
	ab_shared->keeper_lock = &locks[2].lock;
	ab_shared->latesync_lock = &locks[3].lock;
	ab_shared->event_lock = &locks[4].lock;
	ab_shared->ready_lock = &locks[5].lock;
	ab_shared->gather_lock = &locks[6].lock;
	pg_atomic_init_u32(&ab_shared->ungathered, 0);
	pg_atomic_init_u32(&ab_shared->layer_generation, first);
	pg_atomic_init_u32(&ab_shared->unsynced_names, 0);
	pg_atomic_init_u32(&ab_shared->image_generation, first);
	pg_atomic_init_u32(&ab_shared->poison_generation, first);
	for (int i = 0; i < AB_GENERATIONS; i++)
	{
		pg_atomic_init_u32(&ab_shared->generation[i], first);
		pg_atomic_init_u32(&ab_shared->gathered[i], 0);
		pg_atomic_init_u64(&ab_shared->not_gathered[i], 0);
		pg_atomic_init_u32(&ab_shared->catalog_changes[i], 0);
	}
	for (int i = 0; i < AB_HOLE_COUNTERS; i++)
		pg_atomic_init_u64(&ab_shared->holes_filled[i], 0);
	pg_atomic_init_u32(&ab_shared->agent_roles_left, 1);
	ConditionVariableInit(&ab_shared->keeper_cv);
	ConditionVariableInit(&ab_shared->notes_cv);
	pg_atomic_init_u32(&ab_shared->notes_used, 0);
	pg_atomic_init_u32(&ab_shared->events_poked, 0);
	ab_shared->events_wanted = 1;
	SpinLockInit(&ab_shared->latesync.mutex);
	for (int i = 0; i < AB_GUARDS; i++)
	{
		pg_atomic_init_u32(&ab_shared->unlinks_begun[i], 0);
		pg_atomic_init_u32(&ab_shared->unlinks_ended[i], 0);
		SpinLockInit(&ab_shared->forknotes[i].mutex);
		pg_atomic_init_u64(&ab_shared->forknotes[i].clock, 1);
	}
	ab_shared->nsnapslots = nslots;
	ab_shared->parents = (AbParent *) &ab_shared->snap[nslots];
	ab_shared->events_from = (pg_atomic_uint64 *)
		MAXALIGN(&ab_shared->parents[nslots]);
	pg_atomic_init_u64(&ab_shared->events_last, 0);
	for (int i = 0; i < MaxBackends; i++)
		pg_atomic_init_u64(&ab_shared->events_from[i], 0);
}

static void
startup_shmem(void)
{
	bool		found;

	if (prev_shmem_startup)
		prev_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	ab_shared = ShmemInitStruct("agent_branch", shared_size(), &found);
	if (!found)
		init_shared();
	ab_quotatable_init(&GetNamedLWLockTranche(TRANCHE)[QUOTA_LOCK].lock);
	ab_activity_init(&GetNamedLWLockTranche(TRANCHE)[ACTIVITY_LOCK].lock);
	LWLockRelease(AddinShmemInitLock);
}

void
ab_shmem_install_hooks(void)
{
	prev_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}
