/*
 * ab_capture.c
 *	  Saving old pages of databases before they are overwritten.
 *
 * Whoever changes a file of a database with a living snapshot comes through
 * here: backends of any database, checkpointer, background writer, startup process.
 * One at a time for each database (capture lock), so that those who wait find their
 * block saved by the batch of the one before.
 *
 * Nothing is allocated and nothing raised: static memory, raw system calls.  What a
 * crash leaves: images that no index entry names and over whose blocks nothing was
 * written yet (E1).
 */
#include "ab_capture.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"

#include "ab_epoch.h"
#include "ab_failpoint.h"
#include "ab_image.h"
#include "ab_images.h"
#include "ab_parentfile.h"
#include "ab_recovery.h"
#include "ab_snaptable.h"
#include "ab_wal.h"

/* Buffer descriptors looked at to fill one batch. */
#define LOOK_AHEAD 32768

/* What one batch saves; process-local, used under the capture lock and just after. */
static AbImagePage batch[AB_IMAGE_BATCH];
static PGAlignedBlock batch_page[AB_IMAGE_BATCH];
static int	nbatch;

typedef enum Need
{
	NEED_NOTHING,
	NEED_IMAGE,
	NEED_UNKNOWN				/* errno; 0: something is damaged */
} Need;

static AbForkKey
key_of(RelFileNode rnode, ForkNumber fork)
{
	AbForkKey	key = {rnode.spcNode, rnode.relNode, fork};

	return key;
}

/*
 * Does the live snapshot see this block in the parent's own file?  *newest: epoch of the
 * newest image of the block, 0 if there is none.  In recovery there may be images of
 * epochs that are yet to come; such a block has not been changed in this one.
 */
static Need
need_of(Oid db, AbSnapId live, AbForkKey key, BlockNumber block, XLogRecPtr *newest)
{
	bool		sees;

	*newest = 0;
	errno = 0;
	if (!ab_epoch_sees(live, key, block, &sees))
		return NEED_UNKNOWN;
	if (!sees)
		return NEED_NOTHING;
	if (!ab_images_newest(db, key, block, newest))
		return NEED_UNKNOWN;
	return *newest >= live.lsn ? NEED_NOTHING : NEED_IMAGE;
}

/* ---- batches ---- */

static void
add_to_batch(AbForkKey key, BlockNumber block)
{
	batch[nbatch].key = key;
	batch[nbatch].block = block;
	nbatch++;
}

