/*
 * ab_kept.c
 *	  Files of dropped relations that snapshots still need.
 *
 * A dropped relation's files are left alone: not moved, so that a running base backup
 * finds them; not cut, so that branches can read them; their number stays taken.  What
 * was left is noted (ab_keptnotes.h), so that the files can be unlinked when the last
 * snapshot that has them goes.
 *
 * Noting runs where md's unlink runs: after commit, in any process, in redo.  It raises
 * nothing; if it fails, the snapshots are poisoned and the files go.  A crash between
 * commit and note: redo of the commit record drops the relation again.  In a branch the
 * tombstone comes after the note (ab_smgr.c).
 *
 * A note goes before the files, since it must not outlive the number.  For a crash in
 * between, what goes is listed in a file "going" beside the notes, and one of its files has
 * a second name until all is done: by that server start knows the file from one of a
 * relation that was given the number since.
 */
#include "ab_kept.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "postmaster/bgwriter.h"
#include "storage/fd.h"
#include "storage/md.h"
#include "utils/timestamp.h"

#include "ab_capture.h"
#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_forknotes.h"
#include "ab_images.h"
#include "ab_keptnotes.h"
#include "ab_parentfile.h"
#include "ab_recovery.h"
#include "ab_snaptable.h"
#include "ab_wal.h"

/* ---- keeping ---- */

/* Does a living snapshot need the relation?  The guard is held. */
static bool
is_needed(RelFileNode rnode, ForkNumber fork)
{
	AbSnapId	live;
	bool		known;
	bool		needed;

	if (likely(!ab_epoch_live(rnode.dbNode, &live)))
		return false;

	/* whatever older snapshots have of it the newest has, too: it was there till now */
	needed = ab_epoch_has_relation(live, rnode.spcNode, rnode.relNode, &known);

	/*
	 * A map alone, in a branch: there is nothing to note, and the number is free.  What the
	 * branch inherits instead may say of blocks that were cut off that all is visible.
	 */
	if (needed && (fork == FSM_FORKNUM || fork == VISIBILITYMAP_FORKNUM))
	{
		char		path[MAXPGPATH];

		ab_relation_path(path, rnode, MAIN_FORKNUM, 0);
		needed = access(path, F_OK) == 0;
		if (!needed)
			ab_capture_tail(rnode, fork, 0);
	}
	if (needed && fork == MAIN_FORKNUM)
	{
		LWLockAcquire(ab_capture_lock(rnode.dbNode), LW_EXCLUSIVE);
		AB_FAILPOINT_NO_ERROR("kept-note");
		known = ab_keptnotes_add(rnode.dbNode, rnode.spcNode, rnode.relNode);
		LWLockRelease(ab_capture_lock(rnode.dbNode));
	}
	AB_FAILPOINT_NO_ERROR("kept-noted");
	if (known)
		return needed;
	ab_epoch_poison(rnode.dbNode, live, 0, errno);
	return false;
}

/*
 * Does a fork stay?  What is decided of the main fork, which goes first, the others follow: a
 * snapshot may begin in between, and would keep them, but there would be no note of that.
 */
static bool
is_kept(RelFileNode rnode, ForkNumber fork)
{
	static RelFileNode decided;
	static bool decision;

	if (fork == MAIN_FORKNUM)
	{
		decision = is_needed(rnode, fork);
		decided = rnode;
	}
	else if (!RelFileNodeEquals(decided, rnode))
		return is_needed(rnode, fork);
	if (fork == MAX_FORKNUM)
		decided.relNode = InvalidOid;
	return decision;
}

bool
ab_kept_begin_unlink(RelFileNode rnode, ForkNumber fork, bool has_files)
{
	Oid			db = rnode.dbNode;
	bool		kept;

	pg_atomic_fetch_add_u32(&ab_shared->unlinks_begun[db % AB_GUARDS], 1);
	ab_guard_enter(db);
	(void) ab_forknotes_before(rnode, InvalidForkNumber);
	kept = has_files && is_kept(rnode, fork);
	ab_guard_leave(db);
	return kept;
}

void
ab_kept_end_unlink(Oid db)
{
	pg_atomic_fetch_add_u32(&ab_shared->unlinks_ended[db % AB_GUARDS], 1);
}

