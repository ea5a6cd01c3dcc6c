/*
 * ab_imagegc.c
 *	  The store of before-images: giving back what no living snapshot needs.
 *
 * Backends (branch.gc()), the sweeper and the startup process, one at a time for each
 * database; who saves and who looks up go on meanwhile.  An image of epoch e whose next
 * older one is of epoch p is what the snapshots in (p, e] see, so it is needed as long
 * as one of those lives, and never again after.
 *
 * Its page is given back by a hole, after a mark in its entry that is on disk before;
 * the entry stays as a link of its chain.  A file
 * that nobody needs anything of is taken out of all chains and removed.  One that is
 * older than every living snapshot is just removed: nobody follows a link to it.
 *
 * Locks: capture_lock exclusively for a group at a time, image_lock for changes of
 * entries.  A crash leaves chains that rebuilding puts right.
 */
#include "ab_images.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_imagechain.h"
#include "ab_imageuse.h"
#include "ab_shmem.h"

/* Larger index files are not looked through for being of no use. */
#define INDEX_SWEEP_MAX		(16 * 1024 * 1024)

typedef struct Collect
{
	Oid			db;
	const AbSnapId *living;		/* by age */
	int			nliving;
	bool		dry_run;
	bool		removed_old;	/* a file older than all living snapshots went */
	int64		freed;
	AbImageGroup *group;
} Collect;

static void
lock_capture(Oid db)
{
	LWLockAcquire(ab_capture_lock(db), LW_EXCLUSIVE);
}

static void
unlock_capture(Oid db)
{
	LWLockRelease(ab_capture_lock(db));
}

static void
warn(const char *what, const char *path)
{
	ereport(WARNING,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", what, path)));
}

static void
warn_epoch(Collect *c, const char *what, AbSnapId epoch)
{
	char		path[MAXPGPATH];
	int			save_errno = errno;

	ab_images_path(path, c->db, epoch);
	errno = save_errno;
	if (errno == 0)
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not %s file \"%s\": it is damaged", what, path)));
	else
		warn(what, path);
}

static AbImageUse
use_of(Collect *c, AbImageRef at, const AbImageEntry *e)
{
	return ab_image_use(at, e, c->living, c->nliving, NULL, NULL);
}

/* ---- whole files ---- */

static int64
bytes_of(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 ? (int64) st.st_blocks * 512 : 0;
}

static void
remove_path(Collect *c, const char *path)
{
	int64		bytes;

	if (c->dry_run)
	{
		c->freed += bytes_of(path);
		return;
	}
	bytes = ab_imagefile_remove(path);
	if (bytes < 0)
		warn("remove", path);
	else
		c->freed += bytes;
}

static void
remove_directory(Collect *c, const char *dirname)
{
	DIR		   *dir = AllocateDir(dirname);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return;
	while ((de = ReadDir(dir, dirname)) != NULL)
	{
		char		path[MAXPGPATH * 2];

		if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dirname, de->d_name);
		remove_path(c, path);
	}
	FreeDir(dir);
	if (!c->dry_run && rmdir(dirname) < 0 && errno != ENOENT)
		warn("remove", dirname);
}

/* Nobody appends to it: the lock keeps away who would. */
static void
remove_epoch(Collect *c, AbSnapId epoch)
{
	char		path[MAXPGPATH];

	ab_images_path(path, c->db, epoch);
	remove_path(c, path);
}

/* ---- looking through a file ---- */

typedef struct FileUse
{
	uint32		nslots;
	uint32		needed;			/* images, and entries of which it cannot be said */
	uint32		unneeded;		/* pages that could be given back */
	uint32		gone;			/* that were, or almost */
} FileUse;

static bool
count_slots(Collect *c, AbSnapId epoch, uint32 *nslots)
{
	int			fd = ab_imagefile_epoch(c->db, epoch);

	return fd >= 0 && ab_imagefile_slots(fd, nslots);
}

static void
add_group_use(Collect *c, AbSnapId epoch, uint32 group, uint32 nslots, FileUse *use)
{
	for (uint32 i = 0; i < AB_GROUP_SLOTS; i++)
	{
		AbImageRef	at = ab_image_ref(epoch, group * AB_GROUP_SLOTS + i);
		const AbImageEntry *e = &c->group->entry[i];

		switch (use_of(c, at, e))
		{
			case AB_USE_UNKNOWN:
			case AB_USE_NEEDED:
				use->needed++;
				break;
			case AB_USE_NOT_NEEDED:
			case AB_USE_DEAD:
				if (e->flags & AB_IMAGE_GONE)
					use->gone++;
				else if (at.slot < nslots)
					use->unneeded++;
				break;
			case AB_USE_EMPTY:
				break;
		}
	}
}

