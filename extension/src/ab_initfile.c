/*
 * ab_initfile.c
 *	  pg_internal.init of a snapshot, handed to its branches as hard links.
 *
 * The server keeps descriptors of the catalogs of each database in this file.  It makes
 * it at the first connection, which takes a third of the time of that, and unlinks it
 * whenever it is not true any more; it never changes one, but writes another and renames
 * it.  That it may come from another database with the same catalogs is foreseen, since
 * CREATE DATABASE has copied it as well.  A branch's catalogs are those of its snapshot,
 * so the file of the source at that moment is the branch's, too.
 *
 * N1  A file that is kept was there before the snapshot, and still is after it, and at
 *     both moments it was true.  Who changes what is in it does so in a statement, thus
 *     inside the gate, and unlinks the file at commit before the locks go (2PC likewise);
 *     autovacuum, which has no gate, has gone by then.  An update in place unlinks it
 *     before it changes the row.  A new file is renamed into place only by a session that
 *     has seen all invalidations since before it read the first row.  Physical addresses
 *     of mapped catalogs are not read from it but from pg_filenode.map.
 * N2  Files of before a start of the server are not used: they may be torn (nobody
 *     syncs them), and the server removes its own then as well.
 *
 * Backends.  Their names begin like the server's file, so that base backups and
 * pg_rewind leave them out.  Whatever fails here only costs time later.
 */
#include "ab_initfile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/relpath.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/relcache.h"

#include "ab_failpoint.h"
#include "ab_file.h"

#define KEPT_PREFIX AB_INITFILE_DIR "/" RELCACHE_INIT_FILENAME "."

static void
servers_path(char path[MAXPGPATH], Oid db, Oid spc)
{
	char	   *dir = GetDatabasePath(db, spc);

	snprintf(path, MAXPGPATH, "%s/%s", dir, RELCACHE_INIT_FILENAME);
	pfree(dir);
}

static void
held_path(char path[MAXPGPATH])
{
	snprintf(path, MAXPGPATH, KEPT_PREFIX AB_TMP_PREFIX "%d", MyProcPid);
}

static void
kept_path(char path[MAXPGPATH], AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	snprintf(path, MAXPGPATH, KEPT_PREFIX "%s", text);
}

void
ab_initfile_hold(Oid db, Oid spc)
{
	char		from[MAXPGPATH];
	char		to[MAXPGPATH];

	servers_path(from, db, spc);
	held_path(to);
	ab_initfile_let_go();		/* of an earlier attempt */
	if (link(from, to) < 0)
		elog(DEBUG2, "could not link \"%s\" to \"%s\": %m", from, to);
}

void
ab_initfile_let_go(void)
{
	char		path[MAXPGPATH];

	held_path(path);
	(void) unlink(path);
}

static bool
same_file(const char *a, const char *b)
{
	struct stat x;
	struct stat y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 &&
		x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

void
ab_initfile_keep(AbSnapId id, Oid db, Oid spc)
{
	char		servers[MAXPGPATH];
	char		held[MAXPGPATH];
	char		kept[MAXPGPATH];

	servers_path(servers, db, spc);
	held_path(held);
	kept_path(kept, id);
	AB_FAILPOINT_NO_ERROR("initfile-held");
	if (!same_file(servers, held) || rename(held, kept) < 0)
		ab_initfile_let_go();
}

static bool
copy_bytes(int from, int to)
{
	char		buf[BLCKSZ * 4];
	ssize_t		n;

	while ((n = read(from, buf, sizeof(buf))) > 0)
		if (write(to, buf, n) != n)
			return false;
	return n == 0;
}

/* A filesystem allows only so many names of one file: go on with a copy. */
static void
copy_kept(const char *kept)
{
	char		tmp[MAXPGPATH];
	int			from = BasicOpenFile(kept, O_RDONLY | PG_BINARY);
	int			to;
	bool		copied = false;

	held_path(tmp);
	to = BasicOpenFile(tmp, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
	if (from >= 0 && to >= 0)
		copied = copy_bytes(from, to);
	if (from >= 0)
		close(from);
	if (to >= 0)
		close(to);
	if (!copied || rename(tmp, kept) < 0)
		ab_initfile_let_go();
}

void
ab_initfile_give(AbSnapId id, Oid db, Oid spc)
{
	char		kept[MAXPGPATH];
	char		to[MAXPGPATH];

	kept_path(kept, id);
	servers_path(to, db, spc);
	if (link(kept, to) == 0 || errno == ENOENT)
		return;
	if (errno == EMLINK)
	{
		copy_kept(kept);
		if (link(kept, to) == 0)
			return;
	}
	elog(DEBUG2, "could not link \"%s\" to \"%s\": %m", kept, to);
}

void
ab_initfile_drop(AbSnapId id)
{
	char		path[MAXPGPATH];

	kept_path(path, id);
	(void) unlink(path);
}

void
ab_initfile_drop_all(void)
{
	DIR		   *dir = AllocateDir(AB_INITFILE_DIR);
	struct dirent *de;

	while ((de = ReadDirExtended(dir, AB_INITFILE_DIR, LOG)) != NULL)
	{
		char		path[MAXPGPATH * 2];

		if (strncmp(de->d_name, RELCACHE_INIT_FILENAME,
					strlen(RELCACHE_INIT_FILENAME)) != 0)
			continue;
		snprintf(path, sizeof(path), AB_INITFILE_DIR "/%s", de->d_name);
		if (unlink(path) < 0)
			ereport(FATAL,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	FreeDir(dir);
}