bool
ab_kept_no_unlinks(Oid db, TimestampTz deadline, uint32 *mark)
{
	for (;;)
	{
		uint32		ended = pg_atomic_read_u32(&ab_shared->unlinks_ended[db % AB_GUARDS]);

		pg_memory_barrier();
		if (pg_atomic_read_u32(&ab_shared->unlinks_begun[db % AB_GUARDS]) == ended)
		{
			*mark = ended;
			return true;
		}
		CHECK_FOR_INTERRUPTS();
		if (GetCurrentTimestamp() >= deadline)
			return false;
		pg_usleep(100);
	}
}

bool
ab_kept_still_no_unlinks(Oid db, uint32 mark)
{
	return pg_atomic_read_u32(&ab_shared->unlinks_begun[db % AB_GUARDS]) == mark;
}

/* ---- giving back ---- */

AbKeptRelation *
ab_kept_relations(Oid db, int *n)
{
	AbKeptRelation *kept;

	LWLockAcquire(ab_capture_lock(db), LW_SHARED);
	kept = ab_keptnotes_read(db, n);
	LWLockRelease(ab_capture_lock(db));
	return kept;
}

/*
 * Strike the notes that a snapshot needs off a list.  One whose manifest cannot be read
 * needs them all.
 */
static void
strike_needed(AbSnapId id, const AbKeptRelation *notes, bool *needed, int n)
{
	char	   *path = ab_snapshot_path(id, ".manifest");
	char	   *image;
	size_t		len;
	AbManifest	m;
	bool		readable;

	image = ab_file_read(path, &len);
	if (image == NULL)
		image = ab_file_read(ab_snapshot_path(id, ".pending"), &len);
	readable = image != NULL && ab_manifest_layout(image, len, &m);
	for (int i = 0; i < n; i++)
		if (!needed[i] && (!readable || ab_manifest_has_relation(&m, notes[i].spc, notes[i].rel)))
			needed[i] = true;
	if (image)
		pfree(image);
	pfree(path);
}

static bool *
needed_notes(Oid db, List *leaving, const AbKeptRelation *notes, int n)
{
	bool	   *needed = palloc0(sizeof(bool) * (n + 1));
	int			nslots;
	AbSnapSlot *slots = ab_snaptable_all(&nslots);

	for (int i = 0; i < nslots; i++)
		if (slots[i].live && slots[i].source_db == db &&
			!ab_snapid_in(leaving, slots[i].id))
			strike_needed(slots[i].id, notes, needed, n);
	pfree(slots);
	return needed;
}

static int64
relation_bytes(Oid db, const AbKeptRelation *n)
{
	RelFileNode rnode = {n->spc, db, n->rel};
	int64		bytes = 0;

	for (int fork = 0; fork <= MAX_FORKNUM; fork++)
	{
		for (BlockNumber segno = 0;; segno++)
		{
			char		path[MAXPGPATH];
			struct stat st;

			ab_relation_path(path, rnode, fork, segno);
			if (stat(path, &st) < 0)
				break;
			bytes += (int64) st.st_blocks * 512;
		}
	}
	return bytes;
}

static void
going_path(char path[MAXPGPATH], Oid db)
{
	snprintf(path, MAXPGPATH, "%s/%u/going", AB_IMAGE_DIR, db);
}

/*
 * The file that tells a relation: the first of the main fork, or where a standby has none, of
 * the init fork.
 */
static void
telling_path(char path[MAXPGPATH], Oid db, const AbKeptRelation *n)
{
	RelFileNode rnode = {n->spc, db, n->rel};

	ab_relation_path(path, rnode, MAIN_FORKNUM, 0);
	if (access(path, F_OK) < 0 && errno == ENOENT)
		ab_relation_path(path, rnode, INIT_FORKNUM, 0);
}

/* Second name of that; backups and pg_checksums pass over it. */
static void
second_path(char path[MAXPGPATH], Oid db, const AbKeptRelation *n)
{
	RelFileNode rnode = {n->spc, db, n->rel};
	char		main[MAXPGPATH];

	ab_relation_path(main, rnode, MAIN_FORKNUM, 0);
	get_parent_directory(main);
	snprintf(path, MAXPGPATH, "%s/" PG_TEMP_FILE_PREFIX "_ab.kept.%u", main, n->rel);
}

/*
 * Names that came or went in the relations' directories are durable.  They may be in other file
 * systems than agent_branch, or each other.
 */
static void
sync_directories(Oid db, const AbKeptRelation *notes, int n)
{
	char		path[MAXPGPATH];

	for (int i = 0; i < n; i++)
	{
		if (i > 0 && notes[i].spc == notes[i - 1].spc)
			continue;
		second_path(path, db, &notes[i]);
		get_parent_directory(path);
		if (ab_file_exists(path))
			(void) fsync_fname_ext(path, true, true, LOG);
	}
}

