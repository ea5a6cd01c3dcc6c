/*
 * ab_smgr.c
 *	  The storage entry points: what the server calls instead of md's functions.
 *
 * Each ends in the md function of the same name.  For a relation of a plain
 * database, a temporary relation, or a fork that a branch does not inherit, it is
 * that function and nothing else.
 *
 * They run in every process: backends of any database, checkpointer, background
 * writer, startup.  No catalogs, no buffers, no heavyweight locks (rule 26).
 *
 *	create, exists, nblocks, read, write, extend, prefetch	may raise errors
 *	unlink		runs after commit: warns, never raises (rule 16)
 *	truncate	runs in a critical section: allocates nothing (rule 15)
 */
#include "ab_smgr.h"

#include <unistd.h>

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/lwlock.h"
#include "storage/md.h"

#include "ab_awaited.h"
#include "ab_capture.h"
#include "ab_caught.h"
#include "ab_dir.h"
#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_forknotes.h"
#include "ab_holes.h"
#include "ab_image.h"
#include "ab_journal.h"
#include "ab_kept.h"
#include "ab_layer.h"
#include "ab_origin.h"
#include "ab_originfile.h"
#include "ab_latesync.h"
#include "ab_overlay.h"
#include "ab_page.h"
#include "ab_parentfile.h"
#include "ab_recovery.h"
#include "ab_storagefiles.h"

/*
 * The fork if it is one that its branch inherits; NULL means: md alone.  A
 * dropped fork's number may be used again by the branch, as a plain one.
 */
static inline AbFork *
inherited_fork(RelFileNodeBackend rnode, ForkNumber fork, AbBranch **branch)
{
	AbFork	   *f;

	*branch = NULL;
	if (RelFileNodeBackendIsTemp(rnode))
		return NULL;
	*branch = ab_branch_lookup(rnode.node.dbNode);
	if (likely(*branch == NULL))
		return NULL;
	f = ab_fork_lookup(*branch, rnode.node, fork);
	return f->entry == NULL || f->dropped ? NULL : f;
}

/* Files that a snapshot may still need as they are; others no snapshot ever has. */
static bool
is_guarded(RelFileNodeBackend rnode)
{
	return !RelFileNodeBackendIsTemp(rnode) && OidIsValid(rnode.node.dbNode);
}

/*
 * Begin to change a block of a database's own file: the old page is saved if a
 * snapshot still sees it there, and none begins before end_change() (README.before_images,
 * E1 and E3).  An error in between gives the guard back.
 */
static void
begin_change(SMgrRelation reln, ForkNumber fork, BlockNumber block, const char *page)
{
	if (reln->smgr_rnode.node.spcNode == GLOBALTABLESPACE_OID && !PageIsNew((Page) page))
		ab_latesync_before_write();	/* O2 */
	if (!is_guarded(reln->smgr_rnode))
		return;
	ab_guard_enter(reln->smgr_rnode.node.dbNode);
	ab_capture_block(reln->smgr_rnode.node, fork, block);
}

static void
end_change(SMgrRelation reln)
{
	if (is_guarded(reln->smgr_rnode))
		ab_guard_leave(reln->smgr_rnode.node.dbNode);
}

/*
 * Of a plain database: a fork is about to change its length; end_resize() says that it has.
 * Between begin_change() and end_change(), or with the guard held otherwise.
 */
static inline uint64
begin_resize(SMgrRelation reln, ForkNumber fork, const AbBranch *branch)
{
	if (branch != NULL || !is_guarded(reln->smgr_rnode))
		return 0;
	return ab_forknotes_before(reln->smgr_rnode.node, fork);
}

static inline void
end_resize(SMgrRelation reln, ForkNumber fork, uint64 moment)
{
	ab_forknotes_after(reln->smgr_rnode.node, fork, moment);
}

/* md may raise an error when the file is longer already: the segment could not be synced. */
static pg_noinline void
extend_and_note(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer,
				bool skipFsync, uint64 moment)
{
	PG_TRY();
	{
		mdextend(reln, fork, block, buffer, skipFsync);
		AB_FAILPOINT("extended");
	}
	PG_CATCH();
	{
		end_resize(reln, fork, moment);
		PG_RE_THROW();
	}
	PG_END_TRY();
	end_resize(reln, fork, moment);
}

