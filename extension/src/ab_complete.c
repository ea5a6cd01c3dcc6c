/*
 * ab_complete.c
 *	  Copying what a branch inherits into its own files, and cutting it off from its
 *	  snapshot then.
 *
 * A backend that holds AccessExclusiveLock on the database object, with nobody in the
 * database: no page of it changes but by us.
 *
 * Every block below a fork's limit is logged as a full image, those that are the branch's
 * own already included: which own files a standby has is its own affair.  Inherited
 * pages go through shared buffers, dirty and with the image's LSN, so that writing them
 * is an ordinary first write (I6).  With the files' creations that makes WAL complete:
 * whoever replays it needs neither origin nor snapshot, of which a base backup may have
 * caught neither.
 *
 * A crash or an error leaves a branch with more pages of its own, which reads the same
 * (I1).  BRANCH_DETACH is logged when all files are durable; after it the origin goes.
 */
#include "ab_complete.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "catalog/storage_xlog.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "postmaster/bgwriter.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/fd.h"
#include "storage/smgr.h"

#include "ab_dir.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_image.h"
#include "ab_layer.h"
#include "ab_manifest.h"
#include "ab_overlay.h"
#include "ab_page.h"
#include "ab_parentfile.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"

/* Blocks for which room is made on disk at a time. */
#define ROOM_BLOCKS		128

/* A NOTICE each so many blocks: 128 MB. */
#define NOTICE_BLOCKS	16384

/* Left free on disk by a copy: everybody else has to go on. */
#define SPARE_BYTES		((uint64) 16 * 1024 * 1024)

typedef struct Work
{
	AbComplete *c;
	const char *name;
	AbManifest *m;
	BufferAccessStrategy strategy;
	XLogRecPtr	begin;			/* pages with later LSNs were copied by us */
	uint64		done;
	BlockNumber room_end;		/* room was made for the fork's blocks below this */
} Work;

/*
 * One fork that is inherited.  branch and f are to be looked up anew whenever anything
 * else was; the limit does not move.
 */
typedef struct Fork
{
	const AbForkEntry *e;
	SMgrRelation reln;
	BlockNumber limit;
	AbBranch   *branch;
	AbFork	   *f;
} Fork;

/* ---- what is inherited ---- */

/* False if the relation was dropped, in the branch or before, or is not inherited. */
static bool
look_up(const Work *w, const AbForkEntry *e, Fork *fork)
{
	RelFileNode rnode = {e->spc, w->c->db, e->rel};

	fork->e = e;
	fork->branch = ab_branch_lookup(w->c->db);
	if (fork->branch == NULL)
		elog(ERROR, "database %u is not a branch any more", w->c->db);
	fork->f = ab_fork_lookup(fork->branch, rnode, e->fork);
	fork->limit = fork->f->limit;
	fork->reln = smgropen(rnode, InvalidBackendId);
	return fork->f->entry != NULL && !fork->f->dropped &&
		!ab_overlay_is_left_over(fork->f);
}

/* As ab_smgr.c reads it for the branch. */
static void
read_inherited(const Work *w, const AbForkEntry *e, BlockNumber block, char *page)
{
	ab_snapshot_read(w->m, e, block, page);
	if (e->fork == MAIN_FORKNUM)
		ab_page_settle(page, block);
}

static uint64
count_pages(const Work *w)
{
	uint64		n = 0;

	for (uint32 i = 0; i < w->m->h->nforks; i++)
	{
		Fork		fork;

		if (look_up(w, &w->m->forks[i], &fork))
			n += fork.limit;
	}
	return n;
}

/* ---- room ---- */

static void
raise_no_room(const Work *w, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_DISK_FULL),
			 errmsg("not enough disk space to detach branch \"%s\"", w->name),
			 errdetail("%s", detail),
			 errhint("Make room; what was copied by then need not be copied again.")));
}

/*
 * Is there room in the directory of the database?  An estimate, by which a copy that
 * would fill the disk is refused before it has.  (Relations in other tablespaces are
 * counted as if they were here.)
 */
