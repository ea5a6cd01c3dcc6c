/*
 * ab_snapshot_redo.c
 *	  Replaying SNAPSHOT, CONFIRM and RETIRE.
 *
 * The startup process only.  An error keeps the server from starting, so a
 * snapshot that cannot be captured is marked poisoned, and only the failure to do
 * even that is raised.
 *
 * When the record is replayed on a consistent standby, the source's files are
 * exactly as they were at its position, once the buffers are flushed.  Before that
 * they may be from the future: then only files made when the time was right can
 * be used, by this server before a crash or, in a base backup, by its primary.
 */
#include "ab_snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "lib/stringinfo.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"

#include "ab_caught.h"
#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_images.h"
#include "ab_kept.h"
#include "ab_method.h"
#include "ab_poisonmark.h"
#include "ab_recovery.h"
#include "ab_shmem.h"
#include "ab_snaptable.h"
#include "ab_unseen.h"
#include "ab_wal.h"

/* ---- is what is there good? ---- */

static bool
layer_crc_matches(int fd, const AbManifestHeader *h)
{
	PGAlignedXLogBlock chunk;
	off_t		length = (off_t) h->pages_blocks * BLCKSZ;
	pg_crc32c	crc;

	if ((h->flags & AB_MANIFEST_HAS_PAGES_CRC) == 0)
		return false;
	INIT_CRC32C(crc);
	for (off_t at = 0; at < length; at += XLOG_BLCKSZ)
	{
		int			wanted = (int) Min(length - at, (off_t) XLOG_BLCKSZ);

		ab_capture_interrupts();
		if (pg_pread(fd, chunk.data, wanted, at) != wanted)
			return false;
		COMP_CRC32C(crc, chunk.data, wanted);
	}
	FIN_CRC32C(crc);
	return EQ_CRC32C(crc, h->pages_crc);
}

static bool
layer_is_sound(AbSnapId id, const AbManifestHeader *h)
{
	char	   *path = ab_snapshot_path(id, ".pages");
	int			fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	struct stat st;
	bool		sound;

	pfree(path);
	if (fd < 0)
		return false;
	sound = fstat(fd, &st) == 0 && st.st_size == (off_t) h->pages_blocks * BLCKSZ;
	if (sound && ab_recovery_in_backup())
		sound = layer_crc_matches(fd, h);
	CloseTransientFile(fd);
	return sound;
}

static bool
is_sound(AbSnapId id, const char *suffix)
{
	char	   *path = ab_snapshot_path(id, suffix);
	AbManifest	m;
	char	   *image;
	size_t		len;

	image = ab_file_read(path, &len);
	pfree(path);
	return image != NULL && ab_manifest_check(image, len, &m) == NULL &&
		AbSnapIdEquals(m.h->id, id) &&
		((m.h->flags & AB_MANIFEST_LIVE) || layer_is_sound(id, m.h));
}

static void
remove_suffix(AbSnapId id, const char *suffix)
{
	char	   *path = ab_snapshot_path(id, suffix);

	(void) ab_file_remove_durably(path);
	pfree(path);
}

/*
 * Only one snapshot of a database is taken at a time, so what is still pending of
 * this one from before was given up, by a primary that crashed.
 */
static void
remove_dead_pending(Oid source_db, AbSnapId id)
{
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;

	while ((de = ReadDir(dir, AB_SNAPSHOT_DIR)) != NULL)
	{
		AbSnapId	old;
		char	   *path;
		char	   *image;
		AbManifestHeader h;
		size_t		len;

		if (!ab_snapshot_parse_file(de->d_name, ".pending", &old) ||
			old.lsn >= id.lsn)
			continue;
		path = ab_snapshot_path(old, ".pending");
		image = ab_file_read(path, &len);
		if (image == NULL || len < sizeof(h))
			continue;
		memcpy(&h, image, sizeof(h));
		if (h.source_db == source_db)
			ab_snapshot_remove_files(old, AB_RETIRE_MANIFEST | AB_RETIRE_PAGES);
	}
	FreeDir(dir);
}

/* ---- SNAPSHOT ---- */

/* What the record says, with the arrays where they can be used. */
typedef struct Replay
{
	xl_ab_snapshot rec;
	AbForkEntry *forks;
	AbLayerRef *layers;
	AbRun	   *runs;
	char	   *relmap;
	AbSnapId	id;
	AbCapture	capture;
} Replay;