/* A file of a plain database is about to come, or has come. */
static void
note_new_file(SMgrRelation reln, const AbBranch *branch)
{
	Oid			db = reln->smgr_rnode.node.dbNode;

	if (branch != NULL || !is_guarded(reln->smgr_rnode))
		return;
	ab_guard_enter(db);
	(void) ab_forknotes_before(reln->smgr_rnode.node, InvalidForkNumber);
	ab_guard_leave(db);
}

/*
 * What this process, which is not a session of the branch, has for a damaged branch
 * goes nowhere: nobody can read it any more, and nothing else may fail for it (B2).
 */
static bool
is_discarded(RelFileNodeBackend rnode)
{
	return !RelFileNodeBackendIsTemp(rnode) &&
		unlikely(ab_branch_is_broken(rnode.node.dbNode));
}

/* Of a branch that passes for a plain database md may not find the file it expects. */
static void
prepare_plain(SMgrRelation reln, ForkNumber fork, BlockNumber block)
{
	if (unlikely(ab_recovery_files_are_ahead()) &&
		!RelFileNodeBackendIsTemp(reln->smgr_rnode) &&
		ab_branch_passes_for_plain(reln->smgr_rnode.node.dbNode))
		ab_overlay_lengthen(reln->smgr_rnode.node, fork, block);
}

void
ab_smgr_create(SMgrRelation reln, ForkNumber fork, bool isRedo)
{
	AbBranch   *b;

	if (inherited_fork(reln->smgr_rnode, fork, &b) == NULL)
	{
		if (isRedo && is_discarded(reln->smgr_rnode))
			return;
		/* not under the guard: md may wait for a lock whose holder waits for a checkpoint */
		note_new_file(reln, b);
		mdcreate(reln, fork, isRedo);
		note_new_file(reln, b);
		if (b != NULL && !isRedo && fork == MAIN_FORKNUM)
			ab_dir_note_new_file(reln->smgr_rnode.node.dbNode);
		return;
	}
	/* redo asks before every block it touches: the fork is there already (F12) */
	if (isRedo)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_FILE),
			 errmsg("file number %u still belongs to a relation this branch inherits",
					reln->smgr_rnode.node.relNode),
			 errhint("Repeat the command; it will be given another number.")));
}

bool
ab_smgr_exists(SMgrRelation reln, ForkNumber fork)
{
	AbBranch   *b;

	if (inherited_fork(reln->smgr_rnode, fork, &b) != NULL)
		return true;
	return mdexists(reln, fork);
}

/*
 * True if it is a relation of a branch; with the main fork, which goes first, its
 * tombstone is set.  Raises nothing: the transaction has committed (or aborted)
 * already.
 */
static bool
tombstone(RelFileNodeBackend rnode, ForkNumber fork)
{
	AbBeforeTry before = ab_before_try();
	volatile bool is_branch = false;

	PG_TRY();
	{
		AbBranch   *b = ab_branch_lookup(rnode.node.dbNode);

		is_branch = b != NULL;
		if (b != NULL && fork == MAIN_FORKNUM)
			ab_limit_drop_relation(b, rnode.node);
		AB_FAILPOINT_NO_ERROR("tombstone-set");
	}
	PG_CATCH();
	{
		ErrorData  *e;

		LWLockReleaseAll();		/* ours: who drops files holds none */
		e = ab_caught(&before);
		ereport(WARNING,
				(errcode(e->sqlerrcode),
				 errmsg("could not record that relation %u of branch database %u was dropped: %s",
						rnode.node.relNode, rnode.node.dbNode, e->message)));
		FreeErrorData(e);
	}
	PG_END_TRY();
	return is_branch;
}

/*
 * Has md a relation to unlink, or might it have one, in a tablespace that is not mounted?  In
 * recovery an unlogged one has its init fork only.
 */