/* From here to finish_going(), server start can do what is left. */
static void
begin_going(Oid db, const AbKeptRelation *notes, int n)
{
	char		going[MAXPGPATH];

	going_path(going, db);
	ab_keptnotes_write(going, notes, n);
	for (int i = 0; i < n; i++)
	{
		char		path[MAXPGPATH];
		char		second[MAXPGPATH];

		telling_path(path, db, &notes[i]);
		second_path(second, db, &notes[i]);
		if (link(path, second) < 0 && errno != ENOENT && errno != EEXIST)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not link file \"%s\" to \"%s\": %m", path, second)));
	}
	sync_directories(db, notes, n);
}

static void
finish_going(Oid db, const AbKeptRelation *notes, int n)
{
	char		path[MAXPGPATH];

	/* what comes back has its second name as long as the list is there */
	sync_directories(db, notes, n);
	for (int i = 0; i < n; i++)
	{
		second_path(path, db, &notes[i]);
		(void) unlink(path);
	}
	sync_directories(db, notes, n);
	going_path(path, db);
	(void) unlink(path);
}

static pg_noinline void
unlink_noted(Oid db, const AbKeptRelation *notes, int n)
{
	ab_keptnotes_forget(db, notes, n);
	AB_FAILPOINT_NO_ERROR("kept-forgotten");
	for (int i = 0; i < n; i++)
	{
		RelFileNodeBackend rnode = {{notes[i].spc, db, notes[i].rel}, InvalidBackendId};
		char		path[MAXPGPATH];

		/* not if the whole database is gone */
		telling_path(path, db, &notes[i]);
		if (access(path, F_OK) < 0)
			continue;
		/* what tells it goes last */
		for (ForkNumber fork = MAX_FORKNUM; fork >= MAIN_FORKNUM; fork--)
			mdunlink(rnode, fork, true);
	}
	AB_FAILPOINT_NO_ERROR("kept-unlinked");
}

/*
 * A file without a note is a relation's, to who lists files for a snapshot: he waits until it is
 * gone, or begins anew.
 */
static void
unlink_kept(Oid db, const AbKeptRelation *notes, int n)
{
	/* a warning would let the session be ended, and the end would not be counted */
	HOLD_INTERRUPTS();
	pg_atomic_fetch_add_u32(&ab_shared->unlinks_begun[db % AB_GUARDS], 1);
	PG_TRY();
	{
		unlink_noted(db, notes, n);
	}
	PG_CATCH();
	{
		pg_atomic_fetch_add_u32(&ab_shared->unlinks_ended[db % AB_GUARDS], 1);
		PG_RE_THROW();
	}
	PG_END_TRY();
	pg_atomic_fetch_add_u32(&ab_shared->unlinks_ended[db % AB_GUARDS], 1);
	RESUME_INTERRUPTS();
}

int64
ab_kept_sweep(Oid db, List *leaving, bool dry_run)
{
	int64		bytes = 0;
	int			ngone = 0;
	int			n;
	AbKeptRelation *notes;
	bool	   *needed;

	notes = ab_kept_relations(db, &n);
	if (n == 0)
		return 0;
	/* in this order: who has a relation that was noted is in the table since before */
	needed = needed_notes(db, leaving, notes, n);
	for (int i = 0; i < n; i++)
	{
		if (needed[i])
			continue;
		bytes += relation_bytes(db, &notes[i]);
		notes[ngone++] = notes[i];
	}
	if (ngone == 0 || dry_run)
		return bytes;

	/*
	 * md would leave the main forks to the next checkpoint, lest recovery repeats the drop
	 * when another relation has the number; and a crash before that would leave them for
	 * ever.  So the checkpoint comes first.
	 */
	if (!InRecovery)
		RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE | CHECKPOINT_WAIT);
	AB_FAILPOINT("kept-checkpoint");

	/*
	 * A base backup may have the files, and no notes.  (One that begins between here and the
	 * unlinking keeps them.)
	 */
	if (!InRecovery)
		XLogFlush(ab_wal_unkeep(db, notes, ngone));

	/* first: a note must not outlive the number, which another relation may get then */
	begin_going(db, notes, ngone);
	AB_FAILPOINT("kept-going");
	unlink_kept(db, notes, ngone);
	AB_FAILPOINT_NO_ERROR("kept-gone");
	finish_going(db, notes, ngone);
	return bytes;
}