/* The next array of the record, where it can be used; never NULL. */
static void *
take_array(char **data, char *end, uint32 n, size_t size)
{
	void	   *array;

	if ((size_t) (end - *data) < n * size)
		elog(PANIC, "agent_branch: SNAPSHOT record has the wrong length");
	array = palloc_extended(Max(n * size, 1), MCXT_ALLOC_HUGE);
	memcpy(array, *data, n * size);
	*data += n * size;
	return array;
}

static void
unpack(XLogReaderState *record, Replay *r)
{
	char	   *data = XLogRecGetData(record);
	char	   *end = data + XLogRecGetDataLen(record);

	memset(r, 0, sizeof(*r));
	memcpy(&r->rec, data, sizeof(r->rec));
	data += sizeof(r->rec);
	r->forks = take_array(&data, end, r->rec.nforks, sizeof(AbForkEntry));
	r->layers = take_array(&data, end, r->rec.nlayers, sizeof(AbLayerRef));
	r->runs = take_array(&data, end, r->rec.nruns, sizeof(AbRun));
	r->relmap = take_array(&data, end, 1, AB_RELMAP_SIZE);
	r->id = ab_snapid_make(r->rec.tli, record->EndRecPtr);
}

/* ---- marks ---- */

/*
 * Why, and the map: a branch of the snapshot gets it, so that its sessions come as far
 * as being told (ab_format.h).
 */
static void
poison(const Replay *r)
{
	char	   *path = ab_snapshot_path(r->id, ".poisoned");
	StringInfoData mark;

	initStringInfo(&mark);
	appendStringInfoString(&mark, ab_recovery_is_consistent_at(r->id.lsn) ?
						   "This server could not keep its pages when it replayed that the snapshot was taken." :
						   "The snapshot was taken while the files that this server began with were being copied.");
	appendStringInfoChar(&mark, '\0');
	appendBinaryStringInfo(&mark, r->relmap, AB_RELMAP_SIZE);

	/* the mark first: from now on nothing reads what is there */
	ab_file_write_durably(path, mark.data, mark.len);
	remove_suffix(r->id, ".pending");
	pfree(mark.data);
	pfree(path);
}

/*
 * The same, where a full disk must not keep the server from starting: without its
 * manifest a snapshot cannot be read either.
 */
static void
poison_somehow(const Replay *r)
{
	MemoryContext cxt = CurrentMemoryContext;

	PG_TRY();
	{
		poison(r);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		EmitErrorReport();
		FlushErrorState();
		remove_suffix(r->id, ".manifest");
		remove_suffix(r->id, ".pending");
	}
	PG_END_TRY();
}

/* ---- making the files ---- */

static void
fill_header(const Replay *r, AbManifestHeader *h)
{
	memset(h, 0, sizeof(*h));
	h->id = r->id;
	h->base = r->rec.base;
	h->source_db = r->rec.source_db;
	h->source_spc = r->rec.source_spc;
	h->frozen_xid = r->rec.frozen_xid;
	h->min_multi = r->rec.min_multi;
	h->taken_at = r->rec.taken_at;
	h->depth = r->rec.depth;
	h->flags = r->rec.flags & AB_MANIFEST_LIVE;
}

static void
write_captured(Replay *r)
{
	AbCapture  *c = &r->capture;
	char	   *pending = ab_snapshot_path(r->id, ".pending");
	AbManifestHeader h;
	char	   *image;
	size_t		len;

	fill_header(r, &h);
	h.pages_blocks = ab_layer_writer_nblocks(c->layer);
	ab_layer_writer_sync(c->layer);
	if (ab_layer_writer_crc(c->layer, &h.pages_crc))
		h.flags |= AB_MANIFEST_HAS_PAGES_CRC;
	image = ab_builder_finish(c->builder, &h, &len);

	ab_layer_writer_publish(c->layer, r->id);
	AB_FAILPOINT_NO_ERROR("redo-layer-published");
	c->layer = NULL;
	pg_atomic_fetch_add_u32(&ab_shared->layer_generation, 1);
	ab_file_write_durably(pending, image, len);
	remove_suffix(r->id, ".poisoned");
	pfree(pending);
}

static void
capture_locally(Replay *r)
{
	AbCapture  *c = &r->capture;

	c->source_db = r->rec.source_db;
	c->source_spc = r->rec.source_spc;
	c->wal_forks = r->forks;
	c->wal_nforks = r->rec.nforks;
	c->wal_layers = r->layers;
	c->wal_nlayers = r->rec.nlayers;
	if (AbSnapIdIsValid(r->rec.base))
		c->source_manifest = ab_manifest_acquire(r->rec.base);
	c->builder = ab_manifest_builder();
	c->layer = ab_layer_writer_open();
	ab_method_for(c)->capture(c);
	ab_builder_relmap(c->builder, r->relmap);
	write_captured(r);
}

