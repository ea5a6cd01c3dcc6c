/*
 * ab_imagecheck.c
 *	  The store of before-images: does it keep its own rules?
 *
 * Backends, for branch.verify().  capture_lock and image_lock shared, for one group
 * or a piece of an index at a time; pages are read without a lock, since they do not
 * change while they count.
 */
#include "ab_images.h"

#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_imagechain.h"
#include "ab_shmem.h"

#define MAX_PROBLEMS	100
#define INDEX_PIECE		512		/* entries looked at under one lock */

typedef struct Check
{
	Oid			db;
	XLogRecPtr	oldest;			/* links to epochs before it may lead nowhere */
	List	   *problems;
	AbImageGroup *group;
	char	   *page;
} Check;

static void
lock_both(Oid db)
{
	LWLockAcquire(ab_capture_lock(db), LW_SHARED);
	ab_imagefile_lock(db, LW_SHARED);
}

static void
unlock_both(Oid db)
{
	ab_imagefile_unlock(db);
	LWLockRelease(ab_capture_lock(db));
}

static void
add(Check *c, char *problem)
{
	if (list_length(c->problems) < MAX_PROBLEMS)
		c->problems = lappend(c->problems, problem);
	else
		pfree(problem);
}

static void
add_file(Check *c, AbSnapId epoch, const char *what)
{
	char		path[MAXPGPATH];

	ab_images_path(path, c->db, epoch);
	add(c, psprintf("file \"%s\" %s", path, what));
}

static void
add_image(Check *c, AbImageRef at, const AbImageEntry *e, const char *what)
{
	char		path[MAXPGPATH];

	ab_images_path(path, c->db, ab_image_epoch(at));
	add(c, psprintf("image %u of file \"%s\" (block %u of relation %u, fork %d) %s",
					at.slot, path, e->block, e->rel, e->fork, what));
}

/* ---- .images files ---- */

/* Links in order, and a search for what it is leads to it. */
static void
check_links(Check *c, AbImageRef at, const AbImageEntry *e)
{
	AbForkKey	key = {e->spc, e->rel, e->fork};
	AbImageCursor cursor;

	if (e->prev.lsn >= at.lsn || e->jump.lsn > e->prev.lsn)
		add_image(c, at, e, "is linked to images that are not older");
	if (ab_image_find(&cursor, c->db, key, e->block, at.lsn) != AB_STEP_MOVED ||
		!ab_image_ref_equals(cursor.at, at))
		add_image(c, at, e, "is not found from the index");
}

static void
check_entries(Check *c, AbSnapId epoch, uint32 group, bool *linked)
{
	uint32		synced = ab_image_head_is_valid(&c->group->head) ?
		c->group->head.synced : 0;

	for (uint32 i = 0; i < AB_GROUP_SLOTS; i++)
	{
		AbImageRef	at = ab_image_ref(epoch, group * AB_GROUP_SLOTS + i);
		const AbImageEntry *e = &c->group->entry[i];

		linked[i] = false;
		if (!ab_image_entry_is_valid(at, e))
		{
			if (i < synced)
				add_image(c, at, e, "has a damaged entry");
		}
		else if (!(e->flags & AB_IMAGE_DEAD))
		{
			linked[i] = true;
			check_links(c, at, e);
		}
	}
}

/* Is it still of use, or was it given back while we looked? */
static bool
still_counts(Check *c, AbImageRef at)
{
	AbImageEntry e;
	bool		counts;

	lock_both(c->db);
	counts = ab_image_entry_read(c->db, at, &e) &&
		!(e.flags & (AB_IMAGE_DEAD | AB_IMAGE_GONE));
	unlock_both(c->db);
	return counts;
}

static void
check_pages(Check *c, AbSnapId epoch, uint32 group, const bool *linked)
{
	for (uint32 i = 0; i < AB_GROUP_SLOTS; i++)
	{
		AbImageRef	at = ab_image_ref(epoch, group * AB_GROUP_SLOTS + i);
		const AbImageEntry *e = &c->group->entry[i];

		if (linked[i] && !(e->flags & AB_IMAGE_GONE) &&
			!ab_image_page_read(c->db, at, e, c->page) && still_counts(c, at))
			add_image(c, at, e, "has a page with a wrong checksum");
	}
}