static int
compare_pages(const void *a, const void *b)
{
	const AbImagePage *x = a;
	const AbImagePage *y = b;

	if (x->key.spc != y->key.spc)
		return x->key.spc < y->key.spc ? -1 : 1;
	if (x->key.rel != y->key.rel)
		return x->key.rel < y->key.rel ? -1 : 1;
	if (x->key.fork != y->key.fork)
		return x->key.fork < y->key.fork ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

/*
 * Dirty buffers of the database will be written before long: their old pages go
 * with the same sync.  Looked at without locks: a tag that changes meanwhile costs an
 * image that nobody asked for, and does no harm.
 */
static void
look_among(Oid db, AbSnapId live, Oid rel, int questions)
{
	static int	next = 0;
	const uint32 wanted = BM_DIRTY | BM_VALID | BM_TAG_VALID | BM_PERMANENT;
	int			n = Min(NBuffers, LOOK_AHEAD);

	for (int i = 0; i < n && nbatch < AB_IMAGE_BATCH && questions > 0; i++)
	{
		BufferDesc *desc = GetBufferDescriptor(next);
		BufferTag	tag;
		XLogRecPtr	newest;

		next = next + 1 < NBuffers ? next + 1 : 0;
		if ((pg_atomic_read_u32(&desc->state) & wanted) != wanted)
			continue;
		tag = desc->tag;
		if (tag.rnode.dbNode != db || (OidIsValid(rel) && tag.rnode.relNode != rel) ||
			tag.forkNum < 0 || tag.forkNum > MAX_FORKNUM)
			continue;
		questions--;
		if (need_of(db, live, key_of(tag.rnode, tag.forkNum), tag.blockNum,
					&newest) == NEED_IMAGE)
			add_to_batch(key_of(tag.rnode, tag.forkNum), tag.blockNum);
	}
}

/*
 * First the relation at hand, whose buffers a ring may reuse soon.  When nearly all
 * is saved already, asking costs more than it finds: hence the bounds.
 */
static void
look_ahead(Oid db, AbSnapId live)
{
	look_among(db, live, batch[0].key.rel, 1024);
	look_among(db, live, InvalidOid, 512);
}

/* In the order of the files, none twice. */
static void
sort_batch(void)
{
	int			n = 0;

	qsort(batch, nbatch, sizeof(AbImagePage), compare_pages);
	for (int i = 0; i < nbatch; i++)
		if (n == 0 || compare_pages(&batch[n - 1], &batch[i]) != 0)
			batch[n++] = batch[i];
	nbatch = n;
}

/*
 * Read the pages.  One that cannot be read and was not asked for is left out; false
 * with errno if one of those that were asked for ("all": all of them) is it.
 */
static bool
read_batch(Oid db, AbSnapId live, const AbImagePage *asked, bool all)
{
	bool		missing_ok = ab_epoch_is_of_branch(live);
	uint32		begun = ab_parentfile_begin();
	bool		ok = true;
	int			save_errno;
	int			n = 0;

	for (int i = 0; i < nbatch && ok; i++)
	{
		RelFileNode rnode = {batch[i].key.spc, db, batch[i].key.rel};

		if (ab_parentfile_read(AB_NO_SNAPSHOT, rnode, batch[i].key.fork, batch[i].block,
							   missing_ok, batch_page[n].data))
		{
			batch[n] = batch[i];
			batch[n].page = batch_page[n].data;
			n++;
		}
		else
			ok = !all && compare_pages(&batch[i], asked) != 0;
	}
	save_errno = errno;
	ab_parentfile_end(begun);
	errno = save_errno;
	nbatch = n;
	return ok;
}

/* The copy in WAL that a base backup needs (M14); the store does without. */
static void
log_images(Oid db, AbSnapId epoch, int n, const AbImagePage *pages)
{
	if (!XLogIsNeeded() || !ab_image_allowed())
		return;
	for (int i = 0; i < n; i++)
		(void) ab_wal_before_image(epoch, db, pages[i].key, pages[i].block, 0,
								   pages[i].page);
}

static void
log_window_images(Oid db, AbSnapId epoch, int n, const AbImagePage *pages)
{
	for (int i = 0; i < n && XLogIsNeeded(); i++)
		(void) ab_wal_before_image(epoch, db, pages[i].key, pages[i].block,
								   AB_IMAGE_WINDOW, pages[i].page);
}

void
ab_capture_block(RelFileNode rnode, ForkNumber fork, BlockNumber block)
{
	Oid			db = rnode.dbNode;
	AbForkKey	key = key_of(rnode, fork);
	AbImagePage asked = {key, block, NULL};
	AbSnapId	live;
	XLogRecPtr	newest;
	Need		need;
	int			error;

	if (likely(!ab_epoch_live(db, &live)))
		return;
	need = need_of(db, live, key, block, &newest);
	if (need == NEED_NOTHING)
		return;

	error = errno;				/* waiting for a lock has an errno of its own */
	LWLockAcquire(ab_capture_lock(db), LW_EXCLUSIVE);
	nbatch = 0;
	if (need == NEED_IMAGE)
	{
		need = need_of(db, live, key, block, &newest);
		error = errno;
	}
	if (need == NEED_IMAGE)
	{
		add_to_batch(key, block);
		look_ahead(db, live);
		sort_batch();
		if (!read_batch(db, live, &asked, false) ||
			!ab_images_put(db, live, nbatch, batch, false, log_images))
		{
			need = NEED_UNKNOWN;
			error = errno;
		}
	}
	if (need == NEED_UNKNOWN)
		ab_epoch_poison(db, live, newest, error);
	LWLockRelease(ab_capture_lock(db));
}

/* Blocks [from, end) of a fork, those that the live snapshot sees and of which nothing is saved. */
static void
capture_blocks(Oid db, AbSnapId live, AbForkKey key, BlockNumber from, BlockNumber end)
{
	while (from < end)
	{
		bool		ok = true;

		LWLockAcquire(ab_capture_lock(db), LW_EXCLUSIVE);
		nbatch = 0;
		for (; from < end && nbatch < AB_IMAGE_BATCH && ok; from++)
		{
			XLogRecPtr	newest;
			Need		need = need_of(db, live, key, from, &newest);

			ok = need != NEED_UNKNOWN;
			if (need == NEED_IMAGE)
				add_to_batch(key, from);
		}
		if (ok && nbatch > 0)
			ok = read_batch(db, live, NULL, true) &&
				ab_images_put(db, live, nbatch, batch, false, log_images);
		if (!ok)
		{
			/* what comes behind is lost as well */
			ab_epoch_poison(db, live, 0, errno);
			from = end;
		}
		LWLockRelease(ab_capture_lock(db));
	}
}

void
ab_capture_tail(RelFileNode rnode, ForkNumber fork, BlockNumber from)
{
	Oid			db = rnode.dbNode;
	AbForkKey	key = key_of(rnode, fork);
	AbSnapId	live;
	BlockNumber nblocks;

	if (likely(!ab_epoch_live(db, &live)))
		return;
	errno = 0;
	if (!ab_epoch_nblocks(live, key, &nblocks))
	{
		ab_epoch_poison(db, live, 0, errno);
		return;
	}
	AB_FAILPOINT_NO_ERROR("capture-tail");
	capture_blocks(db, live, key, from, nblocks);
}

void
ab_capture_range(RelFileNode rnode, ForkNumber fork, BlockNumber from, BlockNumber end)
{
	AbSnapId	live;

	if (ab_epoch_live(rnode.dbNode, &live))
		capture_blocks(rnode.dbNode, live, key_of(rnode, fork), from, end);
}

/* ---- around a snapshot's record ---- */

/* The newest living snapshot of db before id. */
static bool
previous_living(Oid db, AbSnapId id, AbSnapId *previous)
{
	bool		found;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	found = ab_snaptable_newest_live(db, id.lsn, previous);
	LWLockRelease(ab_shared->snap_lock);
	return found;
}

/* One image, superseding what its epoch has of the block. */
static bool
put_one(Oid db, AbSnapId epoch, AbForkKey key, BlockNumber block, const char *page,
		AbImagesLog log)
{
	AbImagePage one = {key, block, page};

	return ab_images_put(db, epoch, 1, &one, true, log);
}

static bool
save_window_page(Oid db, AbSnapId id, RelFileNode rnode, AbForkKey key,
				 BlockNumber block, const char *page)
{
	PGAlignedBlock old;
	AbSnapId	previous;

	if (previous_living(db, id, &previous))
	{
		switch (ab_images_read(db, previous.lsn, key, block, old.data))
		{
			case AB_IMAGE_FOUND:
				break;
			case AB_IMAGE_NONE:
				if (!ab_parentfile_read(AB_NO_SNAPSHOT, rnode, key.fork, block,
										ab_epoch_is_of_branch(id), old.data))
					return false;
				break;
			case AB_IMAGE_FAILED:
				return false;
		}
		if (!put_one(db, previous, key, block, old.data, log_window_images))
			return false;
		AB_FAILPOINT_NO_ERROR("window-older-saved");
	}
	return put_one(db, id, key, block, page, log_window_images);
}

void
ab_capture_window(AbSnapId id, RelFileNode rnode, ForkNumber fork, BlockNumber block,
				  const char *page)
{
	Oid			db = rnode.dbNode;
	uint32		begun = ab_parentfile_begin();
	bool		ok;
	int			error;

	ab_guard_enter(db);
	LWLockAcquire(ab_capture_lock(db), LW_EXCLUSIVE);
	errno = 0;
	ok = save_window_page(db, id, rnode, key_of(rnode, fork), block, page);
	error = errno;
	ab_parentfile_end(begun);
	LWLockRelease(ab_capture_lock(db));
	ab_guard_leave(db);
	errno = error;
	if (!ok && error == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not save block %u of relation %u for a snapshot: the image stored before is damaged",
						block, rnode.relNode)));
	if (!ok)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not save block %u of relation %u for a snapshot: %m",
						block, rnode.relNode)));
}

