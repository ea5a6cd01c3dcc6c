/*
 * ab_trust.c
 *	  At start: can the live snapshots be believed, after all that may have been done
 *	  to the data directory since we last saw it?
 *
 * The postmaster, before any other process exists; reads files and WAL, changes
 * nothing.  ab_witness.c keeps the traces that are read here and acts on the verdict.
 *
 * What must never be believed is a change of a parent's files without its pages being
 * captured: a server without the library did it, or another server's files are here.
 * The evidence, and why it suffices:
 *
 * pg_control.  Every server changes it, with a time stamp, after it has started and
 * before it changes a page.  If it is as it was when we last looked (its checksum, kept
 * in the witness), nothing happened.  That covers clean shutdowns: also against
 * pg_resetwal and pg_checksums, which change it as well.
 *
 * First tripwire.  Every start of a server, from whatever state, in single-user mode
 * too, removes pg_replslot/<name>.tmp directories before it goes on.  Ours is called so,
 * and the library puts it up again.  If it is there, nobody but us has started here.
 * Between the removal by a start of our own and putting it up it is missing without
 * guilt: that is the state STARTING, in which the following has to do.
 *
 * Second tripwire.  Recovery, immediately before it begins to replay, empties
 * pg_snapshots.  If our file there has survived in a server that had to recover, and is
 * not in production, then nothing was replayed.
 *
 * minRecoveryPoint.  Archive recovery moves it past the LSN of a page before that page
 * is written.  While it is at the redo pointer, no page was written.  (A standby that
 * was started and waits for WAL.)
 *
 * WAL.  Nobody without the library replays beyond a record of its resource manager.  So
 * WAL from the checkpoint to the first such record is all that somebody else can have
 * replayed; if that changes nothing in the databases concerned, no harm was done.  The
 * keeper logs a WITNESS record soon after each new redo pointer for that reason: a crash
 * followed by an attempt to start without the library costs no snapshot, if the parent
 * was idle in that moment.  Since no checkpoint was finished since we started, WAL is
 * also allowed to end without such a record: nobody else's would be in it, for what
 * they change is logged after the checkpoint.  (Hint bits are not; they say what is
 * true for the snapshot too.)  Restartpoints of somebody else's archive recovery could
 * hide what he replayed: this is not used after archive recovery.
 *
 * Base backups have no tripwires (pg_basebackup leaves these directories out, other
 * tools mostly).  backup_label says where they come from.  From a standby or
 * pg_rewind: void, for what those write without WAL is not in the backup.  From a
 * primary they are good if the primary ran with the library.  Its witness in the
 * backup says CLEAN if it did not after a clean shutdown.  If it did not after a
 * crash, the WAL of the backup has no record of ours, whereas a primary with the
 * library logs a WITNESS record after the checkpoint that each backup begins with:
 * replay looks for it (AB_WITNESS_UNPROVEN).
 *
 * Live snapshots are lost needlessly if the server is killed in one of these moments:
 * in recovery between the emptying of pg_snapshots and the first record (which is
 * read already), or in the fraction of a second after a checkpoint's beginning, when
 * there is no WITNESS record yet, combined with an attempt to start without the library;
 * and in a base backup that is shorter than that fraction of a second.
 */
#include "ab_witness.h"

#include "access/xlog.h"

#include "ab_file.h"
#include "ab_walscan.h"

