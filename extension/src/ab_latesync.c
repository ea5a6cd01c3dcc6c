/*
 * ab_latesync.c
 *	  Which files are not durable yet, and who makes them so.
 *
 * Creating a branch logs a record from which redo makes its origin file again, and so
 * does a live snapshot for its manifest and its epoch's file.  Hence these files need not
 * be durable at commit, only before the redo pointer is beyond their record for good.
 * (Nor need the name of a manifest: CONFIRM gives it that.)  No hook runs in a checkpoint, but a
 * checkpoint cannot complete before each shared buffer that was dirty at its start is
 * written, through ab_smgr_write(), by whoever does it.  Hence:
 *
 * O1  Between the record and the moment when a page of pg_database is marked dirty,
 *     after the file is in the list, its maker holds DELAY_CHKPT_START.  A checkpoint
 *     whose redo pointer is beyond the record therefore finds that page dirty, or it
 *     has been written since, in any case after the entry was made.
 * O2  Nobody writes or extends a shared relation while the list holds files that were
 *     there when he began.  (Any shared relation: VACUUM FULL gives pg_database a
 *     new file, whose pages it writes itself.)  Making room by a page that says nothing
 *     is no such write; a batch, which fills page after page, would sync for each.
 * O3  An entry leaves the list after its file and their directory were synced, or
 *     because the file is gone.
 *
 * Any process that writes shared buffers, and who makes such files.  latesync_lock is
 * held while syncing, below buffer content locks; nothing but I/O is done under it.  The
 * list itself has a spinlock.  A crash of the server loses the list; before crash
 * recovery the server syncs every file in the data directory (see also ab_startup.c).
 */
#include "ab_latesync.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace_d.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/relmapper.h"

#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_format.h"
#include "ab_imagefile.h"
#include "ab_request.h"
#include "ab_shmem.h"

/* ---- the list ---- */

/* False if it is full. */
static bool
append(const AbLateFile *file)
{
	AbLateSync *s = &ab_shared->latesync;
	bool		done;

	SpinLockAcquire(&s->mutex);
	done = s->n < AB_LATESYNC_MAX;
	if (done)
		s->file[s->n++] = *file;
	SpinLockRelease(&s->mutex);
	return done;
}

static int
waiting(void)
{
	AbLateSync *s = &ab_shared->latesync;
	int			n;

	SpinLockAcquire(&s->mutex);
	n = s->n;
	SpinLockRelease(&s->mutex);
	return n;
}

/* The first n are durable; others may have been appended meanwhile. */
static void
remove_first(int n)
{
	AbLateSync *s = &ab_shared->latesync;

	SpinLockAcquire(&s->mutex);
	s->n -= n;
	memmove(s->file, s->file + n, s->n * sizeof(AbLateFile));
	SpinLockRelease(&s->mutex);
}

/* ---- syncing ---- */

static void
name_of(const AbLateFile *file, const char *suffix, char path[MAXPGPATH])
{
	char		id[AB_SNAPID_TEXT_LEN + 1];

	if (file->kind == AB_LATE_ORIGIN)
	{
		snprintf(path, MAXPGPATH, AB_BRANCH_DIR "/%u", file->db);
		return;
	}
	ab_snapid_format(file->snapshot, id);
	snprintf(path, MAXPGPATH, AB_SNAPSHOT_DIR "/%s%s", id, suffix);
}

/* A manifest may be given its name between the first look and the second. */
static int
open_late(const AbLateFile *file, char path[MAXPGPATH])
{
	static const char *const suffixes[] = {".manifest", ".pending", ".manifest"};
	int			fd = -1;

	for (int i = 0; i < lengthof(suffixes) && fd < 0; i++)
	{
		name_of(file, suffixes[i], path);
		fd = BasicOpenFile(path, O_RDWR | PG_BINARY);
		if (fd < 0 && errno != ENOENT)
			break;
	}
	return fd;
}

static int
open_epoch(const AbLateFile *file, char path[MAXPGPATH])
{
	ab_images_path(path, file->db, file->snapshot);
	return BasicOpenFile(path, O_RDWR | PG_BINARY);
}

/* What is not there any more needs no sync.  False: errno says why. */
static bool
sync_and_close(int fd)
{
	int			rc;
	int			save_errno;

	if (fd < 0)
		return errno == ENOENT;
	rc = pg_fsync(fd);
	save_errno = errno;
	close(fd);
	errno = save_errno;
	return rc == 0;
}

/* Start writing, and do not wait. */
static void
flush_and_close(int fd)
{
	if (fd < 0)
		return;
	pg_flush_data(fd, 0, 0);
	close(fd);
}