static void
check_file(Check *c, AbSnapId epoch)
{
	int			fd = ab_imagefile_epoch(c->db, epoch);
	uint32		nslots;

	if (fd < 0 && errno == ENOENT)
		return;					/* removed since */
	if (fd < 0 || !ab_imagefile_slots(fd, &nslots))
	{
		add_file(c, epoch, "cannot be read");
		return;
	}
	if (!ab_imagefile_header_is_valid(c->db, epoch))
		add_file(c, epoch, "has a damaged header");
	for (uint32 group = 0; group * AB_GROUP_SLOTS < nslots; group++)
	{
		bool		linked[AB_GROUP_SLOTS];
		bool		ok;

		CHECK_FOR_INTERRUPTS();
		lock_both(c->db);
		ok = ab_image_group_read(c->db, epoch, group, c->group);
		if (ok)
			check_entries(c, epoch, group, linked);
		unlock_both(c->db);
		if (!ok)
		{
			if (errno != ENOENT)
				add_file(c, epoch, "cannot be read");
			return;
		}
		check_pages(c, epoch, group, linked);
	}
}

/* ---- index files ---- */

static void
check_index_piece(Check *c, AbForkKey key, BlockNumber block, int n)
{
	AbImageRef	heads[INDEX_PIECE];

	if (!ab_image_heads_read(c->db, key, block, n, heads))
	{
		add(c, psprintf("the index of relation %u, fork %d cannot be read",
						key.rel, key.fork));
		return;
	}
	for (int i = 0; i < n; i++)
	{
		AbImageCursor cursor;

		if (heads[i].lsn >= c->oldest &&
			ab_image_first(&cursor, c->db, key, block + i, c->oldest) != AB_STEP_MOVED)
			add(c, psprintf("the index entry of block %u of relation %u, fork %d leads to no image of it",
							block + i, key.rel, key.fork));
	}
}

static void
check_index(Check *c, AbForkKey key)
{
	int			fd = ab_imagefile_index(c->db, key, false);
	off_t		size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);

	for (off_t at = 0; at < size; at += INDEX_PIECE * sizeof(AbImageRef))
	{
		CHECK_FOR_INTERRUPTS();

		/* the holes of a large relation that is little written */
		fd = ab_imagefile_index(c->db, key, false);
		at = fd < 0 ? -1 : lseek(fd, at, SEEK_DATA);
		if (at < 0)
			break;
		at -= at % sizeof(AbImageRef);
		lock_both(c->db);
		check_index_piece(c, key, at / sizeof(AbImageRef), INDEX_PIECE);
		unlock_both(c->db);
	}
}

static void
check_index_files(Check *c)
{
	char		dirname[MAXPGPATH];
	DIR		   *dir;
	struct dirent *de;

	ab_images_dir_path(dirname, c->db);
	dir = AllocateDir(dirname);
	if (dir == NULL && errno == ENOENT)
		return;
	while ((de = ReadDir(dir, dirname)) != NULL)
	{
		AbForkKey	key;

		if (sscanf(de->d_name, AB_INDEX_PREFIX "%u.%u.%d", &key.spc, &key.rel,
				   &key.fork) == 3)
			check_index(c, key);
	}
	FreeDir(dir);
}

List *
ab_images_check(Oid db)
{
	Check		c = {.db = db};
	int			nfiles;
	AbSnapId   *files = ab_imagefile_list(db, &nfiles);

	c.oldest = nfiles > 0 ? files[0].lsn : PG_UINT64_MAX;
	c.group = palloc(sizeof(AbImageGroup));
	c.page = palloc(BLCKSZ);
	for (int i = 0; i < nfiles; i++)
		check_file(&c, files[i]);
	check_index_files(&c);
	pfree(c.page);
	pfree(c.group);
	pfree(files);
	return c.problems;
}