void
ab_trust_read_label(AbBackupLabel *label)
{
	char	   *text;
	char	   *line;
	size_t		len;
	char		word[20];
	uint32		hi;
	uint32		lo;
	bool		streamed = false;

	memset(label, 0, sizeof(*label));
	text = ab_file_read(BACKUP_LABEL_FILE, &len);
	if (text == NULL)
		return;
	label->there = true;
	for (line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
	{
		if (sscanf(line, "CHECKPOINT LOCATION: %X/%X", &hi, &lo) == 2)
			label->checkpoint = (XLogRecPtr) hi << 32 | lo;
		else if (sscanf(line, "BACKUP METHOD: %19s", word) == 1)
		{
			streamed = strcmp(word, "streamed") == 0;
			label->rewound = strcmp(word, "pg_rewind") == 0;
		}
		else if (sscanf(line, "BACKUP FROM: %19s", word) == 1)
			label->from_primary = strcmp(word, "primary") == 0;
	}
	label->from_primary = label->from_primary && streamed;
	pfree(text);
}

static const char *
judge_backup(const AbWitness *last, const AbBackupLabel *label)
{
	if (label->rewound)
		return "pg_rewind has changed the data directory.";
	if (!label->from_primary)
		return "The data directory comes from a base backup that was not taken from a primary server.";
	if (last->state == AB_WITNESS_CLEAN)
		return "The data directory comes from a base backup of a server that ran without agent_branch.";
	return NULL;
}

/*
 * The tripwire is up and the server was shut down: it was ours, killed between its
 * checkpoint and its last words.  Unless pg_resetwal has made the checkpoint.
 */
static const char *
judge_last_words(const ControlFileData *control)
{
	if (!ab_walscan_has_predecessor(control->checkPointCopy.ThisTimeLineID,
									control->checkPoint))
		return "The write-ahead log was reset.";
	return NULL;
}

/* STARTING: has nobody replayed anything since? */
static bool
nothing_was_replayed(const AbWitness *last, const ControlFileData *control)
{
	if (control->checkPoint != last->checkpoint)
		return false;
	if (control->state == DB_IN_ARCHIVE_RECOVERY &&
		control->minRecoveryPoint <= control->checkPointCopy.redo)
		return true;
	return (control->state == DB_IN_ARCHIVE_RECOVERY ||
			control->state == DB_IN_CRASH_RECOVERY) &&
		last->control_state != DB_SHUTDOWNED &&
		ab_file_exists(AB_TRIPWIRE_REPLAY);
}

/* Could anything have been replayed that changes a database with live snapshots? */
static bool
replay_was_harmless(const AbWitness *last, const ControlFileData *control,
					const List *live)
{
	List	   *dbs = NIL;
	ListCell   *lc;

	if (control->state == DB_IN_ARCHIVE_RECOVERY)
		return false;
	foreach(lc, live)
		dbs = list_append_unique_oid(dbs, ((AbLiveSnapshot *) lfirst(lc))->source_db);
	switch (ab_walscan_replay(control->checkPointCopy.ThisTimeLineID,
							  control->checkPointCopy.redo, dbs))
	{
		case AB_REPLAY_CHANGES:
			return false;
		case AB_REPLAY_STOPS:
			return true;
		case AB_REPLAY_ENDS:
			return last->state == AB_WITNESS_STARTING &&
				control->checkPoint == last->checkpoint;
	}
	return false;
}

const char *
ab_trust_judge(const AbWitness *last, const ControlFileData *control,
			   const AbBackupLabel *label, const List *live)
{
	bool		clean = control->state == DB_SHUTDOWNED ||
		control->state == DB_SHUTDOWNED_IN_RECOVERY;

	if (last == NULL)
		return "There is no readable file \"" AB_WITNESS_FILE "\".";
	if (last->system_identifier != control->system_identifier)
		return "The directory \"" AB_DIR "\" belongs to another cluster.";
	if (last->checksum_version != control->data_checksum_version)
		return "Data checksums were enabled or disabled.";
	if (label->there)
		return judge_backup(last, label);
	if (last->control_crc == control->crc && last->state != AB_WITNESS_RUNNING)
		return NULL;
	if (last->state == AB_WITNESS_CLEAN)
		return "Since it was shut down, the server has run without agent_branch, or pg_control was changed.";

	if (ab_file_exists(AB_TRIPWIRE_START))
		return clean ? judge_last_words(control) : NULL;
	if (!clean &&
		((last->state == AB_WITNESS_STARTING && nothing_was_replayed(last, control)) ||
		 replay_was_harmless(last, control, live)))
		return NULL;
	return "The server has been started without agent_branch.";
}
