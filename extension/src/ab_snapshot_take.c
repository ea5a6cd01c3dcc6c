/*
 * ab_snapshot_take.c
 *	  Taking a snapshot (the numbered steps of extension/README).
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
#include "catalog/indexing.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "postmaster/bgwriter.h"
#include "storage/bufmgr.h"
#include "storage/checksum.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/smgr.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "ab_capture.h"
#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_forknotes.h"
#include "ab_gate.h"
#include "ab_images.h"
#include "ab_initfile.h"
#include "ab_kept.h"
#include "ab_latesync.h"
#include "ab_method.h"
#include "ab_origin.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_snaptable.h"
#include "ab_wal.h"
#include "ab_walscan.h"

/* Sub-object number that makes the turn lock another one than the database's. */
#define TURN_SUBID 1

/* Rounds of capturing again what changed while it was captured again. */
#define MEND_ROUNDS 8

/* From this many captured blocks on, a checkpoint is worth its price. */
#define CHECKPOINT_BLOCKS 1024

typedef struct Taking
{
	const char *dbname;
	TimestampTz deadline;
	MemoryContext cxt;			/* everything; gone at the end */
	AbCapture	capture;
	AbManifestHeader header;
	char	   *image;			/* of the manifest, built last */
	size_t		image_len;
	AbManifest	view;			/* of that image */
	XLogRecPtr	window;			/* start of the flush before the capture */
	uint32		no_unlinks;		/* mark from before the files were listed */
	instr_time	flushing;		/* spent on what was dirty */
	instr_time	waiting;		/* spent on transactions that wrote */
	XLogRecPtr	record;			/* where the WAL record begins */
	AbSnapId	id;				/* valid from its WAL record, its end, until given up */
	bool		late;			/* between ab_latesync_begin() and _end() */
	bool		hidden_asked;	/* the keeper may have committed a row */
	bool		done;			/* CONFIRM is logged: nothing is undone now */
} Taking;

/* ---- records and the files that belong to them (ab_latesync.c) ---- */

static void
begin_late(Taking *t)
{
	ab_latesync_begin();
	t->late = true;
}

static void
end_late(Taking *t)
{
	if (t->late)
		ab_latesync_end();
	t->late = false;
}

/* ---- giving up ---- */

/* Undo one attempt: what it wrote to disk, to the table and to WAL. */
static void
give_up_attempt(Taking *t)
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
release_source(Taking *t)
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
	Taking	   *t = (Taking *) DatumGetPointer(arg);

	LWLockReleaseAll();
	end_late(t);
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
read_database_row(Taking *t)
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
look_at_origin(Taking *t)
{
	AbBranch   *b = ab_branch_lookup(t->capture.source_db);
	const AbOriginHeader *origin;

	if (b == NULL)
		return;
	origin = ab_branch_header(b);
	t->header.base = origin->snapshot;
	t->header.depth = origin->depth;
	t->capture.source_manifest = ab_manifest_acquire(origin->snapshot);
}

/* Before-images, unless the user wants copies. */
static void
choose_method(Taking *t)
{
	t->capture.live = ab_snapshot_method == AB_METHOD_AUTO ||
		ab_snapshot_method == AB_METHOD_BEFORE_IMAGE;
	t->header.flags = t->capture.live ? AB_MANIFEST_LIVE : 0;
}

/* ---- where the time goes ---- */

static void
flush(Taking *t)
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
wait_for_writers(Taking *t, bool close)
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
report_times(const Taking *t)
{
	ereport(DEBUG1,
			(errmsg_internal("snapshot of database \"%s\": flushing %.3f ms, waiting for writers %.3f ms, looked at %d forks",
							 t->dbname, INSTR_TIME_GET_MILLISEC(t->flushing),
							 INSTR_TIME_GET_MILLISEC(t->waiting),
							 t->capture.looked_at)));
}

/* ---- one attempt ---- */

static void
capture(Taking *t)
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

/* Build the manifest as it is known now, without the id, and look into it. */
static void
build(Taking *t)
{
	char	   *reason;

	t->header.pages_blocks = t->capture.live ? 0 :
		ab_layer_writer_nblocks(t->capture.layer);
	t->image = ab_builder_image(t->capture.builder, &t->header, &t->image_len);
	reason = ab_manifest_check_unsealed(t->image, t->image_len, &t->view);
	if (reason)
		elog(ERROR, "built a bad manifest: %s", reason);
}

