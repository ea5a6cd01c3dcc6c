/*
 * ab_snapshot_log.c
 *	  What a snapshot in the making leaves behind: its records in WAL, and its manifest
 *	  (steps 4, 6 and 8 of extension/README).
 *
 * Backends that take a snapshot; the gate is closed.  SNAPSHOT is logged under
 * ProcArrayLock (shared) and XidGenLock, of a live one under the source's guard as well.
 * Between a record and the files that belong to it stands ab_latesync_begin() to _end().  A
 * crash leaves files without CONFIRM: the end of recovery removes them (S6).
 */
#include "ab_snapshot_taking.h"

#include "access/xlog.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_forknotes.h"
#include "ab_gate.h"
#include "ab_images.h"
#include "ab_kept.h"
#include "ab_latesync.h"
#include "ab_snaptable.h"
#include "ab_unseen.h"
#include "ab_wal.h"

/* ---- records and the files that belong to them (ab_latesync.c) ---- */

static void
begin_late(AbTaking *t)
{
	ab_latesync_begin();
	t->late = true;
}

void
ab_taking_end_late(AbTaking *t)
{
	if (t->late)
		ab_latesync_end();
	t->late = false;
}

/* ---- the manifest ---- */

/* Build the manifest as it is known now, without the id, and look into it. */
static void
build(AbTaking *t)
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
seal(AbTaking *t)
{
	t->header.id = t->id;
	ab_builder_seal(t->image, t->image_len, &t->header);
}

static void
write_pending(const AbTaking *t)
{
	char	   *pending = ab_snapshot_path(t->id, ".pending");
	char	   *tmp = ab_file_tmp_name();

	ab_file_write_via(tmp, pending, t->image, t->image_len, false);
	pfree(tmp);
	pfree(pending);
}

/*
 * Step 6, but of a live snapshot: all files are durable, the manifest still called
 * .pending.
 */
void
ab_taking_write_files(AbTaking *t)
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

/* ---- SNAPSHOT ---- */

/*
 * Log the record, unless a transaction with an xid has come up in the source.  While
 * we hold XidGenLock none can get one, so at the record's position there is none.
 */
static XLogRecPtr
insert_record(AbTaking *t, xl_ab_snapshot *rec)
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

/*
 * From now on whoever changes a file of the source saves the old page.  Everything
 * that takes is there before, so that replay makes it again (E5).  The guard is closed.
 */
static void
make_live(AbTaking *t)
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
bool
ab_taking_log(AbTaking *t)
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
	if (!t->capture.taken_over)
		ab_unseen_save(db, &t->view);
	AB_FAILPOINT("snapshot-unseen-saved");
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
	ab_taking_end_late(t);
	return !XLogRecPtrIsInvalid(end);
}

/* ---- CONFIRM ---- */

/*
 * S6: does replay after a crash always come past SNAPSHOT?  Then it knows whether CONFIRM
 * is durable.  A checkpoint that begins from now on leaves both records behind; one whose
 * redo pointer is between them, and that this does not see, has not logged its own record
 * yet and flushes CONFIRM with it.  We delay checkpoints.
 */
static bool
replay_knows(const AbTaking *t)
{
	return t->capture.live && GetRedoRecPtr() <= t->id.lsn;
}

/* Step 8. */
void
ab_taking_confirm(AbTaking *t)
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
	ab_taking_end_late(t);
	t->done = true;
	ab_snaptable_confirm(t->id);
	AB_FAILPOINT_NO_ERROR("snapshot-confirmed");
	pfree(pending);
	pfree(manifest);
}