static void
check_room(const Work *w)
{
	char	   *dir = GetDatabasePath(w->c->db, w->c->origin.spc);
	struct statvfs st;
	uint64		needed = w->c->pages * BLCKSZ + SPARE_BYTES;
	uint64		room;
	int64		own;
	int64		nfiles;

	ab_storage_usage(w->c->db, &own, &nfiles);
	needed -= Min(needed, (uint64) own);
	if (statvfs(dir, &st) == 0 &&
		(room = (uint64) st.f_bavail * st.f_frsize) < needed)
		raise_no_room(w, psprintf("It takes up to %llu bytes, and %llu are free.",
								  (unsigned long long) needed, (unsigned long long) room));
	pfree(dir);
}

/*
 * Take the room of the next blocks, so that it is we who learn that the disk is full,
 * not the checkpointer, which could not go on then.
 */
static void
make_room(Work *w, const Fork *fork, BlockNumber block)
{
	BlockNumber in_segment = block % RELSEG_SIZE;
	BlockNumber n = Min(Min(ROOM_BLOCKS, fork->limit - block),
						(BlockNumber) RELSEG_SIZE - in_segment);
	char		path[MAXPGPATH];
	int			rc;
	int			fd;

	ab_relation_path(path, fork->reln->smgr_rnode.node, fork->e->fork,
					 block / RELSEG_SIZE);
	fd = OpenTransientFile(path, O_RDWR | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	do
	{
		rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t) in_segment * BLCKSZ,
					   (off_t) n * BLCKSZ);
	} while (rc < 0 && errno == EINTR);

	/* a filesystem that cannot do it is none that overwrites in place */
	if (rc < 0 && (errno == ENOSPC || errno == EDQUOT))
		raise_no_room(w, psprintf("There was no room for more of file \"%s\".", path));
	if (rc < 0 && errno != EOPNOTSUPP && errno != ENOSYS)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not allocate room in file \"%s\": %m", path)));
	CloseTransientFile(fd);
	w->room_end = block + n;
}

/* ---- copying ---- */

/* May an image leave out what is between the ends of this page? */
static bool
gap_is_empty(const char *page)
{
	const PageHeaderData *p = (const PageHeaderData *) page;

	if (p->pd_lower < SizeOfPageHeaderData || p->pd_lower > p->pd_upper ||
		p->pd_upper > BLCKSZ)
		return false;
	for (int i = p->pd_lower; i < p->pd_upper; i++)
		if (page[i] != 0)
			return false;
	return true;
}

/*
 * The last block is logged even if it is zeros: from its image redo knows the length.  A
 * map that is damaged is zeroed, as whoever uses it does.
 */
static void
copy_inherited(Work *w, const Fork *fork, BlockNumber block)
{
	bool		is_map = fork->e->fork != MAIN_FORKNUM;
	Buffer		buffer;
	Page		page;

	buffer = ReadBufferWithoutRelcache(fork->reln->smgr_rnode.node, fork->e->fork, block,
									   is_map ? RBM_ZERO_ON_ERROR : RBM_NORMAL,
									   w->strategy, true);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	page = BufferGetPage(buffer);
	if (!PageIsNew(page) || block == fork->limit - 1)
	{
		bool		standard = gap_is_empty(page);

		if (!PageIsNew(page) && block >= w->room_end)
			make_room(w, fork, block);
		START_CRIT_SECTION();
		MarkBufferDirty(buffer);
		(void) log_newpage_buffer(buffer, standard);
		END_CRIT_SECTION();
		w->c->copied += !PageIsNew(page);
	}
	UnlockReleaseBuffer(buffer);
}

static void
complete_fork(Work *w, const AbForkEntry *e)
{
	Fork		fork;

	if (!look_up(w, e, &fork))
		return;
	w->room_end = 0;
	for (BlockNumber block = 0; block < fork.limit; block++)
	{
		PGAlignedBlock own;

		CHECK_FOR_INTERRUPTS();
		if (ab_overlay_read(fork.branch, fork.f, fork.reln, block, own.data))
			(void) ab_image_log(fork.reln->smgr_rnode.node, e->fork, block, own.data);
		else
			copy_inherited(w, &fork, block);
		if (++w->done % NOTICE_BLOCKS == 0)
			ereport(NOTICE,
					(errmsg("detaching branch \"%s\": %llu of %llu pages", w->name,
							(unsigned long long) w->done,
							(unsigned long long) w->c->pages)));

		(void) look_up(w, e, &fork);
	}
}

