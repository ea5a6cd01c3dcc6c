/*
 * ab_complete_files.c
 *	  The files of a branch that is being detached: making them full length, syncing
 *	  them; and replay of BRANCH_DETACH.
 *
 * Backends and the startup process.  Nobody else makes files for the branch, on a
 * standby because only replay does.
 *
 * Whoever replays BRANCH_DETACH has replayed the images before it.  So the origin goes,
 * and pages that have not been written yet are in shared buffers.  If the origin is not
 * there, replay has come this way before, or a base backup did not catch it.  If it is
 * there and the branch is damaged, its changes were passed over: then it stays as it is
 * and answers XX001.
 */
#include "ab_complete.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlogutils.h"
#include "catalog/storage_xlog.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/procsignal.h"
#include "storage/smgr.h"

#include "ab_dir.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_manifest.h"
#include "ab_originfile.h"
#include "ab_overlay.h"
#include "ab_storagefiles.h"

/* What ab_overlay.c calls the files that it has not finished. */
#define UNFINISHED_PREFIX PG_TEMP_FILE_PREFIX "_ab."

/* ---- making ---- */

/* False: there is nothing to be made, nor perhaps a directory. */
static bool
make_file(Oid db, const AbForkEntry *e, bool log)
{
	RelFileNode rnode = {e->spc, db, e->rel};
	AbBranch   *b = ab_branch_lookup(db);
	AbFork	   *f;

	if (b == NULL)
		elog(ERROR, "database %u is not a branch any more", db);
	f = ab_fork_lookup(b, rnode, e->fork);
	if (f->entry == NULL || f->dropped || ab_overlay_is_left_over(f))
		return false;
	ab_overlay_make(b, f, smgropen(rnode, InvalidBackendId), false);
	if (log)
		log_smgrcreate(&rnode, e->fork);
	return true;
}

static void
sync_directory_of(Oid db, Oid spc)
{
	char	   *dir = GetDatabasePath(db, spc);

	fsync_fname(dir, true);
	ab_file_sync_parent(dir);
	pfree(dir);
}

/* After an error; false if it cannot be done. */
static bool
try_to_sync_directory_of(Oid db, Oid spc)
{
	char	   *dir = GetDatabasePath(db, spc);
	char	   *parent = pstrdup(dir);

	get_parent_directory(parent);
	return fsync_fname_ext(dir, true, true, LOG) == 0 &&
		fsync_fname_ext(parent, true, true, LOG) == 0;
}

/* Entries are sorted by tablespace first. */
void
ab_complete_make_files(Oid db, const AbOriginHeader *origin, bool log)
{
	AbManifest *m = ab_manifest_acquire(origin->snapshot);
	volatile Oid spc = InvalidOid;

	ab_overlay_names_begin();
	PG_TRY();
	{
		for (uint32 i = 0; i < m->h->nforks; i++)
		{
			const AbForkEntry *e = &m->forks[i];

			CHECK_FOR_INTERRUPTS();
			if (e->flags & AB_FORK_UNLOGGED)
				continue;
			if (OidIsValid(spc) && e->spc != spc)
			{
				sync_directory_of(db, spc);
				spc = InvalidOid;
			}
			if (make_file(db, e, log))
				spc = e->spc;
		}
		if (OidIsValid(spc))
			sync_directory_of(db, spc);
	}
	PG_CATCH();
	{
		/* others may have written into what was made */
		if (!OidIsValid(spc) || try_to_sync_directory_of(db, spc))
			ab_overlay_names_end();
		ab_manifest_release(m);
		PG_RE_THROW();
	}
	PG_END_TRY();
	ab_manifest_release(m);
	ab_overlay_names_end();
}

/* ---- syncing ---- */

/* fsync_fname() makes a PANIC also of a file that cannot be opened just now. */
static void
sync_file(const char *path)
{
	int			fd = OpenTransientFile(path, O_RDWR | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	if (pg_fsync(fd) != 0)
		ereport(data_sync_elevel(ERROR),
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", path)));
	CloseTransientFile(fd);
}

static void
sync_files_in(const char *dirname)
{
	DIR		   *dir = AllocateDir(dirname);
	struct dirent *de;

	while ((de = ReadDir(dir, dirname)) != NULL)
	{
		char		path[MAXPGPATH * 2];
		struct stat st;

		CHECK_FOR_INTERRUPTS();
		snprintf(path, sizeof(path), "%s/%s", dirname, de->d_name);
		if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		if (strncmp(de->d_name, UNFINISHED_PREFIX, strlen(UNFINISHED_PREFIX)) != 0)
			sync_file(path);
		else if (unlink(path) < 0 && errno != ENOENT)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	FreeDir(dir);
}

void
ab_complete_sync(Oid db)
{
	List	   *dirs = ab_storage_dirs(db, ERROR);
	ListCell   *lc;

	foreach(lc, dirs)
	{
		char	   *dir = lfirst(lc);

		sync_files_in(dir);
		fsync_fname(dir, true);
		ab_file_sync_parent(dir);
	}
	list_free_deep(dirs);
}

/* ---- replay ---- */

void
ab_complete_detach_redo(const xl_ab_branch_detach *rec, const char *relmap)
{
	AbOriginHeader origin = {0};
	bool		there = ab_origin_exists(rec->db);

	/* a later incarnation of the number stays */
	if (there && ab_storage_read_origin(rec->db, &origin) &&
		!AbSnapIdEquals(origin.incarnation, rec->incarnation))
		return;

	if (there && ab_branch_lookup(rec->db) != NULL)
		ab_complete_make_files(rec->db, &origin, false);
	else if (there && !ab_branch_passes_for_plain(rec->db))
	{
		ab_originfile_mark_lost(rec->db, rec->incarnation);
		return;
	}
	AB_FAILPOINT_NO_ERROR("redo-detach-files");

	/* whatever was missing is there now; and what is open is a branch's */
	XLogDropDatabase(rec->db);
	ab_dir_make(rec->db, rec->spc, origin.snapshot, relmap);
	ab_complete_sync(rec->db);
	AB_FAILPOINT_NO_ERROR("redo-detach-synced");
	if (!there)
		return;
	ab_storage_drop_origin(rec->db);
	WaitForProcSignalBarrier(EmitProcSignalBarrier(PROCSIGNAL_BARRIER_SMGRRELEASE));
}
