/*
 * ab_startup.c
 *	  What has to happen to the files, and to the attachment, before the startup
 *	  process begins.
 *
 * Runs in the postmaster, at start and again after a backend crashed, as soon as
 * shared memory is there.  No other process of the server exists then, so no locks
 * are taken.  A crash on the way leaves nothing that the next start does not mend.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* syncfs */
#endif

#include "ab_startup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"

#include "ab_attach.h"
#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_gather.h"
#include "ab_images.h"
#include "ab_initfile.h"
#include "ab_journal.h"
#include "ab_kept.h"
#include "ab_origin.h"
#include "ab_recovery.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_storage.h"
#include "ab_witness.h"

static shmem_startup_hook_type prev_shmem_startup = NULL;

/*
 * The index of before-images is made from what is durable.  In a backup only images
 * of snapshots before the replay's beginning are of use; the others come again.
 */
static void
rebuild_images(bool backup, XLogRecPtr redo)
{
	int			n;
	Oid		   *dbs = ab_images_databases(&n);

	for (int i = 0; i < n; i++)
	{
		ab_kept_finish(dbs[i]);
		if (!ab_images_rebuild(dbs[i], backup, redo))
			ab_witness_poison_database(dbs[i],
									   "Saved pages could not be read when the server started.");
	}
	pfree(dbs);
}

/*
 * Only for a backup of a primary it is sure that its WAL has an image of whatever page it
 * changes: that begins with a checkpoint.
 */
static bool
is_of_primary(const ControlFileData *control)
{
	AbBackupLabel label;

	ab_trust_read_label(&label);
	/* one of a standby ends where its pg_control says, one of pg_rewind nowhere */
	return label.there ? label.from_primary :
		control->backupEndRequired && XLogRecPtrIsInvalid(control->backupEndPoint);
}

/*
 * It would come to files that branches do not have, half way; and where they have some, take
 * what they inherit in these for zeros.
 */
static void
refuse_upgrade(void)
{
	if (IsBinaryUpgrade && ab_origin_any())
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("pg_upgrade cannot be run while there are branches"),
				 errdetail("It copies or links files, and does not know the pages that branches share with their parents."),
				 errhint("Start the server as usual, detach the branches or delete them for good, and call branch.gc().")));
}

/*
 * After a crash the server syncs what was not, before it replays anything, and ab_latesync.c
 * relies on that.  If it is to do so by file systems, it passes over those that are mounted
 * within its directory.
 */
static void
sync_file_systems(void)
{
	static const char *const dirs[] = {AB_DIR, AB_BRANCH_DIR, AB_SNAPSHOT_DIR, AB_IMAGE_DIR};
	struct stat st;
	dev_t		synced;

	if (recovery_init_sync_method != RECOVERY_INIT_SYNC_METHOD_SYNCFS || !enableFsync ||
		stat(".", &st) < 0)
		return;
	synced = st.st_dev;
	for (int i = 0; i < lengthof(dirs); i++)
	{
		int			fd;

		if (stat(dirs[i], &st) < 0 || st.st_dev == synced)
			continue;
		synced = st.st_dev;
		fd = BasicOpenFile(dirs[i], O_RDONLY);
		if (fd < 0 || syncfs(fd) < 0)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not synchronize file system for file \"%s\": %m", dirs[i])));
		if (fd >= 0)
			close(fd);
	}
}

static void
prepare_files(void)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(".", &crc_ok);
	XLogRecPtr	redo;
	bool		backup = ab_recovery_from_backup(control, &redo);
	bool		clean = crc_ok &&
		(control->state == DB_SHUTDOWNED ||
		 control->state == DB_SHUTDOWNED_IN_RECOVERY);

	ab_recovery_begin(backup || !crc_ok || control->state != DB_SHUTDOWNED,
					  backup && is_of_primary(control));
	ab_witness_expect_dirs();
	ab_file_make_dirs();
	refuse_upgrade();
	ab_initfile_drop_all();
	ab_snapshot_remove_tmp();
	ab_witness_begin(control);
	if (!clean)
	{
		sync_file_systems();
		ab_storage_repair_all();
	}
	AB_FAILPOINT_NO_ERROR("start-witnessed");
	ab_journal_recover(control->checkPointCopy.redo);
	rebuild_images(backup, redo);
	AB_FAILPOINT_NO_ERROR("start-images-rebuilt");
	ab_gather_begin();
	ab_snaptable_load(redo);
	ab_epoch_load();
	AB_FAILPOINT_NO_ERROR("start-loaded");
	pfree(control);
}

static void
startup(void)
{
	if (prev_shmem_startup)
		prev_shmem_startup();
	if (IsUnderPostmaster)
		return;
	ab_attach_self_test();
	prepare_files();
}

void
ab_startup_install_hook(void)
{
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup;
}