/* Copied notes may be of another time than copied files: neither is asked here. */
void
ab_kept_redo(Oid db, const AbKeptRelation *gone, int n)
{
	unlink_kept(db, gone, n);
}

/*
 * The primary kept no files of that relation, since its snapshots were lost before it was
 * dropped, and has given the number to another one.  So they are lost here as well: what is left
 * would be read as the new relation's, and what is noted would take that one's files away.
 */
void
ab_kept_number_given(RelFileNode rnode, XLogRecPtr end)
{
	AbKeptRelation one = {rnode.spcNode, rnode.relNode};
	Oid			db = rnode.dbNode;
	AbKeptRelation *notes;
	AbSnapId	live;
	int			n;

	if (!ab_snaptable_has_live(db) || !ab_recovery_is_consistent_at(end))
		return;
	notes = ab_kept_relations(db, &n);
	if (ab_keptnotes_have(notes, n, one))
	{
		XLogFlush(end);			/* the files go for good: moves minRecoveryPoint */
		ab_guard_enter(db);
		if (ab_epoch_live(db, &live))
			ab_epoch_poison(db, live, 0, EEXIST);
		ab_guard_leave(db);
		begin_going(db, &one, 1);
		unlink_kept(db, &one, 1);
		finish_going(db, &one, 1);
	}
	pfree(notes);
}

/* ---- after a crash ---- */

/* All segments of all forks; of the main fork the first goes last. */
static void
unlink_all(Oid db, const AbKeptRelation *n)
{
	RelFileNode rnode = {n->spc, db, n->rel};
	char		path[MAXPGPATH];

	for (ForkNumber fork = MAX_FORKNUM; fork >= MAIN_FORKNUM; fork--)
	{
		for (BlockNumber segno = 1;; segno++)
		{
			ab_relation_path(path, rnode, fork, segno);
			if (unlink(path) < 0)
				break;
		}
		ab_relation_path(path, rnode, fork, 0);
		(void) unlink(path);
	}
}

/*
 * Is the file under the relation's name the one that was to go, or is there none?  If
 * it was given up before, it may be of another relation.
 */
static bool
is_going(Oid db, const AbKeptRelation *n)
{
	char		path[MAXPGPATH];
	struct stat now;
	struct stat second;

	second_path(path, db, n);
	if (stat(path, &second) < 0)
		return false;
	telling_path(path, db, n);
	if (stat(path, &now) < 0)
		return errno == ENOENT;
	return now.st_dev == second.st_dev && now.st_ino == second.st_ino;
}

void
ab_kept_finish(Oid db)
{
	char		path[MAXPGPATH];
	AbKeptRelation *notes;
	AbKeptRelation *going;
	int			nnotes;
	int			n;

	going_path(path, db);
	if (!ab_file_exists(path))
		return;
	going = ab_keptnotes_read_file(path, &n);
	notes = ab_keptnotes_read(db, &nnotes);
	for (int i = 0; i < n; i++)
	{
		/* one that is noted still is for the next sweep */
		if (!ab_keptnotes_have(notes, nnotes, going[i]) && is_going(db, &going[i]))
			unlink_all(db, &going[i]);
	}
	if (n > 0)
		finish_going(db, going, n);
	else
		(void) unlink(path);
}

/* The living snapshots that need a note: how many, and which was the last. */
static int
count_users(bool **needs, int nliving, int note, int *last)
{
	int			users = 0;

	for (int i = 0; i < nliving; i++)
	{
		if (!needs[i][note])
			continue;
		users++;
		*last = i;
	}
	return users;
}

void
ab_kept_usage(Oid db, const AbSnapId *living, int nliving, int64 *needed, int64 *alone)
{
	bool	  **needs = palloc(sizeof(bool *) * Max(nliving, 1));
	AbKeptRelation *notes;
	int			n;

	MemSet(needed, 0, sizeof(int64) * nliving);
	MemSet(alone, 0, sizeof(int64) * nliving);
	notes = ab_kept_relations(db, &n);
	if (n == 0)
		return;
	for (int i = 0; i < nliving; i++)
	{
		CHECK_FOR_INTERRUPTS();
		needs[i] = palloc0(sizeof(bool) * n);
		strike_needed(living[i], notes, needs[i], n);
	}
	for (int k = 0; k < n; k++)
	{
		int64		bytes = relation_bytes(db, &notes[k]);
		int			last = 0;

		if (count_users(needs, nliving, k, &last) == 1)
			alone[last] += bytes;
		for (int i = 0; i < nliving; i++)
			if (needs[i][k])
				needed[i] += bytes;
	}
}
