/*
 * ab_originsync.c
 *	  Which origin files are not durable yet, and who makes them so.
 *
 * Creating a branch logs a record from which redo makes its origin file again.  So
 * the file need not be durable at commit, only before the redo pointer is beyond the
 * record for good.  No hook runs in a checkpoint, but a checkpoint cannot complete
 * before each shared buffer that was dirty at its start is written, through
 * ab_smgr_write(), by whoever does it.  Hence:
 *
 * O1  Between the record and the moment when a page of pg_database is marked dirty,
 *     after the file is in the list, the creator holds DELAY_CHKPT_START.  A checkpoint
 *     whose redo pointer is beyond the record therefore finds that page dirty, or it
 *     has been written since, in any case after the entry was made.
 * O2  Nobody writes or extends a shared relation while the list holds files that were
 *     there when he began.  (Any shared relation: VACUUM FULL gives pg_database a
 *     new file, whose pages it writes itself.)
 * O3  An entry leaves the list after its file and their directory were synced, or
 *     because the file is gone.
 *
 * Any process that writes shared buffers, and creators.  originsync_lock is held while
 * syncing, below buffer content locks; nothing but I/O is done under it.  The list
 * itself has a spinlock.  A crash of the server loses the list; before crash recovery
 * the server syncs every file in the data directory.
 */
#include "ab_originsync.h"

#include <fcntl.h>
#include <unistd.h>

#include "catalog/pg_database.h"
#include "catalog/pg_tablespace_d.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/relmapper.h"

#include "ab_format.h"
#include "ab_shmem.h"

/* ---- the list ---- */

/* False if it is full. */
static bool
append(Oid db)
{
	AbOriginSync *s = &ab_shared->originsync;
	bool		done;

	SpinLockAcquire(&s->mutex);
	done = s->n < AB_ORIGINSYNC_MAX;
	if (done)
		s->db[s->n++] = db;
	SpinLockRelease(&s->mutex);
	return done;
}

static int
waiting(void)
{
	AbOriginSync *s = &ab_shared->originsync;
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
	AbOriginSync *s = &ab_shared->originsync;

	SpinLockAcquire(&s->mutex);
	s->n -= n;
	memmove(s->db, s->db + n, s->n * sizeof(Oid));
	SpinLockRelease(&s->mutex);
}

/* ---- syncing ---- */

static void
raise_io_error(const char *verb, const char *path)
{
	ereport(data_sync_elevel(ERROR),
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", verb, path)));
}

/* Descriptor of an origin file, or -1 if the branch is gone already. */
static int
open_origin(Oid db, char *path)
{
	int			fd;

	snprintf(path, MAXPGPATH, AB_BRANCH_DIR "/%u", db);
	fd = BasicOpenFile(path, O_RDWR | PG_BINARY);
	if (fd < 0 && errno != ENOENT)
		raise_io_error("open", path);
	return fd;
}

static void
sync_file(int fd, const char *path)
{
	int			rc = pg_fsync(fd);
	int			save_errno = errno;

	close(fd);
	errno = save_errno;
	if (rc != 0)
		raise_io_error("fsync", path);
}

/*
 * All of them are handed to the kernel before the first is waited for, so that one
 * commit of the filesystem's journal does for many.  Entries below n do not move, for
 * only the holder of originsync_lock removes any.
 */
static void
sync_first(int n)
{
	const Oid  *db = ab_shared->originsync.db;
	char		path[MAXPGPATH];

	for (int i = 0; n > 1 && i < n; i++)
	{
		int			fd = open_origin(db[i], path);

		if (fd < 0)
			continue;
		pg_flush_data(fd, 0, 0);
		close(fd);
	}
	for (int i = 0; i < n; i++)
	{
		int			fd = open_origin(db[i], path);

		if (fd >= 0)
			sync_file(fd, path);
	}
	fsync_fname(AB_BRANCH_DIR, true);
}

static void
sync_all(void)
{
	int			n;

	LWLockAcquire(ab_shared->originsync_lock, LW_EXCLUSIVE);
	n = waiting();
	if (n > 0)
	{
		sync_first(n);
		remove_first(n);
	}
	LWLockRelease(ab_shared->originsync_lock);
}

/* ---- who calls ---- */

/*
 * Its content is what it was, so this needs no WAL: if the page on disk differs from it,
 * the change that makes the difference is in WAL with an image, or the page is dirty
 * anyway.
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
	MarkBufferDirty(buffer);
	UnlockReleaseBuffer(buffer);
}

static void
wake_keeper(void)
{
	LWLockAcquire(ab_shared->keeper_lock, LW_SHARED);
	if (ab_shared->keeper_latch != NULL)
		SetLatch(ab_shared->keeper_latch);
	LWLockRelease(ab_shared->keeper_lock);
}

void
ab_originsync_later(Oid db)
{
	Assert((MyProc->delayChkptFlags & DELAY_CHKPT_START) != 0);
	while (!append(db))
		sync_all();
	dirty_shared_page();
	if (waiting() == AB_ORIGINSYNC_MAX / 2)
		wake_keeper();
}

void
ab_originsync_before_write(void)
{
	if (ab_shared->originsync.n > 0)
		sync_all();
}

void
ab_originsync_tend(void)
{
	if (waiting() >= AB_ORIGINSYNC_MAX / 2)
		sync_all();
}