static void
release_capture(AbCapture *c)
{
	ab_source_close(c);
	if (c->layer)
		ab_layer_writer_discard(c->layer);
	c->layer = NULL;
	if (c->source_manifest)
		ab_manifest_release((AbManifest *) c->source_manifest);
	c->source_manifest = NULL;
}

/* False, after a warning, if it cannot be done. */
static bool
try_to(void (*step) (Replay *r), Replay *r)
{
	AbBeforeTry before = ab_before_try();
	volatile bool done = false;

	PG_TRY();
	{
		step(r);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		LWLockReleaseAll();
		edata = ab_caught(&before);
		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg("could not keep a snapshot of database %u that the primary has taken",
						r->rec.source_db),
				 errdetail("%s", edata->message),
				 errhint("Its branches cannot be read on this server. Take a new base backup to get them back.")));
	}
	PG_END_TRY();
	release_capture(&r->capture);
	return done;
}

/* Forks, layers and runs as the record has them. */
static void
build_from_record(Replay *r)
{
	AbManifestBuilder *b = r->capture.builder;

	for (uint32 i = 0; i < r->rec.nlayers; i++)
		(void) ab_builder_layer(b, r->layers[i]);
	for (uint32 i = 0; i < r->rec.nforks; i++)
	{
		const AbForkEntry *e = &r->forks[i];
		AbForkKey	key = {e->spc, e->rel, e->fork};

		if ((uint64) e->first_run + e->nruns > r->rec.nruns)
			elog(PANIC, "agent_branch: SNAPSHOT record names runs that it does not have");
		ab_builder_fork(b, key, e->flags, e->nblocks);
		ab_builder_inherited(b, e->inherited);
		for (uint32 k = e->first_run; k < e->first_run + e->nruns; k++)
			ab_builder_run(b, r->runs[k].start, r->runs[k].count, r->runs[k].layer,
						   r->runs[k].position);
	}
}

/* The manifest of a live snapshot has nothing that the record has not. */
static void
write_live_manifest(Replay *r)
{
	AbCapture  *c = &r->capture;
	AbManifestHeader h;
	char	   *image;
	size_t		len;

	c->source_db = r->rec.source_db;
	c->source_spc = r->rec.source_spc;
	c->wal_forks = r->forks;
	c->wal_nforks = r->rec.nforks;
	c->live = true;
	c->builder = ab_manifest_builder();
	if (AbSnapIdIsValid(r->rec.base))
		build_from_record(r);
	else
		ab_method_for(c)->capture(c);
	ab_builder_relmap(c->builder, r->relmap);
	fill_header(r, &h);
	image = ab_builder_finish(c->builder, &h, &len);
	ab_file_write_durably(ab_snapshot_path(r->id, ".pending"), image, len);
}

/* Either name may have come through a power cut with contents that did not. */
static void
make_live_files(Replay *r)
{
	if (!is_sound(r->id, ".manifest"))
	{
		remove_suffix(r->id, ".manifest");
		if (!is_sound(r->id, ".pending"))
			write_live_manifest(r);
	}
	AB_FAILPOINT_NO_ERROR("redo-snapshot-files");
	ab_unseen_save(r->rec.source_db, ab_epoch_view(r->id));
	AB_FAILPOINT_NO_ERROR("redo-snapshot-unseen");
	ab_images_begin(r->rec.source_db, r->id, true);
}

/*
 * From this position on old pages are saved for it.  What the files have after the
 * flush is what it sees, apart from images that are there already, or that records to
 * come bring (README.before_images).
 */
static void
redo_live_snapshot(Replay *r)
{
	Oid			db = r->rec.source_db;
	AbSnapSlot	slot;
	bool		made;

	FlushDatabaseBuffers(db);
	AB_FAILPOINT_NO_ERROR("redo-snapshot-flushed");
	made = try_to(make_live_files, r);
	if (!made)
		poison_somehow(r);
	ab_guard_close(db);
	ab_snaptable_add(r->id, db, false, true);
	ab_snaptable_reached(r->id, !made || ab_poisonmark_is_beside(r->id));
	ab_epoch_recompute(db);
	AB_FAILPOINT_NO_ERROR("redo-snapshot-live");
	ab_guard_open(db);

	/* without room in the table nothing is kept for it */
	if (!ab_snaptable_get(r->id, &slot))
		poison_somehow(r);
}

