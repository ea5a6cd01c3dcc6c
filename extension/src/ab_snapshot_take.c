/*
 * ab_snapshot_take.c
 *	  Taking a snapshot (the numbered steps of extension/README): their order, and what is
 *	  undone when one of them fails.  What is logged and made durable on the way is
 *	  ab_snapshot_log.c's; what changed meanwhile, ab_snapshot_mend.c's.
 *
 * Backends only.  One session at a time takes a snapshot of a database: the turn
 * lock.  It waits for its turn without a time limit, since the one whose turn it is
 * may be copying for long and usually leaves a snapshot that both can use;
 * agent_branch.snapshot_timeout is for the writers that are then waited for.
 *
 * Everything that locks happens in an internal subtransaction that is rolled back
 * at the end, whatever the outcome.  An error or the end of the session on the way
 * removes the files and logs RETIRE, so that standbys do the same.  A crash leaves
 * files of a snapshot without CONFIRM (S6), and possibly its hidden row: the end of
 * recovery removes the former, the keeper's sweep the latter.
 */
#include "ab_snapshot.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "postmaster/bgwriter.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ab_failpoint.h"
#include "ab_gate.h"
#include "ab_initfile.h"
#include "ab_kept.h"
#include "ab_method.h"
#include "ab_origin.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_snapshot_taking.h"
#include "ab_snaptable.h"
#include "ab_wal.h"

/* Sub-object number that makes the turn lock another one than the database's. */
#define TURN_SUBID 1

/* From this many captured blocks on, a checkpoint is worth its price. */
#define CHECKPOINT_BLOCKS 1024

/* ---- giving up ---- */

/* Undo one attempt: what it wrote to disk, to the table and to WAL. */
static void
give_up_attempt(AbTaking *t)
{
	AbLayerWriter *layer = t->capture.layer;
	AbSnapId	id = t->id;

	ab_source_close(&t->capture);
	t->capture.layer = NULL;
	memset(&t->id, 0, sizeof(t->id));
	if (layer)
		ab_layer_writer_discard(layer);
	if (AbSnapIdIsValid(id))
	{
		(void) ab_wal_retire(id, AB_RETIRE_MANIFEST | AB_RETIRE_PAGES);
		AB_FAILPOINT_NO_ERROR("snapshot-given-up");
		ab_snapshot_remove_files(id, AB_RETIRE_MANIFEST | AB_RETIRE_PAGES);
	}
}

static void
release_source(AbTaking *t)
{
	const AbManifest *m = t->capture.source_manifest;

	t->capture.source_manifest = NULL;
	if (m)
		ab_manifest_release((AbManifest *) m);
}

/* On ERROR and when the session is ended; the error may come from under a lock. */
static void
abandon(int code, Datum arg)
{
	AbTaking	   *t = (AbTaking *) DatumGetPointer(arg);

	LWLockReleaseAll();
	ab_taking_end_late(t);
	if (!t->done)
	{
		give_up_attempt(t);
		ab_initfile_let_go();
	}
	release_source(t);
}

/* ---- what is known before ---- */

/* Default tablespace and frozen xids, which do not move: the gate is closed. */
static void
read_database_row(AbTaking *t)
{
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Form_pg_database form;

	AcceptInvalidationMessages();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_database_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(t->capture.source_db));
	scan = systable_beginscan(rel, DatabaseOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "no pg_database row for database %u", t->capture.source_db);
	form = (Form_pg_database) GETSTRUCT(tuple);
	t->capture.source_spc = form->dattablespace;
	t->header.source_spc = form->dattablespace;
	t->header.frozen_xid = form->datfrozenxid;
	t->header.min_multi = form->datminmxid;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Is the source a branch, and of which snapshot? */