/*
 * The init forks of unlogged relations were made with the branch, out of its snapshot;
 * WAL has nothing of them.
 */
static void
log_init_fork(const Work *w, const AbForkEntry *e)
{
	RelFileNode rnode = {e->spc, w->c->db, e->rel};
	SMgrRelation reln = smgropen(rnode, InvalidBackendId);
	BlockNumber nblocks;

	if (!smgrexists(reln, INIT_FORKNUM))
		return;					/* dropped in the branch */
	log_smgrcreate(&rnode, INIT_FORKNUM);
	nblocks = smgrnblocks(reln, INIT_FORKNUM);
	for (BlockNumber block = 0; block < nblocks; block++)
	{
		PGAlignedBlock page;

		CHECK_FOR_INTERRUPTS();
		smgrread(reln, INIT_FORKNUM, block, page.data);
		(void) ab_image_log(rnode, INIT_FORKNUM, block, page.data);
	}
}

static void
copy_all(Work *w)
{
	w->begin = GetXLogInsertRecPtr();
	w->strategy = GetAccessStrategy(BAS_BULKWRITE);
	for (uint32 i = 0; i < w->m->h->nforks; i++)
	{
		const AbForkEntry *e = &w->m->forks[i];

		if ((e->flags & AB_FORK_UNLOGGED) == 0)
			complete_fork(w, e);
		else if (e->fork == INIT_FORKNUM)
			log_init_fork(w, e);
	}
	FreeAccessStrategy(w->strategy);
}

/* ---- comparing ---- */

static void
raise_unequal(const Work *w, const Fork *fork, BlockNumber block, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("branch \"%s\" cannot be detached, because a copied page is not what it should be",
					w->name),
			 errdetail("Block %u of fork %d of relation %u: %s.", block, fork->e->fork,
					   fork->e->rel, what),
			 errhint("The branch is as it was; check the disk.")));
}

/* Is a page of the branch's file the inherited one, but for its LSN? */
static bool
same_page(ForkNumber forknum, const char *own, const char *inherited)
{
	PGAlignedBlock a;
	PGAlignedBlock b;

	memcpy(a.data, inherited, BLCKSZ);
	memcpy(b.data, own, BLCKSZ);
	/* who reads zeros of a map makes them an empty page, in a buffer that is not dirty for it */
	if (forknum != MAIN_FORKNUM && ab_page_is_zero(a.data))
		PageInit((Page) a.data, BLCKSZ, 0);
	PageSetLSN((Page) b.data, PageGetLSN((Page) a.data));
	if (forknum == MAIN_FORKNUM)
		return ab_page_only_hints_differ(a.data, b.data);
	((PageHeader) a.data)->pd_checksum = 0;
	((PageHeader) b.data)->pd_checksum = 0;
	return memcmp(a.data, b.data, BLCKSZ) == 0;
}

static void
compare_block(const Work *w, const Fork *fork, BlockNumber block)
{
	PGAlignedBlock own;
	PGAlignedBlock inherited;
	ForkNumber	forknum = fork->e->fork;

	if (ab_overlay_read(fork->branch, fork->f, fork->reln, block, own.data))
	{
		/* a damaged map is none, which whoever uses it finds out */
		if (forknum == MAIN_FORKNUM && !PageIsVerifiedExtended((Page) own.data, block, 0))
			raise_unequal(w, fork, block, "its checksum or its header is wrong");
		if (PageGetLSN((Page) own.data) <= w->begin)
			return;				/* was the branch's own before */

		/*
		 * Of a free space map buffers may have what no file has: where the next search
		 * begins, and what replay found out (MarkBufferDirtyHint() does not make a
		 * buffer dirty then).
		 */
		if (forknum == FSM_FORKNUM)
			return;
		read_inherited(w, fork->e, block, inherited.data);
		if (!same_page(forknum, own.data, inherited.data))
			raise_unequal(w, fork, block, "it differs from the inherited page");
		return;
	}
	read_inherited(w, fork->e, block, inherited.data);
	if (!ab_page_is_zero(inherited.data) &&
		(forknum == MAIN_FORKNUM ||
		 PageIsVerifiedExtended((Page) inherited.data, block, 0)))
		raise_unequal(w, fork, block, "it is all zeros");
}