static void
seal(Taking *t)
{
	t->header.id = t->id;
	ab_builder_seal(t->image, t->image_len, &t->header);
}

/*
 * Log the record, unless a transaction with an xid has come up in the source.  While
 * we hold XidGenLock none can get one, so at the record's position there is none.
 */
static XLogRecPtr
insert_record(Taking *t, xl_ab_snapshot *rec)
{
	XLogRecPtr	end = InvalidXLogRecPtr;

	/* in the server's order, see ProcArrayRemove() */
	LWLockAcquire(ProcArrayLock, LW_SHARED);
	LWLockAcquire(XidGenLock, LW_EXCLUSIVE);
	if (ab_gate_no_writers(t->capture.source_db))
	{
		LWLockRelease(ProcArrayLock);

		/* later than every commit it has: "at" a time asks for no more */
		rec->taken_at = t->header.taken_at = GetCurrentTimestamp();
		end = ab_wal_snapshot(rec, t->view.forks, t->view.layers + 1, t->view.runs,
							  t->view.relmap);
		t->record = ProcLastRecPtr;
	}
	else
		LWLockRelease(ProcArrayLock);
	LWLockRelease(XidGenLock);
	return end;
}

static void
write_pending(const Taking *t)
{
	char	   *pending = ab_snapshot_path(t->id, ".pending");
	char	   *tmp = ab_file_tmp_name();

	ab_file_write_via(tmp, pending, t->image, t->image_len, false);
	pfree(tmp);
	pfree(pending);
}

/*
 * From now on whoever changes a file of the source saves the old page.  Everything
 * that takes is there before, so that replay makes it again (E5).  The guard is closed.
 */
static void
make_live(Taking *t)
{
	Oid			db = t->capture.source_db;

	XLogFlush(t->id.lsn);
	AB_FAILPOINT("snapshot-logged");
	seal(t);

	/* from here on the sweeps know that the files are somebody's */
	ab_snaptable_add(t->id, db, false, true);
	ab_images_begin(db, t->id, false);
	AB_FAILPOINT("snapshot-store-begun");
	write_pending(t);
	AB_FAILPOINT("snapshot-pending");
	ab_epoch_begin(db, t->id);
	ab_forknotes_listed(db, t->capture.listed_at, t->capture.stamp, t->id);
	AB_FAILPOINT("snapshot-live");
}

/* Log SNAPSHOT; a snapshot that is live is so from its position on.  False: try again. */
static bool
log_snapshot(Taking *t)
{
	Oid			db = t->capture.source_db;
	xl_ab_snapshot rec;
	XLogRecPtr	end = InvalidXLogRecPtr;

	build(t);
	memset(&rec, 0, sizeof(rec));
	rec.base = t->header.base;
	rec.source_db = t->header.source_db;
	rec.source_spc = t->header.source_spc;
	rec.frozen_xid = t->header.frozen_xid;
	rec.min_multi = t->header.min_multi;
	rec.depth = t->header.depth;
	rec.flags = t->header.flags;
	rec.nforks = t->view.h->nforks;
	rec.nlayers = t->view.h->nlayers - 1;
	if (t->capture.live && t->capture.source_manifest)
		rec.nruns = t->view.h->nruns;

	if (!t->capture.live)
	{
		end = insert_record(t, &rec);
		AB_FAILPOINT("snapshot-copied-logged");
		t->id = ab_snapid_make(rec.tli, end);
		return AbSnapIdIsValid(t->id);
	}
	begin_late(t);
	if (!ab_guard_try_close(db, t->deadline))
		ab_gate_give_up(db, t->dbname);
	if (ab_kept_still_no_unlinks(db, t->no_unlinks))
		end = insert_record(t, &rec);
	if (!XLogRecPtrIsInvalid(end))
	{
		t->id = ab_snapid_make(rec.tli, end);
		make_live(t);
	}
	ab_guard_open(db);
	if (!XLogRecPtrIsInvalid(end))
		ab_latesync_snapshot(db, t->id);
	end_late(t);
	return !XLogRecPtrIsInvalid(end);
}

/* ---- what was touched during the capture ---- */

