/*
 * ab_images.c
 *	  The store of before-images: saving and looking up.
 *
 * Saving: whoever changes a file of a plain database, in any process, perhaps in a
 * critical section; one at a time for each database (capture_lock).  Looking up: also
 * sessions of branches, under image_lock alone.  Static memory, raw system calls.
 *
 * An image is durable before the index or a chain leads to it, and everything that
 * leads to it is a cache, so a crash loses nothing that anybody was told of.
 */
#include "ab_images.h"

#include "ab_failpoint.h"
#include "ab_imagechain.h"
#include "ab_shmem.h"

/* What one ab_images_put() does; under the capture lock. */
static struct
{
	Oid			db;
	AbSnapId	epoch;
	int			n;
	const AbImagePage *pages;
	uint32		first;			/* slot of pages[0] */
	AbImageRef	head[AB_IMAGE_BATCH];	/* in the index before */
	AbImageEntry entry[AB_IMAGE_BATCH];
	const char *data[AB_IMAGE_BATCH];

	/* only for "replace": the image that is superseded, or the next newer one */
	AbImageRef	superseded[AB_IMAGE_BATCH];
	AbImageRef	above[AB_IMAGE_BATCH];
}			put;

static AbImageRef
new_ref(int i)
{
	return ab_image_ref(put.epoch, put.first + i);
}

/* How many pages from i on are consecutive blocks of one fork. */
static int
run_length(int i)
{
	const AbImagePage *p = &put.pages[i];
	int			n = 1;

	while (i + n < put.n && p[n].block == p->block + n &&
		   p[n].key.rel == p->key.rel && p[n].key.fork == p->key.fork &&
		   p[n].key.spc == p->key.spc)
		n++;
	return n;
}

/* ---- where the new images go ---- */

/* Below images of later epochs or instead of one of the same; else on top. */
static bool
plan_replace(int i)
{
	AbImageEntry *e = &put.entry[i];
	AbImageCursor c;

	switch (ab_image_find(&c, put.db, put.pages[i].key, put.pages[i].block, put.epoch.lsn))
	{
		case AB_STEP_FAILED:
			return false;
		case AB_STEP_END:
			ab_image_link(put.db, put.head[i], e);
			return true;
		case AB_STEP_MOVED:
			break;
	}
	if (c.at.lsn == put.epoch.lsn)
	{
		put.superseded[i] = c.at;
		e->prev = c.entry.prev;
		e->jump = c.entry.jump;
		e->depth = c.entry.depth;
		e->jump_depth = c.entry.jump_depth;
	}
	else
	{
		/* a jump further down might cross one from above */
		put.above[i] = c.at;
		e->prev = c.entry.prev;
		e->jump = c.entry.prev;
		e->depth = c.entry.depth;
		e->jump_depth = c.entry.depth - 1;
	}
	return true;
}

static bool
plan(bool replace)
{
	int			run;

	memset(put.superseded, 0, sizeof(put.superseded));
	memset(put.above, 0, sizeof(put.above));
	for (int i = 0; i < put.n; i += run)
	{
		run = run_length(i);
		if (!ab_image_heads_read(put.db, put.pages[i].key, put.pages[i].block, run,
								 &put.head[i]))
			return false;
	}
	for (int i = 0; i < put.n; i++)
	{
		AbImageEntry *e = &put.entry[i];

		memset(e, 0, sizeof(*e));
		e->spc = put.pages[i].key.spc;
		e->rel = put.pages[i].key.rel;
		e->fork = put.pages[i].key.fork;
		e->block = put.pages[i].block;
		e->page_crc = ab_image_page_crc(put.pages[i].page);
		put.data[i] = put.pages[i].page;
		if (replace)
		{
			if (!plan_replace(i))
				return false;
		}
		else if (put.head[i].lsn >= put.epoch.lsn)
		{
			errno = EEXIST;
			return false;
		}
		else
			ab_image_link(put.db, put.head[i], e);
	}
	return true;
}

/* ---- making them known; image_lock is held exclusively ---- */

static bool
set_prev(AbImageRef at, AbImageRef prev)
{
	AbImageEntry e;

	if (!ab_image_entry_read(put.db, at, &e))
		return false;
	e.prev = prev;
	return ab_image_entry_write(put.db, at, &e);
}

static bool
publish_run(int i, int run)
{
	AbImageRef	refs[AB_IMAGE_BATCH];

	for (int k = 0; k < run; k++)
		refs[k] = new_ref(i + k);
	return ab_image_heads_write(put.db, put.pages[i].key, put.pages[i].block, run, refs);
}

static bool
publish_one(int i)
{
	const AbImagePage *p = &put.pages[i];

	if (AbImageRefIsValid(put.superseded[i]))
		return ab_image_replace(put.db, p->key, p->block, put.superseded[i], new_ref(i));
	if (AbImageRefIsValid(put.above[i]))
	{
		/* there may be less that needs it now */
		ab_imagefile_set_swept(put.db, ab_image_epoch(put.above[i]), 0);
		return set_prev(put.above[i], new_ref(i));
	}
	return publish_run(i, 1);
}

/*
 * An image that was superseded stays so: the new one is as good, and without it
 * there would be none if the old one could not be brought back.
 */
static bool
withdraw_one(int i)
{
	const AbImagePage *p = &put.pages[i];

	if (AbImageRefIsValid(put.superseded[i]))
		return false;
	if (AbImageRefIsValid(put.above[i]))
		return set_prev(put.above[i], put.entry[i].prev);
	return ab_image_heads_write(put.db, p->key, p->block, 1, &put.head[i]);
}