static bool
has_own_files(RelFileNode rnode)
{
	static const ForkNumber forks[] = {MAIN_FORKNUM, INIT_FORKNUM};

	for (int i = 0; i < lengthof(forks); i++)
	{
		char		path[MAXPGPATH];

		ab_relation_path(path, rnode, forks[i], 0);
		if (access(path, F_OK) == 0 || errno != ENOENT)
			return true;
	}
	return !ab_storage_has_tablespace(rnode.spcNode);
}

/*
 * The note of what is kept goes before the tombstone: the journal puts pages back where there is
 * none, or a note (ab_journal.c).
 */
static void
unlink_or_keep(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo)
{
	bool		has_files = fork != MAIN_FORKNUM || has_own_files(rnode.node);
	bool		kept = ab_kept_begin_unlink(rnode.node, fork, has_files);

	PG_TRY();
	{
		bool		is_branch = tombstone(rnode, fork);

		if (is_branch && !has_files && !isRedo && !XLogIsNeeded())
			has_files = ab_overlay_hold_number(rnode.node);

		/*
		 * Without files of a branch's own md would still ask the checkpointer to remove the
		 * main fork later, when the number may have been given to another relation.
		 */
		if (!kept && (has_files || !is_branch))
			mdunlink(rnode, fork, isRedo);
	}
	PG_FINALLY();
	{
		ab_kept_end_unlink(rnode.node.dbNode);
	}
	PG_END_TRY();
}

void
ab_smgr_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo)
{
	if (RelFileNodeBackendIsTemp(rnode) || !OidIsValid(rnode.node.dbNode))
	{
		mdunlink(rnode, fork, isRedo);
		return;
	}
	AB_FAILPOINT_NO_ERROR("unlink-asked");
	unlink_or_keep(rnode, fork, isRedo);
}

void
ab_smgr_extend(SMgrRelation reln, ForkNumber fork, BlockNumber block,
			   char *buffer, bool skipFsync)
{
	AbBranch   *b;
	AbFork	   *f = inherited_fork(reln->smgr_rnode, fork, &b);
	uint64		moment;

	if (f == NULL && is_discarded(reln->smgr_rnode))
	{
		ab_branch_give_up(reln->smgr_rnode.node.dbNode);
		return;
	}
	begin_change(reln, fork, block, buffer);
	moment = begin_resize(reln, fork, b);
	if (f == NULL)
		prepare_plain(reln, fork, block);
	else
		ab_overlay_create(b, f, reln);
	if (unlikely(moment != 0))
		extend_and_note(reln, fork, block, buffer, skipFsync, moment);
	else
		mdextend(reln, fork, block, buffer, skipFsync);
	if (f != NULL && unlikely(block < f->limit))
		ab_holes_filled(reln->smgr_rnode.node, block);
	end_change(reln);
}

/* The own file exists.  May be asked ahead of a read: the answer may be out of date then. */
static inline bool
is_hole(AbBranch *b, AbFork *f, SMgrRelation reln, BlockNumber block)
{
	return f->key.fork == MAIN_FORKNUM &&
		ab_holes_known(b, reln->smgr_rnode.node, block);
}

static void
prefetch_inherited(AbBranch *b, AbFork *f, BlockNumber block)
{
	uint32		begun = ab_parentfile_begin();

	ab_snapshot_prefetch(ab_branch_manifest(b), f->entry, block);
	if (ab_branch_header(b)->db != MyDatabaseId)
		ab_parentfile_end(begun);
}

bool
ab_smgr_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber block)
{
	AbBranch   *b;
	AbFork	   *f = inherited_fork(reln->smgr_rnode, fork, &b);

	if (f == NULL)
		return mdprefetch(reln, fork, block);
	/* a block below the limit exists whatever files there are (F11) */
	if (block < f->limit)
	{
		if (ab_overlay_exists(b, f, reln) && !is_hole(b, f, reln, block))
			(void) mdprefetch(reln, fork, block);
		if (!ab_recovery_files_are_ahead())
			prefetch_inherited(b, f, block);
		return true;
	}
	if (!ab_overlay_exists(b, f, reln))
		return false;
	return mdprefetch(reln, fork, block);
}