/* ---- replay ---- */

/*
 * What a running server saved it had made durable before it was logged, so a crash
 * lost nothing, and a standby saves for itself.  The files of a backup, though, may
 * lack it, and pages around a snapshot's record are the primary's to choose.
 */
static bool
is_wanted(const xl_ab_before_image *rec)
{
	if (ab_recovery_in_backup())
		return true;
	return (rec->flags & AB_IMAGE_WINDOW) && ArchiveRecoveryRequested;
}

/* The files may be from before the primary marked its snapshots, and from after. */
static void
redo_loss(const xl_ab_before_image *rec, const char *page)
{
	XLogRecPtr	newest_image;

	memcpy(&newest_image, page, sizeof(newest_image));
	ab_guard_enter(rec->db);
	ab_epoch_poison(rec->db, rec->epoch, newest_image, 0);
	ab_guard_leave(rec->db);
}

void
ab_capture_redo(XLogReaderState *record)
{
	xl_ab_before_image rec;
	const char *data = XLogRecGetData(record);
	PGAlignedBlock page;
	AbForkKey	key;
	pg_crc32c	crc;

	memcpy(&rec, data, sizeof(rec));
	data += sizeof(rec);
	if (!is_wanted(&rec))
		return;
	if (XLogRecGetDataLen(record) != sizeof(rec) + BLCKSZ - rec.hole_length)
		elog(PANIC, "agent_branch: BEFORE_IMAGE record has the wrong length");
	memset(page.data, 0, BLCKSZ);
	memcpy(page.data, data, rec.hole_offset);
	memcpy(page.data + rec.hole_offset + rec.hole_length, data + rec.hole_offset,
		   BLCKSZ - rec.hole_offset - rec.hole_length);
	key.spc = rec.spc;
	key.rel = rec.rel;
	key.fork = rec.fork;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, page.data, BLCKSZ);
	FIN_CRC32C(crc);

	if (rec.flags & AB_IMAGE_LOST)
	{
		redo_loss(&rec, page.data);
		return;
	}
	ab_guard_enter(rec.db);
	LWLockAcquire(ab_capture_lock(rec.db), LW_EXCLUSIVE);
	errno = 0;
	if (!ab_images_has(rec.db, rec.epoch, key, rec.block, crc) &&
		!put_one(rec.db, rec.epoch, key, rec.block, page.data, NULL) &&
		errno != ENOENT)		/* retired later in WAL, and gone already */
		ab_epoch_poison(rec.db, rec.epoch, 0, errno);
	LWLockRelease(ab_capture_lock(rec.db));
	ab_guard_leave(rec.db);
}
