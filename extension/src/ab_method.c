/*
 * ab_method.c
 *	  Choosing how a snapshot's pages are got, and what every method needs: the
 *	  list of the source's files.
 *
 * Backends taking a snapshot and the startup process; no locks but the short
 * RelationMappingLock.  Reads only.
 */
#include "ab_method.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/reinit.h"

#include "ab_file.h"
#include "ab_kept.h"
#include "ab_origin.h"
#include "ab_parentfile.h"

typedef struct SourceFile
{
	AbForkKey	key;
	uint32		segno;
	BlockNumber length;
} SourceFile;

typedef struct FileList
{
	SourceFile *file;
	int			n;
	int			max;
	StringInfoData unknown;		/* names of files that nobody should have made */
} FileList;

const AbMethod *
ab_method_for(const AbCapture *c)
{
	return c->source_manifest ? &ab_method_own_pages : &ab_method_files;
}

/* ---- names ---- */

static bool
starts_with(const char *name, const char *prefix)
{
	return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* t<backend>_<relation> with fork and segment: the file of a temporary relation? */
static bool
is_temp_relation(const char *name)
{
	ForkNumber	fork;
	int			digits;
	int			oidchars;

	if (name[0] != 't')
		return false;
	digits = strspn(name + 1, "0123456789");
	return digits > 0 && name[1 + digits] == '_' &&
		parse_filename_for_nontemp_relation(name + digits + 2, &oidchars, &fork);
}

/* Files that are no relation's, or a session's own; a branch has none of them. */
static bool
is_left_out(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
		strcmp(name, "PG_VERSION") == 0 ||
		starts_with(name, "pg_filenode.map") ||
		starts_with(name, "pg_internal.init") ||
		starts_with(name, PG_TEMP_FILE_PREFIX) ||
		is_temp_relation(name);
}

/* ---- listing ---- */

static void
note_file(FileList *list, const SourceFile *f)
{
	if (list->n == list->max)
	{
		list->max *= 2;
		list->file = repalloc_huge(list->file, sizeof(SourceFile) * list->max);
	}
	list->file[list->n++] = *f;
}

static void
list_file(DIR *dir, const char *path, const char *name, Oid spc, FileList *list)
{
	const char *dot = strchr(name, '.');
	ForkNumber	fork;
	SourceFile	f;
	struct stat st;
	int			oidchars;

	if (is_left_out(name))
		return;
	if (!parse_filename_for_nontemp_relation(name, &oidchars, &fork))
	{
		if (list->unknown.len < 500)
			appendStringInfo(&list->unknown, "%s\"%s/%s\"",
							 list->unknown.len > 0 ? ", " : "", path, name);
		return;
	}
	/* there may be very many */
	if (fstatat(dirfd(dir), name, &st, 0) < 0)
	{
		if (errno == ENOENT)
			return;				/* just dropped */
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s/%s\": %m", path, name)));
	}
	f.key.spc = spc;
	f.key.rel = (Oid) strtoul(name, NULL, 10);
	f.key.fork = fork;
	f.segno = dot ? (uint32) strtoul(dot + 1, NULL, 10) : 0;
	f.length = (BlockNumber) Min(st.st_size / BLCKSZ, (off_t) RELSEG_SIZE);
	note_file(list, &f);
}

static void
list_directory(const char *path, Oid spc, void *arg)
{
	FileList   *list = arg;
	DIR		   *dir = AllocateDir(path);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return;					/* the source has nothing in this tablespace */
	while ((de = ReadDir(dir, path)) != NULL)
		list_file(dir, path, de->d_name, spc, list);
	FreeDir(dir);
}

/* In all tablespaces, with or without a directory of the source. */
static void
for_each_directory(Oid db, void (*visit) (const char *path, Oid spc, void *arg), void *arg)
{
	const char *const links = "pg_tblspc";
	DIR		   *dir;
	struct dirent *de;
	char	   *path;

	path = GetDatabasePath(db, DEFAULTTABLESPACE_OID);
	visit(path, DEFAULTTABLESPACE_OID, arg);
	pfree(path);

	dir = AllocateDir(links);
	while ((de = ReadDir(dir, links)) != NULL)
	{
		Oid			spc = (Oid) strtoul(de->d_name, NULL, 10);

		if (!OidIsValid(spc))
			continue;
		ab_capture_interrupts();
		path = GetDatabasePath(db, spc);
		visit(path, spc, arg);
		pfree(path);
	}
	FreeDir(dir);
}

static void
stamp_directory(const char *path, Oid spc, void *arg)
{
	uint64	   *stamp = arg;
	struct stat st;

	if (stat(path, &st) < 0)
		return;					/* nothing there, or whoever lists it says what is */
	*stamp = hash_combine64(*stamp, spc);
	*stamp = hash_combine64(*stamp, (uint64) st.st_ino);
	*stamp = hash_combine64(*stamp, (uint64) st.st_mtim.tv_sec);
	*stamp = hash_combine64(*stamp, (uint64) st.st_mtim.tv_nsec);
}

uint64
ab_source_stamp(const AbCapture *c)
{
	uint64		stamp = 0;

	for_each_directory(c->source_db, stamp_directory, &stamp);
	return stamp;
}

static int
compare_key(const AbForkKey *a, const AbForkKey *b)
{
	if (a->spc != b->spc)
		return a->spc < b->spc ? -1 : 1;
	if (a->rel != b->rel)
		return a->rel < b->rel ? -1 : 1;
	return a->fork - b->fork;
}

static int
compare_files(const void *a, const void *b)
{
	const SourceFile *x = a;
	const SourceFile *y = b;
	int			result = compare_key(&x->key, &y->key);

	if (result != 0)
		return result;
	return x->segno < y->segno ? -1 : x->segno > y->segno;
}