/*
 * Without a lock.  An entry that is being written is seen as damaged, which counts
 * as needed.
 */
static bool
look_through(Collect *c, AbSnapId epoch, FileUse *use)
{
	memset(use, 0, sizeof(*use));
	if (!count_slots(c, epoch, &use->nslots))
		return false;
	for (uint32 group = 0; group * AB_GROUP_SLOTS < use->nslots; group++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!ab_image_group_read(c->db, epoch, group, c->group))
			return false;
		add_group_use(c, epoch, group, use->nslots, use);
	}
	return true;
}

/* ---- pages ---- */

/* image_lock: nobody reads an entry that is half written. */
static bool
write_group(Collect *c, AbSnapId epoch, uint32 group)
{
	int			fd = ab_imagefile_epoch(c->db, epoch);
	bool		ok;
	int			save_errno;

	ab_imagefile_lock(c->db, LW_EXCLUSIVE);
	ok = fd >= 0 && ab_imagefile_write(fd, c->group, sizeof(AbImageGroup),
									   ab_group_offset(group));
	save_errno = errno;
	ab_imagefile_unlock(c->db);
	errno = save_errno;
	return ok;
}

/* Under capture_lock. */
static bool
mark_group(Collect *c, AbSnapId epoch, uint32 group, uint32 nslots)
{
	if (!ab_image_group_read(c->db, epoch, group, c->group))
		return false;
	for (uint32 i = 0; i < AB_GROUP_SLOTS; i++)
	{
		AbImageRef	at = ab_image_ref(epoch, group * AB_GROUP_SLOTS + i);
		AbImageEntry *e = &c->group->entry[i];
		AbImageUse	use = use_of(c, at, e);

		if ((use == AB_USE_NOT_NEEDED || use == AB_USE_DEAD) && at.slot < nslots)
		{
			e->flags |= AB_IMAGE_GONE;
			ab_image_entry_seal(at, e);
		}
	}
	return write_group(c, epoch, group);
}

/*
 * Mark what nobody needs, durably: from then on nobody reads those pages.  Again, also
 * what is marked: a sync may have failed.
 */
static bool
mark_file(Collect *c, AbSnapId epoch, uint32 nslots, bool again)
{
	int			fd;

	for (uint32 group = 0; group * AB_GROUP_SLOTS < nslots; group++)
	{
		FileUse		use = {0};
		bool		ok;

		CHECK_FOR_INTERRUPTS();
		if (!ab_image_group_read(c->db, epoch, group, c->group))
			return false;
		add_group_use(c, epoch, group, nslots, &use);
		if (use.unneeded == 0 && (use.gone == 0 || !again))
			continue;
		lock_capture(c->db);
		ok = mark_group(c, epoch, group, nslots);
		unlock_capture(c->db);
		if (!ok)
			return false;
	}
	fd = ab_imagefile_epoch(c->db, epoch);
	return fd >= 0 && ab_imagefile_sync(fd);
}

static bool
is_gone(Collect *c, AbSnapId epoch, uint32 slot)
{
	const AbImageEntry *e = &c->group->entry[slot % AB_GROUP_SLOTS];

	return ab_image_entry_is_valid(ab_image_ref(epoch, slot), e) &&
		(e->flags & AB_IMAGE_GONE);
}

/* Make holes of the pages that are gone, also again: a crash may have undone it. */
static bool
punch_group(Collect *c, AbSnapId epoch, uint32 group, uint32 nslots)
{
	uint32		end = Min(nslots, (group + 1) * AB_GROUP_SLOTS);
	uint32		n;

	if (!ab_image_group_read(c->db, epoch, group, c->group))
		return false;
	for (uint32 slot = group * AB_GROUP_SLOTS; slot < end; slot += n + 1)
	{
		int			fd = ab_imagefile_epoch(c->db, epoch);

		for (n = 0; slot + n < end && is_gone(c, epoch, slot + n);)
			n++;
		if (n > 0 &&
			(fd < 0 || fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
								 ab_slot_page_offset(slot), (off_t) n * BLCKSZ) < 0))
			return false;
	}
	return true;
}