static void
look_at_origin(AbTaking *t)
{
	AbBranch   *b = ab_branch_lookup(t->capture.source_db);
	const AbOriginHeader *origin;

	/* it may have become damaged while we waited, and would pass for a plain database */
	ab_branch_require_sound(t->capture.source_db, t->dbname);
	if (b == NULL)
		return;
	origin = ab_branch_header(b);
	t->header.base = origin->snapshot;
	t->header.depth = origin->depth;
	t->capture.source_manifest = ab_manifest_acquire(origin->snapshot);
}

/* Before-images, unless the user wants copies. */
static void
choose_method(AbTaking *t)
{
	t->capture.live = ab_snapshot_method == AB_METHOD_AUTO ||
		ab_snapshot_method == AB_METHOD_BEFORE_IMAGE;
	t->header.flags = t->capture.live ? AB_MANIFEST_LIVE : 0;
}

/* ---- where the time goes ---- */

static void
flush(AbTaking *t)
{
	instr_time	begun;
	instr_time	ended;

	INSTR_TIME_SET_CURRENT(begun);
	FlushDatabaseBuffers(t->capture.source_db);
	INSTR_TIME_SET_CURRENT(ended);
	INSTR_TIME_ACCUM_DIFF(t->flushing, ended, begun);
}

/* close: shut the gate; otherwise it is, and those who are inside still write. */
static void
wait_for_writers(AbTaking *t, bool close)
{
	instr_time	begun;
	instr_time	ended;

	INSTR_TIME_SET_CURRENT(begun);
	if (close)
		ab_gate_close(t->capture.source_db, t->dbname, t->deadline);
	else
		ab_gate_drain(t->capture.source_db, t->dbname, t->deadline);
	INSTR_TIME_SET_CURRENT(ended);
	INSTR_TIME_ACCUM_DIFF(t->waiting, ended, begun);
}

static void
report_times(const AbTaking *t)
{
	ereport(DEBUG1,
			(errmsg_internal("snapshot of database \"%s\": flushing %.3f ms, waiting for writers %.3f ms, looked at %d forks",
							 t->dbname, INSTR_TIME_GET_MILLISEC(t->flushing),
							 INSTR_TIME_GET_MILLISEC(t->waiting),
							 t->capture.looked_at)));
}

/* ---- steps 2 to 8 ---- */

static void
capture(AbTaking *t)
{
	t->capture.builder = ab_manifest_builder();
	if (!t->capture.live)
		t->capture.layer = ab_layer_writer_open();
	if (!ab_kept_no_unlinks(t->capture.source_db, t->deadline, &t->no_unlinks))
		ab_gate_give_up(t->capture.source_db, t->dbname);
	t->window = GetXLogInsertRecPtr();
	flush(t);
	AB_FAILPOINT("snapshot-flushed");
	ab_method_for(&t->capture)->capture(&t->capture);
	AB_FAILPOINT("snapshot-listed");
}

/* Steps 2 to 8. */
static void
quiet_part(AbTaking *t)
{
	Oid			db = t->capture.source_db;

	wait_for_writers(t, true);
	read_database_row(t);
	look_at_origin(t);
	choose_method(t);
	for (;;)
	{
		ab_initfile_hold(db, t->header.source_spc);
		capture(t);
		if (ab_taking_log(t) && ab_taking_mend(t))
			break;
		give_up_attempt(t);
		if (GetCurrentTimestamp() >= t->deadline)
			ab_gate_give_up(db, t->dbname);
		wait_for_writers(t, false);
	}

	if (!t->capture.live)
	{
		/* from here on the sweeps know that the files are somebody's */
		ab_snaptable_add(t->id, db, false, false);
		ab_taking_write_files(t);
		AB_FAILPOINT("snapshot-copied-written");
	}
	AB_FAILPOINT("snapshot-mended");
	t->hidden_asked = true;
	ab_request_add_hidden(t->id, db, t->header.frozen_xid, t->header.min_multi);
	AB_FAILPOINT("snapshot-hidden-committed");
	ab_taking_confirm(t);
	ab_initfile_keep(t->id, db, t->header.source_spc);
}

/* ---- the whole ---- */