/*
 * All or nothing.  *left: some of it could not be taken back.  That does no harm: the
 * images are durable and right, only nobody counts on them.
 */
static bool
publish(bool replace, bool *left)
{
	int			done;
	int			run;
	int			save_errno;

	*left = false;
	for (done = 0; done < put.n; done += run)
	{
		run = replace ? 1 : run_length(done);
		if (!(replace ? publish_one(done) : publish_run(done, run)))
			break;
	}
	if (done < put.n)
	{
		save_errno = errno;
		for (int i = done + run - 1; i >= 0; i--)
			if (!withdraw_one(i))
				*left = true;
		errno = save_errno;
		return false;
	}
	return true;
}

bool
ab_images_put(Oid db, AbSnapId epoch, int n, const AbImagePage *pages, bool replace,
			  AbImagesLog log)
{
	bool		ok;
	bool		left = false;
	int			save_errno;

	Assert(n <= AB_IMAGE_BATCH);
	if (n == 0)
		return true;
	put.db = db;
	put.epoch = epoch;
	put.n = n;
	put.pages = pages;
	if (ab_imagefile_epoch(db, epoch) < 0)
		return false;
	if (!plan(replace) ||
		!ab_image_append(db, epoch, n, put.entry, put.data, &put.first))
	{
		/* to the caller that means: no file of this epoch */
		if (errno == ENOENT)
			errno = EIO;
		return false;
	}

	AB_FAILPOINT_NO_ERROR("image-durable");
	if (log)
		log(db, epoch, n, pages);
	AB_FAILPOINT_NO_ERROR("image-logged");
	ab_imagefile_lock(db, LW_EXCLUSIVE);
	ok = publish(replace, &left);
	save_errno = errno;
	ab_imagefile_unlock(db);
	AB_FAILPOINT_NO_ERROR("image-published");
	if (ok)
		ab_image_note_synced(db, epoch, put.first, n);
	if (ok && replace)
		ab_imagefile_set_swept(db, epoch, 0);
	if (!ok && !left)
		ab_image_disown(db, epoch, put.first, n, put.entry);
	errno = save_errno == ENOENT ? EIO : save_errno;
	return ok;
}

/* ---- looking up ---- */

/*
 * No image of any block of the fork: without a lock, since an index file is made,
 * and the generation moved, before it gets its first entry.
 */
static bool
no_index(Oid db, AbForkKey key)
{
	return ab_imagefile_index(db, key, false) < 0 && errno == ENOENT;
}

bool
ab_images_none(Oid db, AbForkKey key, uint32 *when)
{
	*when = pg_atomic_read_u32(&ab_shared->image_generation);
	return no_index(db, key);
}

bool
ab_images_still_none(uint32 when)
{
	/* what the caller read before has been read */
	pg_memory_barrier();
	return pg_atomic_read_u32(&ab_shared->image_generation) == when;
}

bool
ab_images_newest(Oid db, AbForkKey key, BlockNumber block, XLogRecPtr *epoch)
{
	AbImageRef	head;
	bool		ok;
	int			save_errno;

	*epoch = InvalidXLogRecPtr;
	if (no_index(db, key))
		return true;
	ab_imagefile_lock(db, LW_SHARED);
	ok = ab_image_heads_read(db, key, block, 1, &head);
	save_errno = errno;
	ab_imagefile_unlock(db);
	errno = save_errno;
	if (ok)
		*epoch = head.lsn;
	return ok;
}

/* Find and, if "page" is given, read what "from" sees, all under the lock. */
static AbImageStep
find_locked(AbImageCursor *c, Oid db, AbForkKey key, BlockNumber block,
			XLogRecPtr from, char *page)
{
	AbImageStep step;
	int			save_errno;

	ab_imagefile_lock(db, LW_SHARED);
	step = ab_image_find(c, db, key, block, from);
	if (step == AB_STEP_MOVED && page &&
		!ab_image_page_read(db, c->at, &c->entry, page))
		step = AB_STEP_FAILED;
	save_errno = errno;
	ab_imagefile_unlock(db);
	errno = save_errno;
	return step;
}

/*
 * The page is read without the lock: who saves images must not wait for a disk to seek.
 * If it is not what it should be, it may have been superseded since and given back;
 * so again, with the lock.
 */
AbImageAnswer
ab_images_read(Oid db, XLogRecPtr from, AbForkKey key, BlockNumber block, char *page)
{
	AbImageCursor c;
	AbImageStep step;

	if (no_index(db, key))
		return AB_IMAGE_NONE;
	step = find_locked(&c, db, key, block, from, NULL);
	if (step == AB_STEP_END)
		return AB_IMAGE_NONE;
	if (step == AB_STEP_MOVED && ab_image_page_read(db, c.at, &c.entry, page))
		return AB_IMAGE_FOUND;
	step = find_locked(&c, db, key, block, from, page);
	if (step == AB_STEP_END)
		return AB_IMAGE_NONE;
	return step == AB_STEP_MOVED ? AB_IMAGE_FOUND : AB_IMAGE_FAILED;
}

bool
ab_images_has(Oid db, AbSnapId epoch, AbForkKey key, BlockNumber block, pg_crc32c crc)
{
	static PGAlignedBlock page;
	AbImageCursor c;

	return !no_index(db, key) &&
		find_locked(&c, db, key, block, epoch.lsn, NULL) == AB_STEP_MOVED &&
		AbSnapIdEquals(ab_image_epoch(c.at), epoch) && c.entry.page_crc == crc &&
		ab_image_page_read(db, c.at, &c.entry, page.data);
}
