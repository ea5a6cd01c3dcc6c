/*
 * ab_journal.c
 *	  Double-write journal: first overlay writes that WAL does not cover and that
 *	  cannot be logged, because the server is recovering or shutting down.
 *
 * Such a write goes into a hole of the own file; if the power fails in the middle,
 * the page is half zeros and nothing in WAL mends it.  So it is made durable here
 * first, and put back at server start.
 *
 * File: JOURNAL_SLOTS slots of a 512-byte header and a page.  Writers hold the
 * journal lock from the slot's write to the end of their own file's write; when all
 * slots are used, the own files they name are synced and the slots start over.  A slot
 * counts until the next checkpoint.
 */
#include "ab_journal.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xlog.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/bufpage.h"
#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_keptnotes.h"
#include "ab_origin.h"
#include "ab_originfile.h"
#include "ab_overlay.h"
#include "ab_parentfile.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"

#define JOURNAL_MAGIC	0x4142444A	/* "ABDJ" */
#define JOURNAL_SLOTS	64
#define JOURNAL_HEADER	512

typedef struct JournalSlot
{
	union
	{
		struct
		{
			uint32		magic;
			pg_crc32c	crc;	/* of the slot, this field taken as 0 */
			AbSnapId	incarnation;
			XLogRecPtr	redo;	/* redo pointer when it was written */
			RelFileNode rnode;
			int32		fork;
			BlockNumber block;
		}			h;
		char		padding[JOURNAL_HEADER];
	};
	PGAlignedBlock page;
} JournalSlot;

static pg_crc32c
slot_crc(const JournalSlot *s)
{
	return ab_crc_without(s, sizeof(*s), offsetof(JournalSlot, h.crc));
}

static bool
slot_is_valid(const JournalSlot *s)
{
	return s->h.magic == JOURNAL_MAGIC && s->h.crc == slot_crc(s);
}

static void
journal_error(int elevel, const char *what)
{
	ereport(elevel,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", what, AB_JOURNAL_FILE)));
}

static int
open_segment(const JournalSlot *s)
{
	char		path[MAXPGPATH];

	ab_relation_path(path, s->h.rnode, s->h.fork, s->h.block / RELSEG_SIZE);
	return BasicOpenFile(path, O_RDWR | PG_BINARY);
}

/* Sync the own files that the slots name; a file that is gone needs nothing. */
static void
sync_named_files(int journal)
{
	JournalSlot s;

	for (int i = 0; i < JOURNAL_SLOTS; i++)
	{
		int			fd;

		if (pg_pread(journal, &s, sizeof(s), (off_t) i * sizeof(s)) != sizeof(s) ||
			!slot_is_valid(&s))
			continue;
		fd = open_segment(&s);
		if (fd < 0 && errno == ENOENT)
			continue;
		if (fd < 0)
		{
			int			save_errno = errno;

			close(journal);
			errno = save_errno;
			journal_error(ERROR, "open what is named in");
		}
		if (pg_fsync(fd) != 0)
		{
			close(fd);
			close(journal);
			journal_error(data_sync_elevel(ERROR), "sync what is named in");
		}
		close(fd);
	}
}

void
ab_journal_write(RelFileNode rnode, ForkNumber fork, BlockNumber block,
				 const char *page)
{
	JournalSlot s;
	AbOriginHeader origin;
	int			fd;

	if (!ab_origin_read(rnode.dbNode, &origin))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("database %u is not a branch any more", rnode.dbNode)));
	memset(&s, 0, sizeof(s));
	s.h.magic = JOURNAL_MAGIC;
	s.h.incarnation = origin.incarnation;
	s.h.redo = GetRedoRecPtr();
	s.h.rnode = rnode;
	s.h.fork = fork;
	s.h.block = block;
	memcpy(s.page.data, page, BLCKSZ);
	s.h.crc = slot_crc(&s);

	LWLockAcquire(ab_shared->journal_lock, LW_EXCLUSIVE);
	fd = BasicOpenFile(AB_JOURNAL_FILE, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
		journal_error(ERROR, "open");
	if (ab_shared->journal_next == JOURNAL_SLOTS)
	{
		sync_named_files(fd);
		ab_shared->journal_next = 0;
	}
	if (pg_pwrite(fd, &s, sizeof(s),
				  (off_t) ab_shared->journal_next * sizeof(s)) != sizeof(s) ||
		pg_fdatasync(fd) != 0)
	{
		int			save_errno = errno ? errno : ENOSPC;

		close(fd);
		errno = save_errno;
		journal_error(ERROR, "write");
	}
	close(fd);
	ab_shared->journal_next++;
}