static int
compare_blocks(const AbTouchedBlock *x, const AbTouchedBlock *y)
{
	int			order = memcmp(&x->rnode, &y->rnode, sizeof(RelFileNode));

	if (order != 0)
		return order;
	if (x->fork != y->fork)
		return x->fork < y->fork ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

static int
compare_cells(const ListCell *a, const ListCell *b)
{
	return compare_blocks(lfirst(a), lfirst(b));
}

/* The page as it is in shared buffers, ready to be written; returns its LSN. */
static XLogRecPtr
read_touched(const AbTouchedBlock *block, char *page)
{
	Buffer		buffer = ReadBufferWithoutRelcache(block->rnode, block->fork,
												   block->block, RBM_NORMAL,
												   NULL, true);

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	memcpy(page, BufferGetPage(buffer), BLCKSZ);
	UnlockReleaseBuffer(buffer);
	if (!PageIsNew(page) && DataChecksumsEnabled())
		((PageHeader) page)->pd_checksum = pg_checksum_page(page, block->block);
	return PageIsNew(page) ? InvalidXLogRecPtr : PageGetLSN(page);
}

typedef enum TouchedFate
{
	TOUCHED_IGNORE,				/* the snapshot is right as it is */
	TOUCHED_AGAIN,				/* capture it again, at *position */
	TOUCHED_INHERITED,			/* it is a page of an older layer */
	TOUCHED_STRANGE				/* not captured at all: begin anew */
} TouchedFate;

static TouchedFate
fate_of(const Taking *t, const AbTouchedBlock *block, uint32 *position)
{
	bool		is_map = block->fork == VISIBILITYMAP_FORKNUM ||
		block->fork == FSM_FORKNUM;
	const AbForkEntry *e;
	const AbRun *run;
	AbForkKey	key;

	key.spc = block->rnode.spcNode;
	key.rel = block->rnode.relNode;
	key.fork = block->fork;
	e = ab_manifest_find(&t->view, key);

	/* a map that says less than it could is a good map */
	if (e == NULL || block->block >= e->nblocks)
		return is_map ? TOUCHED_IGNORE : TOUCHED_STRANGE;
	if ((e->flags & AB_FORK_UNLOGGED) && block->fork != INIT_FORKNUM)
		return TOUCHED_IGNORE;
	run = ab_manifest_run(&t->view, e, block->block);
	if (run == NULL)
		return TOUCHED_STRANGE;
	if (run->layer != 0)
		return TOUCHED_INHERITED;
	*position = run->position + (block->block - run->start);
	return TOUCHED_AGAIN;
}

/*
 * Capture the touched pages again.  Returns false if only a new attempt helps;
 * *newest: the highest LSN found on them.
 *
 * An inherited page that was pruned or given hint bits means the same before and
 * after, and stays inherited.  Only a visibility map page that was captured after
 * such a pruning could claim too much about it.
 */
static bool
capture_again(Taking *t, List *touched, XLogRecPtr *newest)
{
	const AbTouchedBlock *last = NULL;
	bool		inherited = false;
	bool		map = false;
	PGAlignedBlock page;
	ListCell   *lc;

	*newest = InvalidXLogRecPtr;
	list_sort(touched, compare_cells);
	foreach(lc, touched)
	{
		const AbTouchedBlock *block = lfirst(lc);
		uint32		position = 0;

		CHECK_FOR_INTERRUPTS();
		if (last && compare_blocks(last, block) == 0)
			continue;
		if (last && !RelFileNodeEquals(last->rnode, block->rnode))
			smgrclose(smgropen(last->rnode, InvalidBackendId));
		last = block;
		map |= block->fork == VISIBILITYMAP_FORKNUM;

		switch (fate_of(t, block, &position))
		{
			case TOUCHED_IGNORE:
				break;
			case TOUCHED_AGAIN:
				{
					XLogRecPtr	lsn = read_touched(block, page.data);

					*newest = Max(*newest, lsn);
					if (t->capture.live)
						ab_capture_window(t->id, block->rnode, block->fork,
										  block->block, page.data);
					else
						ab_layer_writer_patch(t->capture.layer, position, page.data);
				}
				break;
			case TOUCHED_INHERITED:
				inherited = true;
				break;
			case TOUCHED_STRANGE:
				return false;
		}
	}
	if (last)
		smgrclose(smgropen(last->rnode, InvalidBackendId));
	return !(inherited && map);
}

/*
 * What WAL says about the time from the flush to the record.  Pages that are
 * captured again may be newer than the record; then the WAL up to what they show
 * has to be as harmless, and what it touched is captured again as well.
 */
static bool
mend(Taking *t)
{
	XLogRecPtr	from = t->window;
	XLogRecPtr	upto = t->record;	/* our own says nothing, and may be long */
	XLogRecPtr	seen = t->id.lsn;

	for (int round = 0; round < MEND_ROUNDS; round++)
	{
		List	   *touched = NIL;
		XLogRecPtr	newest;

		if (ab_walscan(t->capture.source_db, from, upto, false, &touched) != AB_SCAN_CLEAN)
			return false;
		if (!capture_again(t, touched, &newest))
			return false;
		if (newest <= seen)
			return true;
		from = seen;
		upto = seen = newest;
	}
	return false;
}

/* ---- making it usable ---- */

/*
 * Step 6, but of a live snapshot: all files are durable, the manifest still called
 * .pending.
 */
static void
write_files(Taking *t)
{
	AbLayerWriter *layer = t->capture.layer;
	char	   *pending = ab_snapshot_path(t->id, ".pending");
	pg_crc32c	crc;

	ab_layer_writer_sync(layer);
	if (ab_layer_writer_crc(layer, &crc))
	{
		t->header.flags |= AB_MANIFEST_HAS_PAGES_CRC;
		t->header.pages_crc = crc;
	}
	build(t);
	seal(t);
	ab_layer_writer_publish(layer, t->id);
	t->capture.layer = NULL;
	ab_file_write_durably(pending, t->image, t->image_len);
	pfree(pending);
}

/*
 * S6: does replay after a crash always come past SNAPSHOT?  Then it knows whether CONFIRM
 * is durable.  A checkpoint that begins from now on leaves both records behind; one whose
 * redo pointer is between them, and that this does not see, has not logged its own record
 * yet and flushes CONFIRM with it.  We delay checkpoints.
 */
static bool
replay_knows(const Taking *t)
{
	return t->capture.live && GetRedoRecPtr() <= t->id.lsn;
}

/* Step 8. */
static void
confirm(Taking *t)
{
	char	   *pending = ab_snapshot_path(t->id, ".pending");
	char	   *manifest = ab_snapshot_path(t->id, ".manifest");
	XLogRecPtr	end;

	/* flushed with it, now or by the commit of a branch: the hidden row's commit */
	begin_late(t);
	end = ab_wal_confirm(t->id);
	if (!replay_knows(t))
		XLogFlush(end);
	AB_FAILPOINT("snapshot-confirm-logged");
	if (rename(pending, manifest) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not rename file \"%s\" to \"%s\": %m",
						pending, manifest)));
	AB_FAILPOINT("snapshot-renamed");
	ab_latesync_name(t->capture.source_db, t->id);
	end_late(t);
	t->done = true;
	ab_snaptable_confirm(t->id);
	AB_FAILPOINT_NO_ERROR("snapshot-confirmed");
	pfree(pending);
	pfree(manifest);
}

/* Steps 2 to 8. */
static void
quiet_part(Taking *t)
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
		if (log_snapshot(t) && mend(t))
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
		write_files(t);
		AB_FAILPOINT("snapshot-copied-written");
	}
	AB_FAILPOINT("snapshot-mended");
	t->hidden_asked = true;
	ab_request_add_hidden(t->id, db, t->header.frozen_xid, t->header.min_multi);
	AB_FAILPOINT("snapshot-hidden-committed");
	confirm(t);
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

static bool
take(Taking *t, const AbSnapId *known)
{
	if (!wait_for_turn(t->capture.source_db, known))
		return false;
	ab_snaptable_check_room();

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
drop_hidden(const Taking *t, AbSnapId id)
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
move_redo_pointer(const Taking *t)
{
	if (t->header.pages_blocks > CHECKPOINT_BLOCKS && GetRedoRecPtr() < t->id.lsn)
		RequestCheckpoint(CHECKPOINT_FORCE);
}

static Taking *
new_taking(Oid source_db, const char *dbname)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch snapshot",
											  ALLOCSET_DEFAULT_SIZES);
	Taking	   *t = MemoryContextAllocZero(cxt, sizeof(Taking));

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
	Taking	   *t = new_taking(source_db, dbname);
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
