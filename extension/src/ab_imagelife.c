/*
 * ab_imagelife.c
 *	  The store of before-images: its files' beginning, and poison.
 *
 * Backends that take a snapshot and the startup process make files; poison is set by
 * whoever cannot save an image.  A crash may leave a file without its first block: its
 * snapshot's record is replayed, rebuilding removes the file, and replay makes it anew.
 */
#include "ab_images.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_imagefile.h"
#include "ab_shmem.h"

/* ---- beginning ---- */

static void
make_dir(const char *path)
{
	if (MakePGDirectory(path) == 0)
		ab_file_sync_parent(path);
	else if (errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", path)));
}

/* Under its final name at once: syncing the file will make its name durable, mostly. */
static void
make_file(const char *path, const char *block, bool durable)
{
	int			fd = OpenTransientFile(path, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);
	bool		ok;
	int			save_errno;

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path)));
	errno = 0;
	ok = ab_imagefile_write(fd, block, BLCKSZ, 0) && (!durable || pg_fsync(fd) == 0);
	save_errno = errno;
	CloseTransientFile(fd);
	if (ok)
		return;
	unlink(path);
	errno = save_errno;
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", path)));
}

void
ab_images_begin(Oid db, AbSnapId epoch, bool durable)
{
	char		path[MAXPGPATH];
	char	   *block;

	make_dir(AB_IMAGE_DIR);
	ab_images_dir_path(path, db);
	make_dir(path);
	ab_images_path(path, db, epoch);

	/* in recovery it may be there, by who crashed on the way */
	if (!ab_file_exists(path) || ab_imagefile_is_unmade(db, epoch))
	{
		block = palloc(BLCKSZ);
		ab_imagefile_format(block, db, epoch);
		make_file(path, block, durable);
		AB_FAILPOINT("store-file-made");
		pfree(block);
	}
	if (durable)
		ab_file_sync_parent(path);
}

bool
ab_images_set_aside(Oid db, char aside[MAXPGPATH])
{
	static int	counter = 0;
	char		path[MAXPGPATH];

	ab_images_dir_path(path, db);
	snprintf(aside, MAXPGPATH, "%s/" AB_TMP_PREFIX "%u.%d.%d", AB_IMAGE_DIR, db,
			 (int) getpid(), ++counter);
	if (rename(path, aside) < 0)
		return false;
	pg_atomic_fetch_add_u32(&ab_shared->image_generation, 1);
	AB_FAILPOINT_NO_ERROR("store-set-aside");
	return true;
}

bool
ab_images_exists(Oid db, AbSnapId epoch)
{
	char		path[MAXPGPATH];

	ab_images_path(path, db, epoch);
	return ab_file_exists(path);
}

Oid *
ab_images_databases(int *n)
{
	Oid		   *dbs;
	int			max = 16;
	DIR		   *dir;
	struct dirent *de;

	*n = 0;
	dbs = palloc(sizeof(Oid) * max);
	dir = AllocateDir(AB_IMAGE_DIR);
	if (dir == NULL && errno == ENOENT)
		return dbs;
	while ((de = ReadDir(dir, AB_IMAGE_DIR)) != NULL)
	{
		char	   *end;
		unsigned long oid = strtoul(de->d_name, &end, 10);

		if (de->d_name[0] < '1' || de->d_name[0] > '9' || *end != '\0')
			continue;
		if (*n == max)
			dbs = repalloc(dbs, sizeof(Oid) * (max *= 2));
		dbs[(*n)++] = (Oid) oid;
	}
	FreeDir(dir);
	return dbs;
}

/* ---- poison ---- */

typedef struct PoisonedRange
{
	XLogRecPtr	from;
	XLogRecPtr	to;
} PoisonedRange;

/* Poisoned ranges of the database that was asked for last. */
static Oid	ranges_db = InvalidOid;
static uint32 ranges_generation;
static PoisonedRange *ranges = NULL;
static int	nranges;

void
ab_images_forget_poison(void)
{
	ranges_db = InvalidOid;
}

bool
ab_images_poison(Oid db, AbSnapId epoch, XLogRecPtr from)
{
	bool		ok;
	int			save_errno;

	/* two at once must not forget the longer range */
	ab_imagefile_lock(db, LW_EXCLUSIVE);
	ok = ab_imagefile_poison(db, epoch, from);
	save_errno = errno;
	ab_imagefile_unlock(db);
	ab_images_forget_poison();
	errno = save_errno;
	return ok;
}

static void
load_ranges(Oid db)
{
	uint32		generation = pg_atomic_read_u32(&ab_shared->poison_generation);
	int			n;
	AbSnapId   *epochs = ab_imagefile_list(db, &n);

	ranges_db = InvalidOid;
	nranges = 0;
	if (ranges)
		pfree(ranges);
	ranges = NULL;
	ranges = MemoryContextAllocHuge(TopMemoryContext, sizeof(PoisonedRange) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		XLogRecPtr	from;
		bool		ok;
		int			save_errno;

		ab_imagefile_lock(db, LW_SHARED);
		ok = ab_imagefile_poisoned_from(db, epochs[i], &from);
		save_errno = errno;
		ab_imagefile_unlock(db);
		errno = save_errno;
		if (!ok && errno != ENOENT)
		{
			char		path[MAXPGPATH];

			/* the server must start: take it for the worst it could say */
			ab_images_path(path, db, epochs[i]);
			errno = save_errno;
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", path)));
			from = 1;
			ok = true;
		}
		if (ok && from != InvalidXLogRecPtr)
		{
			ranges[nranges].from = from;
			ranges[nranges++].to = epochs[i].lsn;
		}
	}
	pfree(epochs);
	ranges_db = db;
	ranges_generation = generation;
}

/*
 * What was read stands until somebody poisons a snapshot: at server start this is
 * asked for each of many snapshots.
 */
bool
ab_images_is_poisoned(Oid db, AbSnapId id)
{
	if (db != ranges_db ||
		ranges_generation != pg_atomic_read_u32(&ab_shared->poison_generation))
		load_ranges(db);
	for (int i = 0; i < nranges; i++)
		if (ranges[i].from <= id.lsn && id.lsn <= ranges[i].to)
			return true;
	return false;
}
