/*
 * ab_overlay.c
 *	  A branch's own files: looking for them, making them, cutting them.
 *
 * Any process.  Making one holds the database's origin lock in shared mode, with
 * the limit read under it; lowering a limit holds it exclusively.  So a file is
 * either there before a truncation looks for it, or is made with the new limit.
 *
 * A file has its name a moment before its maker has bumped the generation.  Until then
 * others may believe that there is none, and would miss what is written into it.  So
 * whoever finds a file that he did not make waits for the lock, exclusively, before he
 * writes into it for the first time; and, if names are being synced just then, syncs
 * this one himself, since a checkpoint may rely on what he writes.
 *
 * A crash can leave pgsql_tmp* files in the database's directory (skipped by
 * backups and checksum tools, gone with the branch) and own files whose length was
 * lost; those are extended again to the limit at first use (I2).
 */
#include "ab_overlay.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/pg_tablespace_d.h"
#include "commands/tablespace.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_parentfile.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"

static uint32 tmp_counter = 0;

bool
ab_page_is_zero(const char *page)
{
	const size_t *word = (const size_t *) page;

	for (int i = 0; i < BLCKSZ / sizeof(size_t); i++)
		if (word[i] != 0)
			return false;
	return true;
}

/* Length that segment segno of a file of limit blocks must at least have. */
static off_t
segment_length(BlockNumber limit, BlockNumber segno)
{
	BlockNumber first = segno * (BlockNumber) RELSEG_SIZE;

	if (limit <= first)
		return 0;
	return (off_t) Min(limit - first, (BlockNumber) RELSEG_SIZE) * BLCKSZ;
}

static BlockNumber
last_segment(BlockNumber limit)
{
	return limit == 0 ? 0 : (limit - 1) / (BlockNumber) RELSEG_SIZE;
}

bool
ab_overlay_is_left_over(const AbFork *f)
{
	char		path[MAXPGPATH];
	struct stat st;

	if (f->limit > 0 || f->key.spc == DEFAULTTABLESPACE_OID)
		return false;
	snprintf(path, sizeof(path), "pg_tblspc/%u", f->key.spc);
	return stat(path, &st) < 0 && errno == ENOENT;
}

/* Is every segment as long as the limit wants?  False also without a file. */
static bool
long_enough(RelFileNode rnode, ForkNumber fork, BlockNumber limit, bool *exists)
{
	BlockNumber nseg = last_segment(limit) + 1;

	for (BlockNumber segno = 0; segno < nseg; segno++)
	{
		char		path[MAXPGPATH];
		struct stat st;

		ab_relation_path(path, rnode, fork, segno);
		if (stat(path, &st) < 0)
		{
			if (errno != ENOENT && errno != ENOTDIR)
				ereport(ERROR,
						(errcode_for_file_access(),
						 errmsg("could not stat file \"%s\": %m", path)));
			if (segno == 0)
			{
				/* that there is no own file means something only if there could be one */
				ab_storage_require_tablespace(rnode.spcNode);
				*exists = false;
			}
			return false;
		}
		*exists = true;
		if (st.st_size < segment_length(limit, segno))
			return false;
	}
	return true;
}

static void
segment_error(const char *path)
{
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not make file \"%s\": %m", path),
			 errhint("Check free disk space.")));
}