static bool
punch_file(Collect *c, AbSnapId epoch, uint32 nslots)
{
	char		path[MAXPGPATH];
	int64		before;

	ab_images_path(path, c->db, epoch);
	before = bytes_of(path);
	for (uint32 group = 0; group * AB_GROUP_SLOTS < nslots; group++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!punch_group(c, epoch, group, nslots))
		{
			/* then the space comes back with the file */
			if (errno == EOPNOTSUPP)
				break;
			return false;
		}
	}
	c->freed += Max(before - bytes_of(path), 0);
	return true;
}

/* ---- taking a file out of all chains ---- */

/* Under capture_lock.  False: I/O error, or (errno 0) a need has come up. */
static bool
detach_entries(Collect *c, AbSnapId epoch, uint32 group)
{
	for (uint32 i = 0; i < AB_GROUP_SLOTS; i++)
	{
		AbImageRef	at = ab_image_ref(epoch, group * AB_GROUP_SLOTS + i);
		AbImageEntry *e = &c->group->entry[i];
		AbForkKey	key = {e->spc, e->rel, e->fork};
		AbImageUse	use = use_of(c, at, e);
		bool		ok;

		if (use == AB_USE_NEEDED || use == AB_USE_UNKNOWN)
		{
			errno = 0;
			return false;
		}
		if (use != AB_USE_NOT_NEEDED)
			continue;
		ab_imagefile_lock(c->db, LW_EXCLUSIVE);
		ok = ab_image_detach(c->db, key, e->block, at, e);
		ab_imagefile_unlock(c->db);
		if (!ok)
			return false;
		e->flags |= AB_IMAGE_DEAD;
		ab_image_entry_seal(at, e);
	}
	return write_group(c, epoch, group);
}

static bool
detach_file(Collect *c, AbSnapId epoch, uint32 nslots)
{
	for (uint32 group = 0; group * AB_GROUP_SLOTS < nslots; group++)
	{
		bool		ok;

		CHECK_FOR_INTERRUPTS();
		lock_capture(c->db);
		ok = ab_image_group_read(c->db, epoch, group, c->group) &&
			detach_entries(c, epoch, group);
		unlock_capture(c->db);
		if (!ok)
			return false;
	}
	return true;
}

/*
 * The links that were rewritten need no sync: the next start relinks what leads to a
 * file that is gone.
 */
static bool
remove_detached(Collect *c, AbSnapId epoch, uint32 nslots)
{
	uint32		now;
	bool		unchanged;

	AB_FAILPOINT("collect-detached");
	lock_capture(c->db);
	unchanged = count_slots(c, epoch, &now) && now == nslots;
	if (unchanged)
		remove_epoch(c, epoch);
	unlock_capture(c->db);
	return unchanged;
}

/* ---- index files ---- */

static bool
index_is_stale(int fd, XLogRecPtr oldest)
{
	static AbImageRef heads[4096];
	struct stat st;

	if (fstat(fd, &st) < 0 || st.st_size > INDEX_SWEEP_MAX)
		return false;
	for (off_t at = 0; at < st.st_size; at += sizeof(heads))
	{
		if (!ab_imagefile_read_padded(fd, heads, sizeof(heads), at))
			return false;
		for (int i = 0; i < lengthof(heads); i++)
			if (heads[i].lsn >= oldest)
				return false;
	}
	return true;
}

static void
sweep_index_file(Collect *c, const char *path)
{
	int			fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	XLogRecPtr	oldest = c->living[0].lsn;

	if (fd < 0)
		return;
	if (index_is_stale(fd, oldest))
	{
		lock_capture(c->db);
		ab_imagefile_lock(c->db, LW_EXCLUSIVE);
		if (index_is_stale(fd, oldest))
			remove_path(c, path);
		ab_imagefile_unlock(c->db);
		unlock_capture(c->db);
	}
	CloseTransientFile(fd);
}

/*
 * Index files of forks of which no living snapshot needs an image: mostly relations
 * that were dropped.
 */
