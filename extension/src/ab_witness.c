/*
 * ab_witness.c
 *	  The traces that this library leaves of its runs, so that it can tell at the next
 *	  start whether a server ran without it in between; and what follows if so (rule 37).
 *
 * A server without the library overwrites pages of a database that a live snapshot
 * still sees, and saves nothing.  Nothing on the pages shows it.  So we leave
 *
 *	  agent_branch/witness	what was seen last: CLEAN, STARTING or RUNNING
 *	  two tripwires			empty, where any server cleans up when it starts
 *	  WITNESS records		in WAL, which a server without us cannot replay
 *
 * and ab_trust.c draws the conclusions, and says why they hold.
 *
 *	  the postmaster, before the startup process: sees that the directories are there,
 *							judges, poisons, writes STARTING
 *	  the startup process, when replay begins: tripwires, RUNNING
 *	  the keeper, when it starts: the same, if there was nothing to replay
 *	  the keeper, after each new redo pointer: a WITNESS record
 *	  the postmaster, at exit after a shutdown: CLEAN
 *
 * In that order, so no lock protects the file.  Each step is durable before the next;
 * a crash between two leaves a state that ab_trust.c knows.  The witness is kept
 * whether there are live snapshots or not, since there may be soon.
 */
#include "ab_witness.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "common/controldata_utils.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_shmem.h"
#include "ab_snapshot.h"
#include "ab_wal.h"

#define TEND_INTERVAL_MS	100
#define MAX_IDS_REPORTED	10

/* What the file says; processes inherit the postmaster's copy. */
static AbWitness witness;

/* ---- the file ---- */

static bool
read_witness(AbWitness *w)
{
	size_t		len;
	char	   *data = ab_file_read(AB_WITNESS_FILE, &len);
	bool		ok = data != NULL && len == sizeof(*w);

	if (ok)
	{
		memcpy(w, data, sizeof(*w));
		ok = w->magic == AB_WITNESS_MAGIC && w->version == AB_WITNESS_VERSION &&
			w->crc == ab_crc_without(w, sizeof(*w), offsetof(AbWitness, crc));
	}
	if (data)
		pfree(data);
	return ok;
}

static void
write_witness(void)
{
	witness.magic = AB_WITNESS_MAGIC;
	witness.version = AB_WITNESS_VERSION;
	witness.crc = ab_crc_without(&witness, sizeof(witness), offsetof(AbWitness, crc));
	ab_file_write_via(AB_WITNESS_TMP, AB_WITNESS_FILE, &witness, sizeof(witness), true);
	ab_file_sync_parent(AB_WITNESS_FILE);
}

static void
note_control(const ControlFileData *control)
{
	witness.system_identifier = control->system_identifier;
	witness.checksum_version = control->data_checksum_version;
	witness.control_state = control->state;
	witness.control_crc = control->crc;
	witness.checkpoint = control->checkPoint;
}

/* Run one of the functions below where an error must not get out. */
static void
calmly(void (*function) (void))
{
	MemoryContext cxt = CurrentMemoryContext;

	PG_TRY();
	{
		function();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
}

/* ---- the directories ---- */

/*
 * Without them every branch would pass for a plain database, and be damaged by whoever
 * connects to it, while the parents overwrite what could have been saved.
 */
void
ab_witness_expect_dirs(void)
{
	static const char *const dirs[] = {AB_BRANCH_DIR, AB_SNAPSHOT_DIR, AB_IMAGE_DIR};

	if (!ab_file_exists(AB_TRIPWIRE_START) && !ab_file_exists(AB_TRIPWIRE_REPLAY))
		return;
	for (int i = 0; i < lengthof(dirs); i++)
		if (!ab_file_exists(dirs[i]))
			ereport(FATAL,
					(errcode(ERRCODE_UNDEFINED_FILE),
					 errmsg("directory \"%s\" is missing", dirs[i]),
					 errdetail("The server has run with agent_branch, and \"" AB_DIR "\" holds what its branches share with their parents."),
					 errhint("Mount or restore \"" AB_DIR "\". If it is lost, so are all branches: to start without them, remove \"%s\" and \"%s\", and drop each database that was a branch.",
							 AB_TRIPWIRE_START, AB_TRIPWIRE_REPLAY)));
}

/* ---- poison ---- */

/* Live snapshots that are not poisoned yet, confirmed or not. */
static List *
live_snapshots(void)
{
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;
	List	   *found = NIL;

	while ((de = ReadDir(dir, AB_SNAPSHOT_DIR)) != NULL)
	{
		AbSnapId	id;
		AbManifestHeader h;
		AbLiveSnapshot *live;

		if (ab_snapshot_parse_file(de->d_name, ".manifest", &id) ?
			!ab_manifest_read_header(id, &h) :
			!ab_snapshot_parse_file(de->d_name, ".pending", &id) ||
			!ab_manifest_read_pending_header(id, &h))
			continue;
		if ((h.flags & AB_MANIFEST_LIVE) == 0 ||
			ab_file_exists(ab_snapshot_path(id, ".poisoned")))
			continue;
		live = palloc(sizeof(AbLiveSnapshot));
		live->id = id;
		live->source_db = h.source_db;
		found = lappend(found, live);
	}
	FreeDir(dir);
	return found;
}

/* In recovery the table is loaded already. */
static void
poison_in_table(const AbLiveSnapshot *live)
{
	ab_guard_close(live->source_db);
	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ab_shared->nsnapslots; i++)
		if (AbSnapIdIsValid(ab_shared->snap[i].id) &&
			AbSnapIdEquals(ab_shared->snap[i].id, live->id))
			ab_shared->snap[i].poisoned = true;
	LWLockRelease(ab_shared->snap_lock);
	ab_epoch_recompute(live->source_db);
	ab_guard_open(live->source_db);
	pg_atomic_fetch_add_u32(&ab_shared->poison_generation, 1);
}

