/*
 * ab_storagefiles.c
 *	  Directories and small files of one branch database.
 *
 * Runs in backends, in the keeper, in the startup process and, for repair, in
 * the postmaster; so nothing here uses catalogs or VFDs.  The caller holds
 * whatever keeps others away from the database's number.  A crash leaves files
 * half-made; ab_storage.c says who clears them up.
 */
#include "ab_storagefiles.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "catalog/pg_tablespace_d.h"
#include "commands/tablespace.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_caught.h"
#include "ab_file.h"
#include "ab_layer.h"
#include "ab_origin.h"
#include "ab_snaptable.h"

/* First word of pg_filenode.map (RELMAPPER_FILEMAGIC in relmapper.c of 15). */
#define RELMAP_MAGIC	0x592717

#define VERSION_TEXT	PG_MAJORVERSION "\n"

/* ---- directories ---- */

List *
ab_storage_tablespaces(int elevel)
{
	List	   *list = list_make1_oid(DEFAULTTABLESPACE_OID);
	DIR		   *dir = AllocateDir("pg_tblspc");
	struct dirent *de;

	while ((de = ReadDirExtended(dir, "pg_tblspc", elevel)) != NULL)
		if (strspn(de->d_name, "0123456789") == strlen(de->d_name))
			list = lappend_oid(list, (Oid) strtoul(de->d_name, NULL, 10));
	FreeDir(dir);
	return list;
}

bool
ab_storage_dir_exists(Oid db, Oid spc)
{
	char	   *path = GetDatabasePath(db, spc);
	struct stat st;
	bool		exists = lstat(path, &st) == 0;

	pfree(path);
	return exists;
}

List *
ab_storage_dirs(Oid db, int elevel)
{
	List	   *list = ab_storage_tablespaces(elevel);
	List	   *dirs = NIL;
	ListCell   *lc;

	foreach(lc, list)
		if (ab_storage_dir_exists(db, lfirst_oid(lc)))
			dirs = lappend(dirs, GetDatabasePath(db, lfirst_oid(lc)));
	list_free(list);
	return dirs;
}

bool
ab_storage_remove_dirs(Oid db)
{
	List	   *dirs = ab_storage_dirs(db, WARNING);
	bool		ok = true;
	ListCell   *lc;

	foreach(lc, dirs)
	{
		char	   *path = lfirst(lc);

		if (!rmtree(path, true))
		{
			ereport(WARNING,
					(errmsg("some files may be left behind in old branch directory \"%s\"",
							path)));
			ok = false;
		}
	}
	list_free_deep(dirs);
	return ok;
}

/* In recovery it may be dropped further on. */
bool
ab_storage_has_tablespace(Oid spc)
{
	char		path[MAXPGPATH];
	struct stat st;

	if (spc == DEFAULTTABLESPACE_OID || RecoveryInProgress())
		return true;
	snprintf(path, sizeof(path), "pg_tblspc/%u/%s", spc, TABLESPACE_VERSION_DIRECTORY);
	return stat(path, &st) == 0;
}

void
ab_storage_require_tablespace(Oid spc)
{
	if (!ab_storage_has_tablespace(spc))
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat directory \"pg_tblspc/%u/%s\": %m",
						spc, TABLESPACE_VERSION_DIRECTORY),
				 errhint("Check that the tablespace is mounted.")));
}

bool
ab_storage_make_dir(Oid db, Oid spc)
{
	char	   *path = GetDatabasePath(db, spc);
	bool		made = MakePGDirectory(path) == 0;
	bool		failed = !made && errno != EEXIST;

	/* in recovery a tablespace that is dropped later may be gone already */
	if (failed && errno == ENOENT)
	{
		ab_storage_require_tablespace(spc);
		failed = pg_mkdir_p(path, pg_dir_create_mode) < 0;
	}
	if (failed)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", path)));
	pfree(path);
	return made;
}

static List *
add_databases_in(List *dbs, const char *path)
{
	DIR		   *dir = AllocateDir(path);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return dbs;
	while ((de = ReadDirExtended(dir, path, LOG)) != NULL)
		if (strspn(de->d_name, "0123456789") == strlen(de->d_name))
			dbs = lappend_oid(dbs, (Oid) strtoul(de->d_name, NULL, 10));
	FreeDir(dir);
	return dbs;
}

List *
ab_storage_databases_with_files(void)
{
	List	   *spaces = ab_storage_tablespaces(LOG);
	List	   *dbs = NIL;
	ListCell   *lc;

	foreach(lc, spaces)
	{
		char	   *path = GetDatabasePath(1, lfirst_oid(lc));

		get_parent_directory(path);
		dbs = add_databases_in(dbs, path);
		pfree(path);
	}
	list_free(spaces);
	return dbs;
}

static void
sync_parent(Oid db, Oid spc)
{
	char	   *path = GetDatabasePath(db, spc);

	get_parent_directory(path);
	fsync_fname(path, true);
	pfree(path);
}