static void
sweep_index(Collect *c)
{
	char		dirname[MAXPGPATH];
	DIR		   *dir;
	struct dirent *de;

	ab_images_dir_path(dirname, c->db);
	dir = AllocateDir(dirname);
	while ((de = ReadDir(dir, dirname)) != NULL)
	{
		char		path[MAXPGPATH * 2];

		CHECK_FOR_INTERRUPTS();
		if (strncmp(de->d_name, AB_INDEX_PREFIX, strlen(AB_INDEX_PREFIX)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dirname, de->d_name);
		sweep_index_file(c, path);
	}
	FreeDir(dir);
}

/* ---- all of it ---- */

/* Of a living snapshot, which may become the newest one again, or poisoning one? */
static bool
is_file_of_living(Collect *c, AbSnapId epoch)
{
	XLogRecPtr	from;

	for (int i = 0; i < c->nliving; i++)
		if (AbSnapIdEquals(c->living[i], epoch))
			return true;
	return !ab_imagefile_poisoned_from(c->db, epoch, &from) ||
		(from != InvalidXLogRecPtr &&
		 ab_image_any_living(c->living, c->nliving, from - 1, epoch.lsn));
}

/* FNV-1a over those that can need anything of an epoch; never 0. */
static uint64
hash_living(Collect *c, AbSnapId epoch)
{
	uint64		hash = UINT64CONST(14695981039346656037);

	for (int i = 0; i < c->nliving && c->living[i].lsn <= epoch.lsn; i++)
	{
		hash = (hash ^ c->living[i].lsn) * UINT64CONST(1099511628211);
		hash = (hash ^ c->living[i].tli) * UINT64CONST(1099511628211);
	}
	return hash ? hash : 1;
}

static void
remove_old(Collect *c, AbSnapId epoch)
{
	if (c->dry_run)
	{
		remove_epoch(c, epoch);
		return;
	}
	lock_capture(c->db);
	remove_epoch(c, epoch);
	unlock_capture(c->db);
	c->removed_old = true;
}

/* The mark says 0 until all of it is done. */
static bool
punch_unneeded(Collect *c, AbSnapId epoch, const FileUse *use, uint64 swept)
{
	bool		again = swept == 0;

	if (use->unneeded == 0 && (use->gone == 0 || !again))
		return true;
	ab_imagefile_set_swept(c->db, epoch, 0);
	AB_FAILPOINT("collect-to-punch");
	return mark_file(c, epoch, use->nslots, again) && punch_file(c, epoch, use->nslots);
}

static void
collect_file(Collect *c, AbSnapId epoch)
{
	uint64		living = hash_living(c, epoch);
	uint64		swept = ab_imagefile_swept(c->db, epoch);
	FileUse		use;

	if (swept == living)
		return;
	errno = 0;
	if (!look_through(c, epoch, &use))
	{
		warn_epoch(c, "read", epoch);
		return;
	}
	if (use.needed == 0 && !is_file_of_living(c, epoch))
	{
		if (c->dry_run)
		{
			remove_epoch(c, epoch);
			return;
		}
		if (detach_file(c, epoch, use.nslots) && remove_detached(c, epoch, use.nslots))
			return;
		if (errno != 0)
			warn_epoch(c, "detach", epoch);
	}
	if (c->dry_run)
		c->freed += (int64) use.unneeded * BLCKSZ;
	else if (punch_unneeded(c, epoch, &use, swept))
		ab_imagefile_set_swept(c->db, epoch, living);
	else
		warn_epoch(c, "give back space of", epoch);
}

int64
ab_images_remove_aside(const char *aside)
{
	Collect		c = {.living = NULL};

	remove_directory(&c, aside);
	return c.freed;
}

int64
ab_images_collect(Oid db, const AbSnapId *living, int nliving, XLogRecPtr horizon,
				  bool dry_run)
{
	Collect		c = {.db = db, .living = living, .nliving = nliving,
	.dry_run = dry_run};
	AbSnapId   *epochs;
	int			n;

	if (nliving == 0)
	{
		char		dirname[MAXPGPATH];

		ab_images_dir_path(dirname, db);
		remove_directory(&c, dirname);
		return c.freed;
	}
	epochs = ab_imagefile_list(db, &n);
	c.group = palloc(sizeof(AbImageGroup));
	for (int i = 0; i < n; i++)
	{
		if (epochs[i].lsn < living[0].lsn)
			remove_old(&c, epochs[i]);
		else if (epochs[i].lsn <= horizon)
			collect_file(&c, epochs[i]);
	}
	if (c.removed_old)
		sweep_index(&c);
	pfree(c.group);
	pfree(epochs);
	return c.freed;
}