static void
report_poisoned(const List *live, const char *reason)
{
	StringInfoData ids;
	ListCell   *lc;
	int			n = list_length(live);

	initStringInfo(&ids);
	foreach(lc, live)
	{
		char		text[AB_SNAPID_TEXT_LEN + 1];

		if (foreach_current_index(lc) == MAX_IDS_REPORTED)
		{
			appendStringInfo(&ids, " and %d more", n - MAX_IDS_REPORTED);
			break;
		}
		ab_snapid_format(((AbLiveSnapshot *) lfirst(lc))->id, text);
		appendStringInfo(&ids, "%s%s", foreach_current_index(lc) ? ", " : "", text);
	}
	ereport(WARNING,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg_plural("%d snapshot of a living database cannot be trusted any more",
						   "%d snapshots of living databases cannot be trusted any more",
						   n, n),
			 errdetail("%s Poisoned: %s.", reason, ids.data),
			 errhint("Branches of these snapshots answer with an error; delete or reset them. Their parents and new branches are not affected.")));
}

/* The marks have the reason in them. */
static void
poison(const List *live, const char *reason)
{
	ListCell   *lc;

	if (live == NIL)
		return;
	foreach(lc, live)
	{
		AbLiveSnapshot *snapshot = lfirst(lc);

		ab_file_write_via(ab_file_tmp_name(),
						  ab_snapshot_path(snapshot->id, ".poisoned"),
						  reason, strlen(reason), true);
		if (InRecovery)
			poison_in_table(snapshot);
	}
	fsync_fname(AB_SNAPSHOT_DIR, true);
	report_poisoned(live, reason);
}

void
ab_witness_poison_database(Oid db, const char *reason)
{
	List	   *lost = NIL;
	ListCell   *lc;

	foreach(lc, live_snapshots())
		if (((AbLiveSnapshot *) lfirst(lc))->source_db == db)
			lost = lappend(lost, lfirst(lc));
	poison(lost, reason);
}

/* ---- the postmaster ---- */

static void
write_last_words(void)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(".", &crc_ok);
	AbWitness	now;

	if (!crc_ok || (control->state != DB_SHUTDOWNED &&
					control->state != DB_SHUTDOWNED_IN_RECOVERY))
		return;
	if (read_witness(&now))
		witness.flags = now.flags;	/* the startup process may have cleared them */
	note_control(control);
	witness.state = AB_WITNESS_CLEAN;
	write_witness();
}

/* The last process: what pg_control says now is final. */
static void
at_exit(int code, Datum owner)
{
	if (MyProcPid == DatumGetInt32(owner))
		calmly(write_last_words);
}

/* What a backup's files leave to be shown by replay. */
static uint32
flags_of_backup(const char *reason)
{
	return reason ? AB_WITNESS_MIXED : AB_WITNESS_UNPROVEN;
}