void
ab_journal_release(void)
{
	LWLockRelease(ab_shared->journal_lock);
}

/* Was the relation dropped, and are its files kept as they were, for snapshots of the branch? */
static bool
is_kept(const RelFileNode *rnode)
{
	int			n;
	AbKeptRelation *kept = ab_keptnotes_read(rnode->dbNode, &n);
	bool		is = ab_keptnotes_have(kept, n, (AbKeptRelation) {rnode->spcNode, rnode->relNode});

	pfree(kept);
	return is;
}

/*
 * Does the block still belong to what the slot was written for?  The journal serves
 * blocks below the limit only; one that was cut off or dropped since may be there
 * again with other contents, or as zeros whose WAL did not survive.  Dropped and kept, it is
 * the same block still, and replay does not write it whole either.
 */
static bool
slot_is_current(const JournalSlot *s)
{
	AbOriginHeader header;
	AbOriginImage origin;
	bool		current;

	/* a damaged origin: nobody reads that branch any more */
	if (!ab_storage_read_origin(s->h.rnode.dbNode, &header) ||
		!ab_originfile_load(s->h.rnode.dbNode, &origin))
		return false;
	current = AbSnapIdEquals(origin.header.incarnation, s->h.incarnation);
	for (int i = 0; i < origin.nslots && current; i++)
	{
		const AbLimitSlot *l = &origin.slots[i];

		if (l->rel == s->h.rnode.relNode && l->spc == s->h.rnode.spcNode &&
			((l->fork == AB_ALL_FORKS && !is_kept(&s->h.rnode)) ||
			 (l->fork == s->h.fork && s->h.block >= l->limit)))
			current = false;
	}
	ab_originfile_free(&origin);
	return current;
}

/*
 * Put one page back if the own file has it torn, or ends in it.  A page with
 * another LSN was written again later, under WAL's protection: left alone.  So is one
 * behind the end, which is inherited still: WAL does to it again what was done.
 */
static void
mend(const JournalSlot *s)
{
	PGAlignedBlock now;
	off_t		offset = (off_t) (s->h.block % RELSEG_SIZE) * BLCKSZ;
	XLogRecPtr	lsn;
	ssize_t		got;
	int			fd;

	if (!slot_is_current(s))
		return;
	fd = open_segment(s);
	if (fd < 0)
		return;
	got = pg_pread(fd, now.data, BLCKSZ, offset);
	if (got > 0)
	{
		memset(now.data + got, 0, BLCKSZ - got);
		lsn = PageGetLSN((Page) now.data);
		if ((lsn == InvalidXLogRecPtr || lsn == PageGetLSN((Page) s->page.data)) &&
			memcmp(now.data, s->page.data, BLCKSZ) != 0)
		{
			if (pg_pwrite(fd, s->page.data, BLCKSZ, offset) != BLCKSZ ||
				pg_fsync(fd) != 0)
			{
				close(fd);
				journal_error(ERROR, "apply");
			}
			ereport(LOG,
					(errmsg("restored block %u of relation %u of branch database %u from the journal",
							s->h.block, s->h.rnode.relNode, s->h.rnode.dbNode)));
		}
	}
	close(fd);
}

/*
 * A slot that is older than the last checkpoint has done its duty: that checkpoint has
 * synced the own file, and what changed the page since, perhaps without moving its
 * LSN, is in WAL or was journalled anew.
 */
void
ab_journal_recover(XLogRecPtr checkpoint_redo)
{
	JournalSlot s;
	int			fd = BasicOpenFile(AB_JOURNAL_FILE, O_RDWR | PG_BINARY);

	if (fd < 0)
	{
		if (errno != ENOENT)
			journal_error(ERROR, "open");
		return;
	}
	for (int i = 0; i < JOURNAL_SLOTS; i++)
		if (pg_pread(fd, &s, sizeof(s), (off_t) i * sizeof(s)) == sizeof(s) &&
			slot_is_valid(&s) && s.h.redo >= checkpoint_redo)
			mend(&s);
	AB_FAILPOINT_NO_ERROR("start-journal-applied");
	if (ftruncate(fd, 0) < 0 || pg_fsync(fd) != 0)
		journal_error(ERROR, "empty");
	close(fd);
	ab_shared->journal_next = 0;
}
