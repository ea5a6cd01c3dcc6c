/*
 * ab_shmem.c
 *	  Shared memory of the library, and what has to happen to the files before
 *	  the startup process begins.
 *
 * The hooks run in the postmaster, at start and again after a backend crashed.
 * No other process of the server exists then, so no locks are taken.
 */
#include "ab_shmem.h"

#include <dirent.h>
#include <unistd.h>

#include "access/xlog_internal.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "ab_attach.h"
#include "ab_file.h"
#include "ab_journal.h"
#include "ab_settings.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_storage.h"

#define TRANCHE "agent_branch"
#define OTHER_LOCKS 3

AbShared   *ab_shared = NULL;

static shmem_request_hook_type prev_shmem_request = NULL;
static shmem_startup_hook_type prev_shmem_startup = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(AbShared, snap),
					mul_size(ab_max_snapshots, sizeof(AbSnapSlot)));
}

static void
request_shmem(void)
{
	if (prev_shmem_request)
		prev_shmem_request();
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche(TRANCHE, AB_ORIGIN_LOCKS + OTHER_LOCKS);
}

static void
init_shared(void)
{
	LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE);

	memset(ab_shared, 0, shared_size());
	ab_shared->origin_locks = locks;
	ab_shared->journal_lock = &locks[AB_ORIGIN_LOCKS].lock;
	ab_shared->snap_lock = &locks[AB_ORIGIN_LOCKS + 1].lock;
	ab_shared->keeper_lock = &locks[AB_ORIGIN_LOCKS + 2].lock;
	pg_atomic_init_u32(&ab_shared->layer_generation, 1);
	for (int i = 0; i < AB_GENERATIONS; i++)
		pg_atomic_init_u32(&ab_shared->generation[i], 1);
	ConditionVariableInit(&ab_shared->keeper_cv);
	ab_shared->nsnapslots = ab_max_snapshots;
}

/* Half-written origin files of a crashed server. */
static void
remove_tmp_origins(void)
{
	DIR		   *dir = AllocateDir(AB_BRANCH_DIR);
	struct dirent *de;

	while ((de = ReadDir(dir, AB_BRANCH_DIR)) != NULL)
	{
		char		path[MAXPGPATH];

		if (strncmp(de->d_name, AB_TMP_PREFIX, strlen(AB_TMP_PREFIX)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", AB_BRANCH_DIR, de->d_name);
		if (unlink(path) < 0)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	FreeDir(dir);
}

static bool
was_shut_down_cleanly(void)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(".", &crc_ok);
	bool		clean = crc_ok &&
		(control->state == DB_SHUTDOWNED ||
		 control->state == DB_SHUTDOWNED_IN_RECOVERY);

	pfree(control);
	return clean;
}

static void
prepare_files(void)
{
	ab_file_make_dirs();
	remove_tmp_origins();
	ab_snapshot_remove_tmp();
	if (!was_shut_down_cleanly())
		ab_storage_repair_all();
	ab_journal_recover();
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
	LWLockRelease(AddinShmemInitLock);
	if (found || IsUnderPostmaster)
		return;

	ab_attach_self_test();
	prepare_files();
	ab_snaptable_load();
}

void
ab_shmem_install_hooks(void)
{
	prev_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}
