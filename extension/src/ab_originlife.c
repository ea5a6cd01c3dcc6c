/*
 * ab_originlife.c
 *	  The life of origins: creating and removing them, taking away the files of those that
 *	  have been gathered, and listing all that there are.
 *
 * Any process; replay, too.  Who removes one holds gather_lock (G3), who takes a file away
 * the database's origin lock, exclusive.  Who lists needs none.  A crash leaves the mark of
 * an unfinished creation, or an origin whole: the sweep finds either.
 */
#include "ab_origin.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_originfile.h"
#include "ab_originpack.h"
#include "ab_originslots.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"

/* ---- one ---- */

/* A file beside the origin's. */
static void
remove_beside(Oid db, const char *suffix)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u%s", db, suffix);
	if (unlink(path) < 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}

void
ab_origin_create(const AbOriginHeader *header, bool durably)
{
	char		block[AB_ORIGIN_BLOCK];
	char	   *path = ab_origin_path(header->db);
	char	   *mark = psprintf("%s" AB_MARK_SUFFIX, path);

	ab_originfile_fill_block(block, header);
	remove_beside(header->db, AB_LOST_SUFFIX);

	/* the mark of unfinished creation becomes the origin */
	ab_file_write_via(mark, path, block, sizeof(block), durably);
	AB_FAILPOINT_NO_ERROR("origin-written");
	if (durably)
		ab_file_sync_parent(path);
	pg_atomic_fetch_add_u32(&ab_shared->ungathered, 1);
	ab_generation_bump(header->db);
	pfree(mark);
	pfree(path);
}

bool
ab_origin_remove(Oid db)
{
	char		path[MAXPGPATH];
	bool		existed;
	bool		unlinked;

	ab_originslots_let_go(db);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", db);

	/*
	 * G3: both under the lock, the file last.  As long as the entry may live so do the limits
	 * that are in the file: without these the branch would see again what it has cut off.
	 * A WARNING is enough: storage without a row is swept again, and what was detached is the
	 * same as a branch that has all its pages.
	 */
	LWLockAcquire(ab_shared->gather_lock, LW_EXCLUSIVE);
	if (!ab_originpack_kill(db, &existed))
	{
		LWLockRelease(ab_shared->gather_lock);
		return false;
	}
	AB_FAILPOINT_NO_ERROR("origin-dead");
	remove_beside(db, AB_LOST_SUFFIX);
	remove_beside(db, AB_SPARE_SUFFIX);
	unlinked = unlink(path) == 0;
	if (!unlinked && errno != ENOENT)
	{
		existed = false;
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
	}
	LWLockRelease(ab_shared->gather_lock);
	if (unlinked && enableFsync)
		(void) fsync_fname_ext(AB_BRANCH_DIR, true, true, LOG);
	existed |= unlinked;
	ab_generation_bump(db);
	return existed;
}

/* ---- what can be gathered ---- */

bool
ab_origin_is_bare(Oid db, AbOriginHeader *header)
{
	char	   *path = ab_origin_path(db);
	size_t		len;
	char	   *file = ab_file_read(path, &len);
	char	   *reason = file != NULL ? ab_originfile_check_header(db, file, len) : NULL;
	bool		bare = file != NULL && reason == NULL && len == AB_ORIGIN_BLOCK;

	for (size_t i = sizeof(AbOriginHeader); bare && i < len; i++)
		bare = file[i] == '\0';
	if (bare)
		memcpy(header, file, sizeof(*header));
	bare = bare && !ab_storage_dir_exists(db, header->spc);
	if (reason != NULL)
		pfree(reason);
	if (file != NULL)
		pfree(file);
	pfree(path);
	return bare;
}

bool
ab_origin_unlink_bare(const AbOriginHeader *header)
{
	LWLock	   *lock = ab_origin_lock(header->db);
	AbOriginHeader now;
	char		path[MAXPGPATH];
	bool		gone;

	ab_originslots_let_go(header->db);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", header->db);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	gone = ab_origin_is_bare(header->db, &now) &&
		memcmp(&now, header, sizeof(now)) == 0 && unlink(path) == 0;
	LWLockRelease(lock);
	return gone;
}

/* ---- all ---- */

static int
compare_oid(const void *a, const void *b)
{
	Oid			x = *(const Oid *) a;
	Oid			y = *(const Oid *) b;

	return x < y ? -1 : x > y;
}

/* Those with files of their own. */
static Oid *
list_files(int *n)
{
	int			max = 1024;
	Oid		   *list = palloc(sizeof(Oid) * max);
	DIR		   *dir = AllocateDir(AB_BRANCH_DIR);
	struct dirent *de;

	*n = 0;
	while ((de = ReadDir(dir, AB_BRANCH_DIR)) != NULL)
	{
		if (strspn(de->d_name, "0123456789") != strlen(de->d_name))
			continue;
		if (*n == max)
		{
			max *= 2;
			list = repalloc(list, sizeof(Oid) * max);
		}
		list[(*n)++] = (Oid) strtoul(de->d_name, NULL, 10);
	}
	FreeDir(dir);
	qsort(list, *n, sizeof(Oid), compare_oid);
	return list;
}

static void
add_origin(AbOrigins *o, Oid db, const AbOriginHeader *gathered)
{
	o->dbs[o->n] = db;
	o->gathered[o->n++] = gathered;
}

/* The files are listed first: one that goes meanwhile is gathered by then. */
AbOrigins *
ab_origin_all(void)
{
	AbOrigins  *o = palloc0(sizeof(AbOrigins));
	int			nfiles;
	Oid		   *files = list_files(&nfiles);
	int			next = 0;
	Size		room;

	ab_originpack_read(&o->pack);
	room = Max(nfiles + o->pack.n, 1);
	o->nfiles = nfiles;
	o->dbs = palloc_extended(room * sizeof(Oid), MCXT_ALLOC_HUGE);
	o->gathered = palloc_extended(room * sizeof(AbOriginHeader *), MCXT_ALLOC_HUGE);
	for (int i = 0; i < o->pack.n; i++)
	{
		Oid			db = ab_originpack_living(&o->pack, i);

		if (!OidIsValid(db))
			continue;
		while (next < nfiles && files[next] < db)
			add_origin(o, files[next++], NULL);
		if (next < nfiles && files[next] == db)
			continue;
		add_origin(o, db, ab_originpack_is_sound(&o->pack, i) ?
				   &o->pack.entries[i].origin : NULL);
	}
	while (next < nfiles)
		add_origin(o, files[next++], NULL);
	pfree(files);
	return o;
}

bool
ab_origins_read(const AbOrigins *o, int i, AbOriginHeader *header)
{
	if (o->gathered[i] == NULL)
		return ab_origin_read(o->dbs[i], header);
	*header = *o->gathered[i];
	return true;
}

void
ab_origins_free(AbOrigins *o)
{
	ab_originpack_free(&o->pack);
	pfree(o->dbs);
	pfree(o->gathered);
	pfree(o);
}

Oid *
ab_origin_list(int *n)
{
	AbOrigins  *o = ab_origin_all();
	Oid		   *dbs = o->dbs;

	*n = o->n;
	o->dbs = palloc(sizeof(Oid));
	ab_origins_free(o);
	return dbs;
}