/* ---- small files ---- */

static void
close_and_raise(int fd, const char *path, const char *verb, int elevel)
{
	int			save_errno = errno;

	close(fd);
	errno = save_errno;
	ereport(elevel,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", verb, path)));
}

static int
create_file(const char *path)
{
	int			fd = BasicOpenFile(path, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path)));
	return fd;
}

static void
append_to_file(int fd, const char *path, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = ENOSPC;
			close_and_raise(fd, path, "write", ERROR);
		}
		data += n;
		len -= n;
	}
}

static void
close_file(int fd, const char *path, bool sync)
{
	if (sync && pg_fsync(fd) != 0)
		close_and_raise(fd, path, "fsync", data_sync_elevel(ERROR));
	if (close(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", path)));
}

static char *
file_in_database(Oid db, Oid spc, const char *name)
{
	char	   *dir = GetDatabasePath(db, spc);
	char	   *path = psprintf("%s/%s", dir, name);

	pfree(dir);
	return path;
}

static void
write_small_file(Oid db, Oid spc, const char *name, const char *data, size_t len)
{
	char	   *path = file_in_database(db, spc, name);
	char		tmp[MAXPGPATH];

	/* a name that backups and pg_checksums pass over */
	snprintf(tmp, sizeof(tmp), PG_TEMP_FILE_PREFIX "_ab.%d.%s", (int) getpid(), name);
	ab_file_write_via(file_in_database(db, spc, tmp), path, data, len, false);
	pfree(path);
}

void
ab_storage_write_version(Oid db, Oid spc)
{
	write_small_file(db, spc, "PG_VERSION", VERSION_TEXT, strlen(VERSION_TEXT));
}

void
ab_storage_write_relmap(Oid db, Oid spc, const char *relmap)
{
	write_small_file(db, spc, "pg_filenode.map", relmap, AB_RELMAP_SIZE);
}

/* Bytes at the start of a file, and its length; -1 if it cannot be read. */
static off_t
peek_file(Oid db, Oid spc, const char *name, char *buf, size_t len)
{
	char	   *path = file_in_database(db, spc, name);
	int			fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	struct stat st;
	off_t		size = -1;

	pfree(path);
	if (fd < 0)
		return -1;
	if (fstat(fd, &st) == 0 && st.st_size >= (off_t) len &&
		pg_pread(fd, buf, len, 0) == (ssize_t) len)
		size = st.st_size;
	close(fd);
	return size;
}

bool
ab_storage_version_sound(Oid db, Oid spc)
{
	char		text[sizeof(VERSION_TEXT) - 1];

	return peek_file(db, spc, "PG_VERSION", text, sizeof(text)) == sizeof(text) &&
		memcmp(text, VERSION_TEXT, sizeof(text)) == 0;
}

/*
 * The server overwrites the map in place, one sector, synced: a map that has its
 * length and its first word was written whole, by us or by it.
 */
bool
ab_storage_relmap_sound(Oid db, Oid spc)
{
	uint32		magic;

	return peek_file(db, spc, "pg_filenode.map", (char *) &magic,
					 sizeof(magic)) == AB_RELMAP_SIZE &&
		magic == RELMAP_MAGIC;
}

static bool
has_length(const char *path, off_t length)
{
	struct stat st;

	return stat(path, &st) == 0 && st.st_size == length;
}

bool
ab_storage_has_small_files(Oid db, Oid spc)
{
	char	   *version = file_in_database(db, spc, "PG_VERSION");
	char	   *relmap = file_in_database(db, spc, "pg_filenode.map");
	bool		result = has_length(version, sizeof(VERSION_TEXT) - 1) &&
		has_length(relmap, AB_RELMAP_SIZE);

	pfree(version);
	pfree(relmap);
	return result;
}

/* ---- the mark of unfinished creation ---- */

static void
mark_path(char *path, Oid db)
{
	snprintf(path, MAXPGPATH, AB_BRANCH_DIR "/%u" AB_MARK_SUFFIX, db);
}

/*
 * Not synced: it has to survive the death of processes, and after a power cut
 * it is there if the directory is, which was made after it.
 */
void
ab_storage_mark(Oid db)
{
	char		path[MAXPGPATH];

	mark_path(path, db);
	close_file(create_file(path), path, false);
}

void
ab_storage_unmark(Oid db)
{
	char		path[MAXPGPATH];

	mark_path(path, db);
	if (unlink(path) < 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}

List *
ab_storage_marked(void)
{
	DIR		   *dir = AllocateDir(AB_BRANCH_DIR);
	List	   *dbs = NIL;
	struct dirent *de;

	while ((de = ReadDir(dir, AB_BRANCH_DIR)) != NULL)
	{
		size_t		digits = strspn(de->d_name, "0123456789");

		if (digits > 0 && strcmp(de->d_name + digits, AB_MARK_SUFFIX) == 0)
			dbs = lappend_oid(dbs, (Oid) strtoul(de->d_name, NULL, 10));
	}
	FreeDir(dir);
	return dbs;
}

/* ---- unlogged relations ---- */

/* Write the snapshot's init fork as one fork of the branch. */
static void
copy_init_fork(Oid db, const AbManifest *m, const AbForkEntry *e, ForkNumber fork)
{
	char	   *path = GetRelationPath(db, e->spc, e->rel, InvalidBackendId, fork);
	int			fd = create_file(path);
	PGAlignedBlock page;

	for (BlockNumber block = 0; block < e->nblocks; block++)
	{
		PG_TRY();
		{
			ab_snapshot_read(m, e, block, page.data);
		}
		PG_CATCH();
		{
			close(fd);
			PG_RE_THROW();
		}
		PG_END_TRY();
		append_to_file(fd, path, page.data, BLCKSZ);
	}
	close_file(fd, path, true);
	pfree(path);
}

bool
ab_storage_has_unlogged(const AbManifest *m)
{
	for (uint32 i = 0; i < m->h->nforks; i++)
		if (m->forks[i].fork == INIT_FORKNUM)
			return true;
	return false;
}

/*
 * Crash recovery empties unlogged relations by their init forks, with file
 * operations of its own (reinit.c): it must find whole files here, whatever the
 * parent's have become (F9).  In redo only init forks are made: recovery makes the
 * main forks at its end, and wants to be the first.
 */
void
ab_storage_make_unlogged(Oid db, const AbManifest *m, bool redo)
{
	List	   *spaces = NIL;
	ListCell   *lc;

	for (uint32 i = 0; i < m->h->nforks; i++)
	{
		const AbForkEntry *e = &m->forks[i];

		if (e->fork != INIT_FORKNUM)
			continue;
		if (!list_member_oid(spaces, e->spc))
		{
			TablespaceCreateDbspace(e->spc, db, redo);
			spaces = lappend_oid(spaces, e->spc);
		}
		copy_init_fork(db, m, e, INIT_FORKNUM);
		if (!redo)
			copy_init_fork(db, m, e, MAIN_FORKNUM);
	}

	foreach(lc, spaces)
	{
		char	   *dir = GetDatabasePath(db, lfirst_oid(lc));

		fsync_fname(dir, true);
		pfree(dir);
		sync_parent(db, lfirst_oid(lc));
	}
	list_free(spaces);
}

/* ---- what may be damaged, or not be there ---- */

AbManifest *
ab_storage_try_manifest(AbSnapId snapshot, bool *missing)
{
	AbBeforeTry before = ab_before_try();
	AbManifest *volatile m = NULL;

	*missing = false;
	PG_TRY();
	{
		m = ab_manifest_acquire(snapshot);
	}
	PG_CATCH();
	{
		ErrorData  *edata = ab_caught_damage(&before);

		*missing = edata->sqlerrcode == ERRCODE_UNDEFINED_FILE;
		ereport(LOG,
				(errmsg("a branch's snapshot cannot be read: %s", edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	return m;
}

/* ---- the origin file ---- */

void
ab_storage_write_origin(const xl_ab_branch_create *rec, AbSnapId incarnation,
						bool durably)
{
	AbOriginHeader header = {0};

	header.incarnation = incarnation;
	header.snapshot = rec->snapshot;
	header.db = rec->db;
	header.spc = rec->spc;
	header.parent_db = rec->parent_db;
	header.depth = rec->depth;
	header.created_at = rec->created_at;
	ab_storage_restore_origin(&header, durably);
}

void
ab_storage_restore_origin(const AbOriginHeader *header, bool durably)
{
	ab_origin_create(header, durably);
	ab_snaptable_ref(header->snapshot, 1);
	ab_snaptable_lend(header->snapshot, header->parent_db);
}

bool
ab_storage_read_listed(const AbOrigins *origins, int i, AbOriginHeader *header)
{
	if (origins->gathered[i] == NULL)
		return ab_storage_read_origin(origins->dbs[i], header);
	return ab_origins_read(origins, i, header);
}

bool
ab_storage_read_origin(Oid db, AbOriginHeader *header)
{
	AbBeforeTry before = ab_before_try();
	volatile bool found = false;

	PG_TRY();
	{
		found = ab_origin_read(db, header);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		if (geterrcode() != ERRCODE_DATA_CORRUPTED)
			PG_RE_THROW();
		edata = ab_caught(&before);
		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg_internal("%s", edata->message),
				 edata->detail ? errdetail_internal("%s", edata->detail) : 0));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	return found;
}

void
ab_storage_drop_origin(Oid db)
{
	AbOriginHeader header;
	bool		known = ab_storage_read_origin(db, &header);

	if (known)
		ab_storage_drop_known_origin(&header);
	else
		(void) ab_origin_remove(db);
}

void
ab_storage_drop_known_origin(const AbOriginHeader *header)
{
	if (ab_origin_remove(header->db))
		ab_snaptable_ref(header->snapshot, -1);
}
