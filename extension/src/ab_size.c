/*
 * ab_size.c
 *	  How large a branch is, from its files, its origin and its manifest.
 *
 * Backends.  No locks: files come and go while they are counted, and the answer is
 * as good as that of pg_database_size().
 */
#include "ab_size.h"

#include <sys/stat.h>

#include "catalog/pg_tablespace_d.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/reinit.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "ab_file.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_originfile.h"
#include "ab_storagefiles.h"

/* One fork of a branch's own files, all segments together. */
typedef struct OwnFork
{
	AbForkKey	key;			/* hash key */
	int64		bytes;			/* length */
	int64		disk_bytes;		/* blocks allocated */
} OwnFork;

/* ---- own files ---- */

/* base/<db> or pg_tblspc/<spc>/.../<db> */
static Oid
tablespace_of(const char *dir)
{
	static const char prefix[] = "pg_tblspc/";

	if (strncmp(dir, prefix, strlen(prefix)) == 0)
		return (Oid) strtoul(dir + strlen(prefix), NULL, 10);
	return DEFAULTTABLESPACE_OID;
}

static void
add_file(HTAB *forks, const char *dir, const char *name)
{
	char		path[MAXPGPATH];
	struct stat st;
	AbForkKey	key = {0};
	OwnFork  *own;
	ForkNumber	fork;
	int			oidchars;
	bool		found;

	if (!parse_filename_for_nontemp_relation(name, &oidchars, &fork))
		return;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return;
	key.spc = tablespace_of(dir);
	key.rel = (Oid) strtoul(name, NULL, 10);
	key.fork = fork;
	own = hash_search(forks, &key, HASH_ENTER, &found);
	if (!found)
		own->bytes = own->disk_bytes = 0;
	own->bytes += st.st_size;
	own->disk_bytes += (int64) st.st_blocks * 512;
}

/* All own forks of a branch: a hash of OwnFork, in the current context. */
static HTAB *
own_forks(Oid db)
{
	HASHCTL		ctl;
	HTAB	   *forks;
	ListCell   *lc;

	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AbForkKey);
	ctl.entrysize = sizeof(OwnFork);
	ctl.hcxt = CurrentMemoryContext;
	forks = hash_create("agent_branch own forks", 64, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, ab_storage_dirs(db, ERROR))
	{
		const char *path = lfirst(lc);
		DIR		   *dir = AllocateDir(path);
		struct dirent *de;

		if (dir == NULL && errno == ENOENT)
			continue;			/* dropped meanwhile */
		while ((de = ReadDir(dir, path)) != NULL)
			add_file(forks, path, de->d_name);
		FreeDir(dir);
	}
	return forks;
}

static int64
disk_bytes(HTAB *forks)
{
	HASH_SEQ_STATUS scan;
	OwnFork  *own;
	int64		bytes = 0;

	hash_seq_init(&scan, forks);
	while ((own = hash_seq_search(&scan)) != NULL)
		bytes += own->disk_bytes;
	return bytes;
}

int64
ab_size_own_pages(Oid db)
{
	HTAB	   *forks = own_forks(db);
	int64		bytes = disk_bytes(forks);

	hash_destroy(forks);
	return bytes;
}

/* ---- what a session in the branch sees ---- */

/* The limit of an inherited fork: slots may lower it (I1). */
static int64
inherited_blocks(const AbForkEntry *e, const AbOriginImage *origin)
{
	int64		limit = e->nblocks;

	if (e->flags & AB_FORK_UNLOGGED)
		return 0;
	for (int i = 0; i < origin->nslots; i++)
	{
		const AbLimitSlot *s = &origin->slots[i];

		if (s->spc != e->spc || s->rel != e->rel)
			continue;
		if (s->fork == AB_ALL_FORKS)
			return 0;
		if (s->fork == e->fork)
			limit = Min(limit, (int64) s->limit);
	}
	return limit;
}

/* I2: each fork has max(own file, limit) blocks. */
static int64
sum_forks(const AbManifest *m, const AbOriginImage *origin, HTAB *forks)
{
	HASH_SEQ_STATUS scan;
	OwnFork  *own;
	int64		bytes = 0;

	for (uint32 i = 0; i < m->h->nforks; i++)
	{
		const AbForkEntry *e = &m->forks[i];
		AbForkKey	key = {e->spc, e->rel, e->fork};
		int64		limit = inherited_blocks(e, origin) * BLCKSZ;

		own = hash_search(forks, &key, HASH_FIND, NULL);
		if (own == NULL || own->bytes < limit)
			bytes += limit - (own ? own->bytes : 0);
	}
	hash_seq_init(&scan, forks);
	while ((own = hash_seq_search(&scan)) != NULL)
		bytes += own->bytes;
	return bytes;
}

/*
 * What a branch that has neither written nor dropped anything has of a snapshot: of the one
 * that was looked at last, for many are made of one.  Nothing changes its file but damage.
 */
static struct
{
	AbSnapId	snapshot;
	struct stat file;			/* as it was when it was read */
	int64		bytes;
}			last;

static bool
is_last(AbSnapId snapshot, const struct stat *file)
{
	return AbSnapIdEquals(last.snapshot, snapshot) &&
		last.file.st_ino == file->st_ino && last.file.st_dev == file->st_dev &&
		last.file.st_size == file->st_size &&
		last.file.st_mtim.tv_sec == file->st_mtim.tv_sec &&
		last.file.st_mtim.tv_nsec == file->st_mtim.tv_nsec;
}

/* In a context that the caller throws away. */
static bool
logical_bytes(Oid db, HTAB *forks, int64 *bytes)
{
	AbOriginImage origin;
	AbManifest	m;
	struct stat file;
	char	   *path;
	char	   *image;
	size_t		len;
	bool		fresh;

	if (!ab_originfile_load(db, &origin))
		return false;
	path = ab_snapshot_path(origin.header.snapshot, ".manifest");
	fresh = origin.nslots == 0 && hash_get_num_entries(forks) == 0 && stat(path, &file) == 0;
	if (fresh && is_last(origin.header.snapshot, &file))
	{
		*bytes = last.bytes;
		return true;
	}
	image = ab_file_read(path, &len);
	if (image == NULL || ab_manifest_check(image, len, &m) != NULL)
		return false;
	*bytes = sum_forks(&m, &origin, forks);
	if (fresh)
	{
		last.snapshot = origin.header.snapshot;
		last.file = file;
		last.bytes = *bytes;
	}
	return true;
}

bool
ab_size_both(Oid db, int64 *logical, int64 *own_pages)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "agent_branch size",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	HTAB	   *forks = own_forks(db);
	bool		readable = logical_bytes(db, forks, logical);

	*own_pages = disk_bytes(forks);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
	return readable;
}

bool
ab_size_logical(Oid db, int64 *bytes)
{
	int64		own_pages;

	return ab_size_both(db, bytes, &own_pages);
}