static void
redo_snapshot(XLogReaderState *record)
{
	Replay		r;

	unpack(record, &r);
	remove_dead_pending(r.rec.source_db, r.id);
	if (r.rec.flags & AB_MANIFEST_LIVE)
	{
		redo_live_snapshot(&r);
		return;
	}
	if (is_sound(r.id, ".manifest") || is_sound(r.id, ".pending"))
		return;
	if (ab_recovery_is_consistent_at(record->EndRecPtr))
	{
		FlushDatabaseBuffers(r.rec.source_db);
		if (try_to(capture_locally, &r))
			return;
	}
	poison(&r);
}

void
ab_snapshot_redo(XLogReaderState *record)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch snapshot redo",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(cxt);

	redo_snapshot(record);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(cxt);
}

/* ---- CONFIRM, RETIRE ---- */

void
ab_confirm_redo(XLogReaderState *record)
{
	xl_ab_confirm rec;
	char	   *pending;
	char	   *manifest;
	char	   *poisoned;

	memcpy(&rec, XLogRecGetData(record), sizeof(rec));
	pending = ab_snapshot_path(rec.id, ".pending");
	manifest = ab_snapshot_path(rec.id, ".manifest");
	poisoned = ab_snapshot_path(rec.id, ".poisoned");

	if (ab_file_exists(pending))
		(void) durable_rename(pending, manifest, ERROR);
	AB_FAILPOINT_NO_ERROR("redo-confirm-renamed");

	/* neither: it is retired later in WAL, and was before a crash already */
	if (ab_file_exists(manifest) || ab_file_exists(poisoned))
	{
		AbManifestHeader h = {0};

		(void) ab_manifest_read_header(rec.id, &h);
		ab_snaptable_add(rec.id, h.source_db, true, (h.flags & AB_MANIFEST_LIVE) != 0);
		ab_snaptable_confirm(rec.id);
	}
	pfree(pending);
	pfree(manifest);
	pfree(poisoned);
}

/*
 * In files that are ahead of replay relations may be noted as dropped (ab_kept.c) that are not
 * yet, for snapshots of which nothing is here: a backup may have copied it earlier, and a power
 * cut taken it away.  What nobody seems to need stays until replay has come to the files' time.
 */
static bool reclaim_later = false;

/*
 * Space that cannot be given back now is given back some time later: of relations that were
 * dropped in db, or, of none, of all that its snapshots held.
 */
static void
try_reclaim(Oid db, const AbKeptRelation *gone, int ngone)
{
	MemoryContext cxt = CurrentMemoryContext;

	PG_TRY();
	{
		if (ngone > 0)
			ab_kept_redo(db, gone, ngone);
		else
			(void) ab_snapshot_reclaim(db, NIL, false);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		EmitErrorReport();
		FlushErrorState();
		LWLockReleaseAll();
	}
	PG_END_TRY();
}

void
ab_retire_redo(XLogReaderState *record)
{
	xl_ab_retire rec;
	Oid			live_db;

	memcpy(&rec, XLogRecGetData(record), sizeof(rec));

	/*
	 * The files go for good, so this server is not consistent again before it
	 * has replayed up to here (moves minRecoveryPoint).
	 */
	XLogFlush(record->EndRecPtr);
	AB_FAILPOINT_NO_ERROR("redo-retire");
	live_db = ab_snapshot_live_source(rec.id);
	ab_snapshot_remove_files(rec.id, rec.what);
	AB_FAILPOINT_NO_ERROR("redo-retire-removed");
	if (!OidIsValid(live_db))
		return;
	if (ab_recovery_files_are_ahead())
		reclaim_later = true;
	else
		try_reclaim(live_db, NULL, 0);
}

void
ab_unkeep_redo(XLogReaderState *record)
{
	const xl_ab_unkeep *rec = (const xl_ab_unkeep *) XLogRecGetData(record);

	/*
	 * Not after a crash: what goes is listed, and told from a relation that was given the number
	 * since, whose content need not be in WAL with wal_level = minimal.
	 */
	if (!ArchiveRecoveryRequested && !ab_recovery_in_backup())
		return;
	XLogFlush(record->EndRecPtr);
	try_reclaim(rec->db, (const AbKeptRelation *) (rec + 1), rec->n);
}

void
ab_retire_redo_rest(void)
{
	int			n;
	Oid		   *dbs;

	if (likely(!reclaim_later) || ab_recovery_files_are_ahead())
		return;
	reclaim_later = false;
	dbs = ab_images_databases(&n);
	for (int i = 0; i < n; i++)
		try_reclaim(dbs[i], NULL, 0);
	pfree(dbs);
}