/* The sorted files of one fork become one entry; returns how many they were. */
static int
group_fork(const SourceFile *file, int n, AbSourceFork *fork)
{
	int			count = 1;

	while (count < n && compare_key(&file[0].key, &file[count].key) == 0)
		count++;
	fork->key = file[0].key;
	fork->nsegments = file[count - 1].segno + 1;
	fork->length = palloc0(sizeof(BlockNumber) * fork->nsegments);
	for (int i = 0; i < count; i++)
		fork->length[file[i].segno] = file[i].length;
	return count;
}

static void
refuse_unknown_files(Oid db, const char *names)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("database \"%s\" has files that a branch could not inherit",
					get_database_name(db)),
			 errdetail("Not made by PostgreSQL: %s.", names),
			 errhint("An extension that keeps files of its own in the database's directory cannot be branched; drop it, or remove the files if they are leftovers.")));
}

/* Files of dropped relations that only older snapshots need. */
static void
leave_out_kept(Oid db, FileList *list)
{
	int			nkept;
	AbKeptRelation *kept = ab_kept_relations(db, &nkept);
	int			n = 0;

	for (int i = 0; i < list->n && nkept > 0; i++)
		if (!ab_keptnotes_have(kept, nkept,
							   (AbKeptRelation) {list->file[i].key.spc,
							   list->file[i].key.rel}))
			list->file[n++] = list->file[i];
	if (nkept > 0)
		list->n = n;
	pfree(kept);
}

AbSourceFork *
ab_source_forks(const AbCapture *c, int *n)
{
	AbSourceFork *forks;
	FileList	list;

	list.n = 0;
	list.max = 1024;
	list.file = palloc(sizeof(SourceFile) * list.max);
	initStringInfo(&list.unknown);
	for_each_directory(c->source_db, list_directory, &list);
	if (list.unknown.len > 0 && !InRecovery)
		refuse_unknown_files(c->source_db, list.unknown.data);

	leave_out_kept(c->source_db, &list);
	qsort(list.file, list.n, sizeof(SourceFile), compare_files);
	forks = palloc_extended(sizeof(AbSourceFork) * Max(list.n, 1), MCXT_ALLOC_HUGE);
	*n = 0;
	for (int i = 0; i < list.n;)
		i += group_fork(&list.file[i], list.n - i, &forks[(*n)++]);
	pfree(list.file);
	return forks;
}

AbSourceFork *
ab_source_find(AbSourceFork *forks, int n, AbForkKey key)
{
	int			low = 0;
	int			high = n;

	while (low < high)
	{
		int			mid = low + (high - low) / 2;
		int			order = compare_key(&forks[mid].key, &key);

		if (order == 0)
			return &forks[mid];
		if (order < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* ---- single files ---- */

bool
ab_source_fork(const AbCapture *c, AbForkKey key, AbSourceFork *fork)
{
	uint32		max = 0;

	fork->key = key;
	fork->nsegments = 0;
	fork->length = NULL;
	for (;;)
	{
		RelFileNode rnode = {key.spc, c->source_db, key.rel};
		char		path[MAXPGPATH];
		struct stat st;

		ab_relation_path(path, rnode, key.fork, fork->nsegments);
		if (stat(path, &st) < 0)
		{
			if (errno != ENOENT)
				ereport(ERROR,
						(errcode_for_file_access(),
						 errmsg("could not stat file \"%s\": %m", path)));
			return fork->nsegments > 0;
		}
		if (fork->nsegments == max)
		{
			max = max * 2 + 1;
			fork->length = fork->length ?
				repalloc(fork->length, sizeof(BlockNumber) * max) :
				palloc(sizeof(BlockNumber) * max);
		}
		fork->length[fork->nsegments++] =
			(BlockNumber) Min(st.st_size / BLCKSZ, (off_t) RELSEG_SIZE);
	}
}

bool
ab_source_open(AbCapture *c, AbForkKey key, uint32 segno, char path[MAXPGPATH])
{
	RelFileNode rnode;
	int			fd;

	rnode.spcNode = key.spc;
	rnode.dbNode = c->source_db;
	rnode.relNode = key.rel;
	ab_relation_path(path, rnode, key.fork, segno);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
	{
		if (errno == ENOENT)
			return false;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	}
	Assert(c->source_fd == 0);
	c->source_fd = fd;
	return true;
}

void
ab_source_close(AbCapture *c)
{
	if (c->source_fd > 0)
		CloseTransientFile(c->source_fd);
	c->source_fd = 0;
}

/* A branch that nobody has been in yet has no file (D1). */
static char *
inherited_relmap(Oid db, size_t *len)
{
	AbBranch   *b = ab_branch_lookup(db);
	char	   *map;

	if (b == NULL)
		return NULL;
	*len = AB_RELMAP_SIZE;
	map = palloc(*len);
	memcpy(map, ab_branch_manifest(b)->relmap, *len);
	return map;
}

void
ab_source_relmap(const AbCapture *c)
{
	char	   *dir;
	char	   *path;
	char	   *map;
	size_t		len;

	if (c->wal_forks)
		return;
	dir = GetDatabasePath(c->source_db, c->source_spc);
	path = psprintf("%s/pg_filenode.map", dir);
	LWLockAcquire(RelationMappingLock, LW_SHARED);
	map = ab_file_read(path, &len);
	LWLockRelease(RelationMappingLock);
	if (map == NULL)
		map = inherited_relmap(c->source_db, &len);
	if (map == NULL || len != AB_RELMAP_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("relation mapping file \"%s\" is missing or has the wrong size",
						path)));
	ab_builder_relmap(c->builder, map);
	pfree(map);
	pfree(path);
	pfree(dir);
}