static bool
is_news(Oid db, const AbSnapId *known)
{
	AbSnapSlot	newest;

	return ab_snaptable_newest(db, &newest) && !AbSnapIdEquals(newest.id, *known);
}

/*
 * Only one of us at a time; false if there is a snapshot we did not know of.  Those who
 * would be content with another's wait in share mode: when it is done all of them go on
 * at once, instead of each waking the next.  If nothing has come of it they queue.
 */
static bool
wait_for_turn(Oid db, const AbSnapId *known)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, TURN_SUBID);
	if (known == NULL)
	{
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		return true;
	}
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		(void) LockAcquire(&tag, ShareLock, false, false);
		LockRelease(&tag, ShareLock, false);
		if (is_news(db, known))
			return false;
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
	}
	return !is_news(db, known);
}

/*
 * Most of what takes all the slots may be waiting for a sweep: snapshots of deleted
 * branches, and of merges.  Nothing is held yet that the sweeper cannot do without.
 */
static void
make_room(void)
{
	if (ab_snaptable_is_scarce())
		ab_request_sweep(ab_snapshot_timeout);
	ab_snaptable_check_room();
}

static bool
take(AbTaking *t, const AbSnapId *known)
{
	if (!wait_for_turn(t->capture.source_db, known))
		return false;
	make_room();

	/* holding nobody up: what is flushed here need not be flushed in the gate */
	flush(t);
	t->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											  ab_snapshot_timeout);
	PG_ENSURE_ERROR_CLEANUP(abandon, PointerGetDatum(t));
	{
		quiet_part(t);
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon, PointerGetDatum(t));
	release_source(t);
	return true;
}

/* After a failure: the keeper may have committed the hidden row.  Never raises. */
static void
drop_hidden(const AbTaking *t, AbSnapId id)
{
	MemoryContext oldcontext = CurrentMemoryContext;

	if (!t->hidden_asked || t->done)
		return;
	PG_TRY();
	{
		(void) ab_request_drop_hidden(id);
	}
	PG_CATCH();
	{
		/* the keeper's sweep removes it some time */
		MemoryContextSwitchTo(oldcontext);
		FlushErrorState();
	}
	PG_END_TRY();
}

/*
 * Branches adopt every page that is newer than the redo pointer when they first
 * read it (F1).  After a checkpoint has begun there is none left; do not wait.
 */
static void
move_redo_pointer(const AbTaking *t)
{
	if (t->header.pages_blocks > CHECKPOINT_BLOCKS && GetRedoRecPtr() < t->id.lsn)
		RequestCheckpoint(CHECKPOINT_FORCE);
}

static AbTaking *
new_taking(Oid source_db, const char *dbname)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch snapshot",
											  ALLOCSET_DEFAULT_SIZES);
	AbTaking	   *t = MemoryContextAllocZero(cxt, sizeof(AbTaking));

	t->cxt = cxt;
	t->dbname = dbname;
	t->capture.source_db = source_db;
	t->header.source_db = source_db;
	t->header.taken_at = GetCurrentTimestamp();
	return t;
}

bool
ab_snapshot_take(Oid source_db, const char *dbname, const AbSnapId *known,
				 AbSnapId *id)
{
	MemoryContext oldcontext = CurrentMemoryContext;
	ResourceOwner oldowner = CurrentResourceOwner;
	AbTaking	   *t = new_taking(source_db, dbname);
	volatile bool taken = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(t->cxt);
		taken = take(t, known);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(oldcontext);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(oldcontext);
		CurrentResourceOwner = oldowner;
		drop_hidden(t, t->header.id);
		ReThrowError(edata);
	}
	PG_END_TRY();

	/* the locks go with it: the gate opens */
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(oldcontext);
	CurrentResourceOwner = oldowner;
	if (taken)
	{
		*id = t->id;
		report_times(t);
		move_redo_pointer(t);
	}
	MemoryContextDelete(t->cxt);
	return taken;
}