void
ab_witness_begin(const ControlFileData *control)
{
	static bool judged = false;
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch witness",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(cxt);
	AbBackupLabel label;
	AbWitness	last;
	bool		known = read_witness(&last);

	ab_trust_read_label(&label);
	witness.flags = known ? last.flags : 0;
	if (!judged)
	{
		List	   *live = live_snapshots();
		const char *reason = NULL;

		if (live != NIL || label.there)
			reason = ab_trust_judge(known ? &last : NULL, control, &label, live);
		if (reason)
			poison(live, reason);
		if (label.there)
			witness.flags = flags_of_backup(reason);
		on_proc_exit(at_exit, Int32GetDatum(MyProcPid));
		judged = true;
	}
	note_control(control);
	if (label.there)
		witness.checkpoint = label.checkpoint;
	witness.state = AB_WITNESS_STARTING;

	/*
	 * If that fails, an older witness remains: the next start will poison more than it
	 * has to, but this one need not fail.
	 */
	calmly(write_witness);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(cxt);
}

/* ---- the tripwires ---- */

static void
put_tripwires_up(void)
{
	int			fd = OpenTransientFile(AB_TRIPWIRE_REPLAY,
									   O_CREAT | O_WRONLY | PG_BINARY);

	if (fd < 0 || CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", AB_TRIPWIRE_REPLAY)));
	ab_file_sync_parent(AB_TRIPWIRE_REPLAY);
	if (MakePGDirectory(AB_TRIPWIRE_START) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", AB_TRIPWIRE_START)));
	ab_file_sync_parent(AB_TRIPWIRE_START);
}

static void
run_begins(void)
{
	put_tripwires_up();
	AB_FAILPOINT_NO_ERROR("witness-tripwires");
	witness.state = AB_WITNESS_RUNNING;
	write_witness();
}

void
ab_witness_replay_begins(void)
{
	calmly(run_begins);
}

/* After recovery nothing is to be shown by replay any more. */
static void
recovered(void)
{
	AbWitness	now;

	if (read_witness(&now) && now.state == AB_WITNESS_RUNNING && now.flags == 0 &&
		ab_file_exists(AB_TRIPWIRE_START))
		return;
	witness.flags = 0;
	run_begins();
}

void
ab_witness_recovered(void)
{
	calmly(recovered);
}

/* ---- WAL ---- */

static bool
any_live(void)
{
	bool		found = false;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	for (int i = 0; i < ab_shared->nsnapslots && !found; i++)
	{
		const AbSnapSlot *slot = &ab_shared->snap[i];

		found = AbSnapIdIsValid(slot->id) && slot->live && !slot->poisoned;
	}
	LWLockRelease(ab_shared->snap_lock);
	return found;
}

long
ab_witness_tend(void)
{
	static XLogRecPtr witnessed = InvalidXLogRecPtr;
	XLogRecPtr	redo;

	if (!any_live())
		return -1;
	redo = GetRedoRecPtr();
	if (redo != witnessed)
	{
		XLogFlush(ab_wal_witness(redo));
		AB_FAILPOINT_NO_ERROR("witness-logged");
		witnessed = redo;
	}
	return TEND_INTERVAL_MS;
}

static void
clear_flags(void)
{
	witness.flags = 0;
	write_witness();
}

/* A live snapshot whose files have changes of which nobody saved the old pages. */
static void
poison_replayed(XLogReaderState *record)
{
	xl_ab_snapshot rec;
	AbLiveSnapshot live;

	memcpy(&rec, XLogRecGetData(record), sizeof(rec));
	if ((rec.flags & AB_MANIFEST_LIVE) == 0)
		return;
	live.id.tli = rec.tli;
	live.id.lsn = record->EndRecPtr;
	live.source_db = rec.source_db;
	poison(list_make1(&live), "The snapshot was taken while the files from which this server was made were copied.");
}

void
ab_witness_note_redo(XLogReaderState *record)
{
	if (likely(witness.flags == 0))
		return;
	if (witness.flags & AB_WITNESS_MIXED && !reachedConsistency)
	{
		if ((XLogRecGetInfo(record) & ~XLR_INFO_MASK) == XLOG_AB_SNAPSHOT)
			poison_replayed(record);
	}
	else
		calmly(clear_flags);	/* a record of ours: the primary had the library */
}

void
ab_witness_backup_ends(void)
{
	if ((witness.flags & AB_WITNESS_UNPROVEN) == 0)
		return;
	poison(live_snapshots(),
		   "Nothing in the WAL of the base backup shows that its server ran with agent_branch.");
	calmly(clear_flags);
}