/* Make one segment, or lengthen the one that is there. */
static void
make_segment(RelFileNode rnode, ForkNumber fork, BlockNumber segno, off_t length)
{
	char		path[MAXPGPATH];
	char		dir[MAXPGPATH];
	char		tmp[MAXPGPATH + 64];
	struct stat st;
	int			fd;

	ab_relation_path(path, rnode, fork, segno);
	if (stat(path, &st) == 0)
	{
		if (st.st_size < length && truncate(path, length) < 0)
			segment_error(path);
		return;
	}

	/* a name that backups and pg_checksums pass over */
	strlcpy(dir, path, sizeof(dir));
	get_parent_directory(dir);
	snprintf(tmp, sizeof(tmp), "%s/%s_ab.%d.%u", dir, PG_TEMP_FILE_PREFIX,
			 (int) getpid(), ++tmp_counter);
	(void) unlink(tmp);			/* left by a crash, of who had this pid then */
	fd = BasicOpenFile(tmp, O_RDWR | O_CREAT | O_EXCL | PG_BINARY);
	if (fd < 0)
		segment_error(tmp);
	if (ftruncate(fd, length) < 0 ||
		(link(tmp, path) < 0 && errno != EEXIST))
	{
		int			save_errno = errno;

		close(fd);
		unlink(tmp);
		errno = save_errno;
		segment_error(path);
	}
	AB_FAILPOINT_NO_ERROR("own-file-linked");
	close(fd);
	unlink(tmp);
}

/*
 * Make the new names durable: the file's, and before the first file of a branch that
 * this process makes in a tablespace also that of the database's directory there, which
 * its creation left to us.
 */
static void
sync_names(RelFileNode rnode, ForkNumber fork)
{
	static Oid	last_db = InvalidOid;
	static Oid	last_spc = InvalidOid;
	char		path[MAXPGPATH];
	char		dir[MAXPGPATH];

	ab_relation_path(path, rnode, fork, 0);
	ab_file_sync_parent(path);
	if (rnode.dbNode == last_db && rnode.spcNode == last_spc)
		return;
	strlcpy(dir, path, sizeof(dir));
	get_parent_directory(dir);
	ab_file_sync_parent(dir);
	last_db = rnode.dbNode;
	last_spc = rnode.spcNode;
}

void
ab_overlay_names_begin(void)
{
	pg_atomic_fetch_add_u32(&ab_shared->unsynced_names, 1);
}

void
ab_overlay_names_end(void)
{
	pg_atomic_fetch_sub_u32(&ab_shared->unsynced_names, 1);
}

/*
 * Of the branch in that tablespace.  The server's own function takes a lock that DROP TABLESPACE
 * holds while it waits for a checkpoint: who is here may be the checkpointer, or one for whom it
 * waits.  No such lock is needed: nobody drops a tablespace in which a branch inherits files.
 */
static void
make_directory(RelFileNode rnode)
{
	char	   *dir;

	if (RecoveryInProgress())
	{
		TablespaceCreateDbspace(rnode.spcNode, rnode.dbNode, true);
		return;
	}
	dir = GetDatabasePath(rnode.dbNode, rnode.spcNode);
	if (MakePGDirectory(dir) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", dir)));
	pfree(dir);
}

static void
make_file(RelFileNode rnode, ForkNumber fork, BlockNumber limit)
{
	BlockNumber segno = last_segment(limit);

	/* last segment first: a missing one would shorten the relation */
	for (;; segno--)
	{
		make_segment(rnode, fork, segno, segment_length(limit, segno));
		if (segno == 0)
			break;
	}
}

void
ab_overlay_lengthen(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks)
{
	TablespaceCreateDbspace(rnode.spcNode, rnode.dbNode, true);
	make_file(rnode, fork, nblocks);
}

void
ab_overlay_make(AbBranch *b, AbFork *f, SMgrRelation reln, bool sync)
{
	RelFileNode rnode = reln->smgr_rnode.node;
	ForkNumber	fork = f->key.fork;

	make_directory(rnode);
	for (;;)
	{
		LWLockAcquire(ab_origin_lock(rnode.dbNode), LW_SHARED);
		if (ab_branch_is_current(b))
			break;
		LWLockRelease(ab_origin_lock(rnode.dbNode));

		/* the limit may have moved: look again */
		b = ab_branch_lookup(rnode.dbNode);
		if (b == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("database %u is not a branch any more", rnode.dbNode)));
	}

	/* nor need the fork be as new as what is known of its branch */
	f = ab_fork_lookup(b, rnode, fork);
	make_file(rnode, fork, f->limit);
	f->own_known = true;
	f->own_exists = true;
	if (sync)
		ab_overlay_names_begin();
	ab_generation_bump(rnode.dbNode);
	LWLockRelease(ab_origin_lock(rnode.dbNode));
	AB_FAILPOINT_NO_ERROR("own-file-made");
	if (!sync)
		return;
	sync_names(rnode, fork);
	AB_FAILPOINT_NO_ERROR("own-file-named");
	ab_overlay_names_end();
	f->own_writable = true;
}