static void
require_synced(bool ok, const AbLateFile *file, const char *path)
{
	/* a snapshot that cannot be kept is nobody else's failure (E2) */
	if (!ok && (file->kind == AB_LATE_ORIGIN ||
				!ab_epoch_poison_one(file->snapshot, errno)))
		ereport(data_sync_elevel(ERROR),
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", path)));
}

/* What older snapshots need may be in it as well. */
static void
require_epoch_synced(bool ok, const AbLateFile *file)
{
	if (!ok)
		ab_epoch_poison(file->db, file->snapshot, InvalidXLogRecPtr, errno);
}

static void
sync_file(const AbLateFile *file)
{
	char		path[MAXPGPATH];
	int			fd;

	if (file->kind == AB_LATE_NAME)
		return;
	fd = open_late(file, path);
	require_synced(sync_and_close(fd), file, path);
	if (file->kind == AB_LATE_SNAPSHOT)
		require_epoch_synced(sync_and_close(open_epoch(file, path)), file);
}

/* The directory that has the names of all manifests. */
static void
sync_manifest_names(const AbLateFile *file, int n)
{
	bool		ok = sync_and_close(BasicOpenFile(AB_SNAPSHOT_DIR, O_RDONLY | PG_BINARY));

	int			error = errno;

	for (int i = 0; i < n && !ok; i++)
	{
		errno = error;
		if (file[i].kind != AB_LATE_ORIGIN)
			require_synced(false, &file[i], AB_SNAPSHOT_DIR);
	}
}

static bool
is_first_of_its_database(const AbLateFile *file, int i)
{
	for (int k = 0; k < i; k++)
		if (file[k].kind == AB_LATE_SNAPSHOT && file[k].db == file[i].db)
			return false;
	return true;
}

/* A directory for each database. */
static void
sync_epoch_names(const AbLateFile *file, int n)
{
	for (int i = 0; i < n; i++)
	{
		char		path[MAXPGPATH];
		int			error;
		bool		ok;

		if (file[i].kind != AB_LATE_SNAPSHOT || !is_first_of_its_database(file, i))
			continue;
		ab_images_dir_path(path, file[i].db);
		ok = sync_and_close(BasicOpenFile(path, O_RDONLY | PG_BINARY));
		error = errno;
		for (int k = i; k < n && !ok; k++)
		{
			errno = error;
			if (file[k].kind == AB_LATE_SNAPSHOT && file[k].db == file[i].db)
				require_epoch_synced(false, &file[k]);
		}
	}
}

/*
 * All of them are handed to the kernel before the first is waited for, so that one
 * commit of the filesystem's journal does for many.  Entries below n do not move, for
 * only the holder of latesync_lock removes any.
 */
static void
sync_first(int n)
{
	const AbLateFile *file = ab_shared->latesync.file;
	bool		origins = false;
	bool		manifests = false;
	char		path[MAXPGPATH];

	for (int i = 0; n > 1 && i < n; i++)
	{
		if (file[i].kind != AB_LATE_NAME)
			flush_and_close(open_late(&file[i], path));
		if (file[i].kind == AB_LATE_SNAPSHOT)
			flush_and_close(open_epoch(&file[i], path));
	}
	for (int i = 0; i < n; i++)
	{
		sync_file(&file[i]);
		origins |= file[i].kind == AB_LATE_ORIGIN;
		manifests |= file[i].kind != AB_LATE_ORIGIN;
	}
	if (origins)
		fsync_fname(AB_BRANCH_DIR, true);
	if (manifests)
	{
		sync_manifest_names(file, n);
		sync_epoch_names(file, n);
	}
}

static void
sync_all(void)
{
	int			n;

	LWLockAcquire(ab_shared->latesync_lock, LW_EXCLUSIVE);
	n = waiting();
	if (n > 0)
	{
		sync_first(n);
		AB_FAILPOINT_NO_ERROR("late-synced");
		remove_first(n);
	}
	LWLockRelease(ab_shared->latesync_lock);
}

/* ---- who calls ---- */

/*
 * Its content is what it was, so this needs no WAL: if the page on disk differs from it,
 * the change that makes the difference is in WAL with an image, or the page is dirty
 * anyway, or the difference is hint bits, of which a part may get to the disk.  But not
 * with checksums: then it needs an image, as if the hint bits were set now (a standby sets
 * them in clean pages, and may be promoted).
 */
static void
dirty_shared_page(void)
{
	RelFileNode rnode;
	Buffer		buffer;

	rnode.spcNode = GLOBALTABLESPACE_OID;
	rnode.dbNode = InvalidOid;
	rnode.relNode = RelationMapOidToFilenode(DatabaseRelationId, true);
	buffer = ReadBufferWithoutRelcache(rnode, MAIN_FORKNUM, 0, RBM_NORMAL, NULL, true);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	START_CRIT_SECTION();
	MarkBufferDirty(buffer);
	if (XLogHintBitIsNeeded())
	{
		XLogRecPtr	lsn = XLogSaveBufferForHint(buffer, true);

		if (!XLogRecPtrIsInvalid(lsn))
			PageSetLSN(BufferGetPage(buffer), lsn);
	}
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
}

void
ab_latesync_begin(void)
{
	Assert((MyProc->delayChkptFlags & DELAY_CHKPT_START) == 0);
	LockRelationOid(DatabaseRelationId, AccessShareLock);
	MyProc->delayChkptFlags |= DELAY_CHKPT_START;
}

void
ab_latesync_end(void)
{
	MyProc->delayChkptFlags &= ~DELAY_CHKPT_START;
	UnlockRelationOid(DatabaseRelationId, AccessShareLock);
}

static void
later(const AbLateFile *file)
{
	Assert((MyProc->delayChkptFlags & DELAY_CHKPT_START) != 0);
	while (!append(file))
		sync_all();
	AB_FAILPOINT("late-appended");
	dirty_shared_page();
	if (waiting() == AB_LATESYNC_MAX / 2)
		ab_request_poke_keeper();
}

void
ab_latesync_origin(Oid db)
{
	AbLateFile	file = {.kind = AB_LATE_ORIGIN, .db = db};

	later(&file);
}

void
ab_latesync_snapshot(Oid db, AbSnapId snapshot)
{
	AbLateFile	file = {.kind = AB_LATE_SNAPSHOT, .db = db, .snapshot = snapshot};

	later(&file);
}

void
ab_latesync_name(Oid db, AbSnapId snapshot)
{
	AbLateFile	file = {.kind = AB_LATE_NAME, .db = db, .snapshot = snapshot};

	later(&file);
}

void
ab_latesync_before_write(void)
{
	if (ab_shared->latesync.n > 0)
		sync_all();
}

void
ab_latesync_tend(void)
{
	if (waiting() >= AB_LATESYNC_MAX / 2)
		sync_all();
}