/*
 * Recovery may have been further before, where the page was given up because the branch was
 * deleted or detached: then it does not matter what it has until then.  If it turns out
 * that it was not, the page is missing, and the branch is lost.
 */
static void
read_if_still_there(AbBranch *b, AbFork *f, BlockNumber block, char *page)
{
	AbBeforeTry before = ab_before_try();

	PG_TRY();
	{
		ab_snapshot_read(ab_branch_manifest(b), f->entry, block, page);
	}
	PG_CATCH();
	{
		ErrorData  *e = ab_caught_damage(&before);

		ereport(DEBUG1,
				(errcode(e->sqlerrcode), errmsg_internal("%s", e->message)));
		if (ab_recovery_note_gap(ab_branch_header(b)->db))
			ab_originfile_mark_lost(ab_branch_header(b)->db,
									ab_branch_header(b)->incarnation);
		MemSet(page, 0, BLCKSZ);
	}
	PG_END_TRY();
}

/* The page as the branch inherits it. */
static void
read_inherited(AbBranch *b, AbFork *f, BlockNumber block, char *page)
{
	uint32		begun = ab_parentfile_begin();

	if (unlikely(ab_recovery_files_are_ahead()))
		read_if_still_there(b, f, block, page);
	else
		ab_snapshot_read(ab_branch_manifest(b), f->entry, block, page);
	if (ab_branch_header(b)->db != MyDatabaseId)
		ab_parentfile_end(begun);
	if (block == 0 && f->key.fork == MAIN_FORKNUM)
		ab_page_settle(page, block);
}

/*
 * An inherited page that changed since the redo pointer would have its next
 * change logged as a delta, against a page that no WAL of this branch contains.
 * Log it now (I4).  So is one that changed, physically only, after the snapshot's
 * record: a standby may have captured it as it was at the record.  Only main forks:
 * FSM and VM may lose bits.
 */
static void
adopt(AbBranch *b, SMgrRelation reln, ForkNumber fork, BlockNumber block,
	  const char *page)
{
	static XLogRecPtr redo = InvalidXLogRecPtr; /* it only goes forward */
	XLogRecPtr	lsn = PageGetLSN((Page) page);
	XLogRecPtr	snapshot = ab_branch_manifest(b)->h->id.lsn;

	if (fork != MAIN_FORKNUM || lsn <= Min(redo, snapshot))
		return;
	redo = GetRedoRecPtr();
	if (lsn > Min(redo, snapshot) && ab_image_allowed())
		(void) ab_image_log(reln->smgr_rnode.node, fork, block, page);
}

/*
 * Is a page read for shared buffers?  Otherwise it is read past them (pg_prewarm's mode
 * "read", a relation that is copied whole), and they may have a newer one, of which WAL has
 * changes already: an image logged now would undo these in recovery.
 */
static inline bool
is_for_buffers(const char *page)
{
	return page >= BufferBlocks && page < BufferBlocks + (Size) NBuffers * BLCKSZ;
}

/*
 * Read the own page of a block below the limit; false if there is none.  in_hand: this
 * process reads or writes its buffer (H3).
 */
static bool
read_own(AbBranch *b, AbFork *f, SMgrRelation reln, BlockNumber block, char *page,
		 bool in_hand)
{
	if (!ab_overlay_exists(b, f, reln) || (in_hand && is_hole(b, f, reln, block)))
		return false;
	if (ab_overlay_read(b, f, reln, block, page))
		return true;
	if (f->key.fork == MAIN_FORKNUM)
		ab_holes_found_one(b, reln->smgr_rnode.node, block);
	return false;
}

/*
 * Is the inherited page not to be had yet, and what replay gets instead here (ab_awaited.c)?  A
 * map is the branch's own from now on, so that nothing of what it inherits comes back.
 */
static bool
is_awaited(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *page)
{
	if ((fork != MAIN_FORKNUM && fork != VISIBILITYMAP_FORKNUM) || !ab_awaited_here())
		return false;
	MemSet(page, 0, BLCKSZ);
	if (fork == MAIN_FORKNUM)
		ab_awaited_note(reln->smgr_rnode.node, block);
	else
	{
		PageInit((Page) page, BLCKSZ, 0);
		PageSetChecksumInplace((Page) page, block);
		ab_smgr_write(reln, fork, block, page, false);
	}
	return true;
}