/* Before the first write into a file that another process has made, or is making. */
static void
wait_for_maker(AbFork *f, RelFileNode rnode)
{
	LWLockAcquire(ab_origin_lock(rnode.dbNode), LW_EXCLUSIVE);
	LWLockRelease(ab_origin_lock(rnode.dbNode));
	if (pg_atomic_read_u32(&ab_shared->unsynced_names) > 0)
		sync_names(rnode, f->key.fork);
	f->own_writable = true;
}

void
ab_overlay_create(AbBranch *b, AbFork *f, SMgrRelation reln)
{
	if (f->own_writable)
		return;
	if (ab_overlay_exists(b, f, reln))
		wait_for_maker(f, reln->smgr_rnode.node);
	else
		ab_overlay_make(b, f, reln, true);
}

bool
ab_overlay_hold_number(RelFileNode rnode)
{
	char		path[MAXPGPATH];
	char		dir[MAXPGPATH];
	int			fd;

	ab_relation_path(path, rnode, MAIN_FORKNUM, 0);
	strlcpy(dir, path, sizeof(dir));
	get_parent_directory(dir);
	(void) MakePGDirectory(dir);	/* it may have none in that tablespace */
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

bool
ab_overlay_look_for_file(AbBranch *b, AbFork *f, SMgrRelation reln)
{
	bool		exists = false;

	if (!long_enough(reln->smgr_rnode.node, f->key.fork, f->limit, &exists) && exists)
	{
		/* its length did not survive a crash, or is being cut right now */
		ab_overlay_make(b, f, reln, true);
		return true;
	}
	f->own_exists = exists;
	f->own_known = true;
	return exists;
}

bool
ab_overlay_read(AbBranch *b, AbFork *f, SMgrRelation reln, BlockNumber block,
				char *page)
{
	if (!ab_overlay_exists(b, f, reln))
		return false;
	mdread(reln, f->key.fork, block, page);
	return !ab_page_is_zero(page);
}

/*
 * Cut by path what md has not open: segments from segno on.  Normally there are none, because
 * the caller asked for the size just before, and then md opens all.  But another process may
 * have made the file since then; and recovery remembers the size that it was told before.
 */
static void
cut_by_path(RelFileNode rnode, ForkNumber fork, BlockNumber segno, BlockNumber nblocks)
{
	char		path[MAXPGPATH];
	struct stat st;

	for (;; segno++)
	{
		off_t		length = segment_length(nblocks, segno);
		bool		ok;
		int			fd;

		ab_relation_path(path, rnode, fork, segno);
		fd = BasicOpenFile(path, O_RDWR | PG_BINARY);
		if (fd < 0 && errno == ENOENT)
			break;
		ok = fd >= 0 && fstat(fd, &st) == 0 &&
			(st.st_size <= length ||
			 (ftruncate(fd, length) == 0 && pg_fsync(fd) == 0));
		if (!ok)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not truncate file \"%s\": %m", path)));
		close(fd);
	}
}

void
ab_overlay_truncate(AbBranch *b, AbFork *f, SMgrRelation reln,
					BlockNumber old_blocks, BlockNumber nblocks)
{
	ForkNumber	fork = f->key.fork;
	BlockNumber known = reln->md_num_open_segs[fork];

	if (known > 0)
		mdtruncate(reln, fork, old_blocks, nblocks);
	cut_by_path(reln->smgr_rnode.node, fork, known, nblocks);
}