static void
compare_all(const Work *w)
{
	for (uint32 i = 0; i < w->m->h->nforks; i++)
	{
		Fork		fork;

		if (!look_up(w, &w->m->forks[i], &fork))
			continue;
		if (ab_overlay_nblocks(fork.branch, fork.f, fork.reln) < fork.limit)
			raise_unequal(w, &fork, fork.limit - 1, "the file is too short for it");
		for (BlockNumber block = 0; block < fork.limit; block++)
		{
			CHECK_FOR_INTERRUPTS();
			compare_block(w, &fork, block);
			(void) look_up(w, fork.e, &fork);
		}
	}
}

/* ---- both ---- */

/*
 * Recovery that begins before the branch was created makes it anew, from its snapshot,
 * and without an origin it would remove what is there first.  That must not be this
 * server's crash recovery, for which not everything has to be in WAL (wal_level).
 */
static void
leave_creation_behind(const AbComplete *c)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(".", &crc_ok);

	if (!crc_ok || c->origin.incarnation.lsn >= control->checkPointCopy.redo)
		RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE | CHECKPOINT_WAIT);
	pfree(control);
}

static void
read_relmap(AbComplete *c)
{
	char	   *dir = GetDatabasePath(c->db, c->origin.spc);
	char	   *path = psprintf("%s/pg_filenode.map", dir);
	size_t		len;
	char	   *map = ab_file_read(path, &len);

	if (map == NULL || len != AB_RELMAP_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("relation mapping file \"%s\" has the wrong length", path)));
	memcpy(c->relmap, map, AB_RELMAP_SIZE);
}

void
ab_complete_files(Oid db, const char *name, AbComplete *c)
{
	Work		w = {.c = c, .name = name};

	memset(c, 0, sizeof(*c));
	c->db = db;
	if (!ab_storage_read_origin(db, &c->origin))
		elog(ERROR, "origin of branch database %u cannot be read", db);
	ab_dir_ensure(db, c->origin.spc);
	read_relmap(c);
	w.m = ab_manifest_acquire(c->origin.snapshot);
	PG_TRY();
	{
		FlushDatabaseBuffers(db);
		c->pages = count_pages(&w);
		check_room(&w);
		ab_complete_make_files(db, &c->origin, true);
		AB_FAILPOINT("detach-files-made");
		copy_all(&w);
		FlushDatabaseBuffers(db);
		AB_FAILPOINT("detach-copied");
		compare_all(&w);
	}
	PG_FINALLY();
	{
		ab_manifest_release(w.m);
	}
	PG_END_TRY();
	ab_complete_sync(db);
	AB_FAILPOINT("detach-synced");
	leave_creation_behind(c);
}

/*
 * Should a checkpoint complete between the two and the server crash then, it is a branch
 * here, with an own page wherever there is one, and on standbys a plain database with the
 * same pages; detaching it again makes no difference there.
 */
void
ab_complete_detach(const AbComplete *c)
{
	xl_ab_branch_detach rec = {0};

	AB_FAILPOINT("detach-committed");
	rec.incarnation = c->origin.incarnation;
	rec.db = c->db;
	rec.spc = c->origin.spc;
	XLogFlush(ab_wal_branch_detach(&rec, c->relmap));
	AB_FAILPOINT_NO_ERROR("detach-logged");

	/* what it says is known: after the record nothing is read that might fail */
	ab_storage_drop_known_origin(&c->origin);
}