/*
 * In the files of a standby's backup an own page may be there in part.  That all rows of an
 * inherited page are visible to all (heap2 VISIBLE) is set in it without an image; the standby
 * writes it when it likes, perhaps while it is copied; and the image that the primary logs
 * before its own first write may come after the backup's end.  But VISIBLE comes before that
 * (fill_hole()), and reads the page.  As long as it has the LSN of what is inherited, or none
 * yet, it is that page, but for hints and that flag.
 */
static void
take_whole(AbBranch *b, AbFork *f, BlockNumber block, char *page)
{
	PGAlignedBlock base;
	bool		visible = !PageIsNew((Page) page) && PageIsAllVisible((Page) page);

	if (f->key.fork != MAIN_FORKNUM || !AmStartupProcess() ||
		ab_recovery_files_are_mixed())
		return;
	read_inherited(b, f, block, base.data);
	if (PageIsNew((Page) base.data) ||
		PageGetLSN((Page) page) > PageGetLSN((Page) base.data))
		return;
	memcpy(page, base.data, BLCKSZ);
	if (visible)
		PageSetAllVisible((Page) page);
	PageSetChecksumInplace((Page) page, block);
}

pg_attribute_hot void
ab_smgr_read(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer)
{
	AbBranch   *b;
	AbFork	   *f = inherited_fork(reln->smgr_rnode, fork, &b);
	bool		for_buffers;

	if (f == NULL || block >= f->limit)
	{
		if (f == NULL && is_discarded(reln->smgr_rnode))
			ab_branch_refuse_to_read(reln->smgr_rnode.node.dbNode);
		mdread(reln, fork, block, buffer);
		return;
	}
	for_buffers = is_for_buffers(buffer);
	if (read_own(b, f, reln, block, buffer, for_buffers))
	{
		if (unlikely(ab_recovery_files_are_ahead()) && for_buffers)
			take_whole(b, f, block, buffer);
		return;
	}
	if (unlikely(ab_recovery_files_are_ahead()) && for_buffers &&
		is_awaited(reln, fork, block, buffer))
		return;
	read_inherited(b, f, block, buffer);
	if (for_buffers)
		adopt(b, reln, fork, block, buffer);
}

/*
 * The own page that was a hole.  A WAL record changed it: then its image is in WAL (I4),
 * unless the page was read during recovery, when it could not be adopted, and promotion has
 * made the record a delta.  It is too late for an image now: the delta is replayed first.
 */
static void
fill_hole(SMgrRelation reln, ForkNumber fork, BlockNumber block, XLogRecPtr base_lsn,
		  char *page, bool skipFsync)
{
	RelFileNode rnode = reln->smgr_rnode.node;
	bool		logged = PageGetLSN((Page) page) > base_lsn;

	if (logged && !ab_image_was_skipped(base_lsn))
		mdwrite(reln, fork, block, page, skipFsync);
	else if (!logged && ab_image_allowed())
	{
		XLogFlush(ab_image_log(rnode, fork, block, page));
		AB_FAILPOINT("first-write-logged");
		mdwrite(reln, fork, block, page, skipFsync);
	}
	else
	{
		/*
		 * The journal covers this write; the image, where possible, later ones.
		 * Not of a sequence: its records are whole pages, and ahead of this one.
		 */
		if (ab_image_allowed() && !ab_page_is_sequence(page))
			XLogFlush(ab_image_log(rnode, fork, block, page));
		/* who copies this server's files replays them to here (take_whole()) */
		if (RecoveryInProgress())
			XLogFlush(GetCurrentReplayRecPtr(NULL));
		ab_journal_write(rnode, fork, block, page);
		AB_FAILPOINT_NO_ERROR("journal-written");
		mdwrite(reln, fork, block, page, skipFsync);
		AB_FAILPOINT_NO_ERROR("journal-used");
		ab_journal_release();
	}
}

/*
 * First write of a page that is still inherited.  base is the inherited page.
 * The page is copied first: others may set hint bits in it while we look.
 */
static void
first_write(AbBranch *b, AbFork *f, SMgrRelation reln, BlockNumber block,
			const char *base, const char *buffer, bool skipFsync)
{
	XLogRecPtr	base_lsn = PageGetLSN((Page) base);
	PGAlignedBlock copy;

	memcpy(copy.data, buffer, BLCKSZ);
	if (PageGetLSN((Page) copy.data) <= base_lsn &&
		ab_page_only_hints_differ(base, copy.data))
		return;

	ab_overlay_create(b, f, reln);
	PG_TRY();
	{
		fill_hole(reln, f->key.fork, block, base_lsn, copy.data, skipFsync);
	}
	PG_FINALLY();
	{
		/* a write that failed may have filled a part, and is no first write again (H1) */
		ab_holes_filled(reln->smgr_rnode.node, block);
	}
	PG_END_TRY();
}

void
ab_smgr_write(SMgrRelation reln, ForkNumber fork, BlockNumber block,
			  char *buffer, bool skipFsync)
{
	AbBranch   *b;
	AbFork	   *f = inherited_fork(reln->smgr_rnode, fork, &b);
	PGAlignedBlock base;

	if (f == NULL && is_discarded(reln->smgr_rnode))
	{
		ab_branch_give_up(reln->smgr_rnode.node.dbNode);
		return;
	}
	begin_change(reln, fork, block, buffer);
	if (f == NULL)
		prepare_plain(reln, fork, block + 1);
	else if (block >= f->limit || fork == FSM_FORKNUM || fork == VISIBILITYMAP_FORKNUM)
		ab_overlay_create(b, f, reln);
	else if (!read_own(b, f, reln, block, base.data, true))
	{
		read_inherited(b, f, block, base.data);
		first_write(b, f, reln, block, base.data, buffer, skipFsync);
		end_change(reln);
		return;
	}
	mdwrite(reln, fork, block, buffer, skipFsync);
	end_change(reln);
}

static pg_noinline pg_attribute_hot BlockNumber
nblocks_unless_plain(SMgrRelation reln, ForkNumber fork)
{
	AbBranch   *b;
	AbFork	   *f = inherited_fork(reln->smgr_rnode, fork, &b);
	BlockNumber own;

	if (f == NULL)
		return mdnblocks(reln, fork);
	/* whoever truncates asks for the size first, outside its critical section */
	if (f->limit > 0)
		ab_limit_reserve(b);
	own = ab_overlay_nblocks(b, f, reln);
	return Max(own, f->limit);
}

/* The planner asks for the size of every table and index, with every query. */
pg_attribute_hot BlockNumber
ab_smgr_nblocks(SMgrRelation reln, ForkNumber fork)
{
	if (ab_database_is_known_plain(reln->smgr_rnode.node.dbNode))
		return mdnblocks(reln, fork);
	return nblocks_unless_plain(reln, fork);
}

void
ab_smgr_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_blocks,
				 BlockNumber nblocks)
{
	AbBranch   *b;
	AbFork	   *f = inherited_fork(reln->smgr_rnode, fork, &b);
	uint64		moment = 0;

	if (is_guarded(reln->smgr_rnode))
	{
		ab_guard_enter(reln->smgr_rnode.node.dbNode);
		moment = begin_resize(reln, fork, b);
		ab_capture_tail(reln->smgr_rnode.node, fork, nblocks);
		AB_FAILPOINT_NO_ERROR("truncate-captured");
	}
	if (f == NULL)
		mdtruncate(reln, fork, old_blocks, nblocks);
	else
	{
		/* the limit first: a crash in between must not bring cut pages back (F20) */
		ab_limit_lower(b, reln->smgr_rnode.node, fork, nblocks);
		AB_FAILPOINT_NO_ERROR("truncate-limit-lowered");
		ab_overlay_truncate(b, f, reln, old_blocks, nblocks);
	}
	end_resize(reln, fork, moment);
	end_change(reln);
}
