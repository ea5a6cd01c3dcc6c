/*
 * ab_dir.c
 *	  base/<db> of a branch, with PG_VERSION, pg_filenode.map and the relcache init
 *	  file, made when it is first needed.
 *
 * A branch is its origin file; whoever creates one makes nothing else, unless it has
 * unlogged relations.  All that is in the directory to begin with follows from the
 * snapshot's manifest, so it is made by who needs it first: a client that has been
 * authenticated, whoever has a background worker connect, a statement that makes the
 * server read or remove it, and replay.  Directories in other tablespaces, and that of
 * the default one for relation files alone, md makes as ever.
 *
 * D1  A branch is sound whatever of its directory is missing, and nobody concludes
 *     anything from that.  It may be empty, since replay makes it for relation files.
 * D2  PG_VERSION and the map get their names when they have their contents, under the
 *     origin lock, exclusive, and only where none is that is whole.  Hence of many makers
 *     each finds the first one's, and no map that the server has changed is ever replaced:
 *     it overwrites that in place, so it is whole at any moment.
 * D3  A map that is missing, or not whole, was not changed, or WAL that will be replayed
 *     has the change.  For before a map is changed for the first time its name and the
 *     directory's are durable: the transaction that has changed it syncs them before it
 *     commits (it has made a file in the branch, which is when it is asked), and so does
 *     replay after it.  The server syncs the contents.
 * D4  On a running server who makes the directory holds a lock on the database object and
 *     has seen the origin under it; who removes either holds AccessExclusiveLock.  So no
 *     directory outlives its origin.
 * D5  The relcache init file of the snapshot is handed only to who has made the directory
 *     himself: nobody has been in the branch before, so its catalogs are the snapshot's.
 *     After a start of the server there is none (N2 in ab_initfile.c).
 *
 * Backends, the sweeper, the startup process, and the postmaster at start.  A crash leaves
 * pgsql_tmp* files in the directory, or a part of it: D1.
 */
#include "ab_dir.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace_d.h"
#include "commands/tablespace.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/relmapper.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_initfile.h"
#include "ab_origin.h"
#include "ab_originfile.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"

/* ---- making ---- */

/* The map of a snapshot that cannot be used as one, or false. */
static bool
relmap_of_unreadable(AbSnapId snapshot, char *relmap)
{
	char	   *manifest = ab_snapshot_path(snapshot, ".manifest");
	char	   *poisoned = ab_snapshot_path(snapshot, ".poisoned");
	char	   *file;
	size_t		len;
	bool		found = true;
	AbManifest	m;

	if ((file = ab_file_read(manifest, &len)) != NULL &&
		ab_manifest_check(file, len, &m) == NULL)
		memcpy(relmap, m.relmap, AB_RELMAP_SIZE);
	else if ((file = ab_file_read(poisoned, &len)) != NULL && len > AB_RELMAP_SIZE &&
			 file[len - AB_RELMAP_SIZE - 1] == '\0')
		memcpy(relmap, file + len - AB_RELMAP_SIZE, AB_RELMAP_SIZE);
	else
		found = false;
	if (file != NULL)
		pfree(file);
	pfree(manifest);
	pfree(poisoned);
	return found;
}

/*
 * It is in the manifest, and if replay found none, behind the reason in the mark: without
 * it a session of the branch would not even come to hear that its snapshot is gone.
 */
static bool
relmap_of(AbSnapId snapshot, char *relmap)
{
	bool		missing;
	AbManifest *m = ab_storage_try_manifest(snapshot, &missing);

	if (m == NULL)
		return relmap_of_unreadable(snapshot, relmap);
	memcpy(relmap, m->relmap, AB_RELMAP_SIZE);
	ab_manifest_release(m);
	return true;
}

void
ab_dir_make(Oid db, Oid spc, AbSnapId snapshot, const char *relmap)
{
	LWLock	   *lock = MyProc != NULL ? ab_origin_lock(db) : NULL;
	bool		made;

	AB_FAILPOINT_NO_ERROR("directory-begun");
	if (lock != NULL)
		LWLockAcquire(lock, LW_EXCLUSIVE);
	made = ab_storage_make_dir(db, spc);
	AB_FAILPOINT_NO_ERROR("directory-made");
	if (relmap != NULL && !ab_storage_relmap_sound(db, spc))
		ab_storage_write_relmap(db, spc, relmap);
	AB_FAILPOINT_NO_ERROR("directory-mapped");
	if (made)
		ab_initfile_give(snapshot, db, spc);
	if (!ab_storage_version_sound(db, spc))
		ab_storage_write_version(db, spc);
	AB_FAILPOINT_NO_ERROR("directory-whole");
	if (lock != NULL)
		LWLockRelease(lock);
}

/* As in relmapper.c of 15: magic, number of entries, entries. */
typedef struct MapEntry
{
	Oid			mapoid;
	Oid			mapfilenode;
} MapEntry;

#define MAP_ENTRIES_AT (2 * sizeof(int32))

static int
map_length(const char *relmap)
{
	int32		n;

	memcpy(&n, relmap + sizeof(int32), sizeof(n));
	return Max(Min(n, (int) ((AB_RELMAP_SIZE - MAP_ENTRIES_AT) / sizeof(MapEntry))), 0);
}

static MapEntry
map_entry(const char *relmap, int i)
{
	MapEntry	entry;

	memcpy(&entry, relmap + MAP_ENTRIES_AT + i * sizeof(entry), sizeof(entry));
	return entry;
}

/*
 * Has the branch dropped a file that the snapshot's map names?  That follows each change
 * of the map, and nothing else does it.
 */
static bool
map_was_changed(const AbOriginImage *image, const char *relmap)
{
	for (int k = 0; k < image->nslots; k++)
	{
		const AbLimitSlot *slot = &image->slots[k];

		if (slot->fork != AB_ALL_FORKS || slot->spc != image->header.spc)
			continue;
		for (int i = 0; i < map_length(relmap); i++)
			if (map_entry(relmap, i).mapfilenode == slot->rel)
				return true;
	}
	return false;
}

/* Frees the image.  elevel: for a map that is lost, which D3 does not let happen. */
static void
make_of_origin(AbOriginImage *image, int elevel)
{
	const AbOriginHeader *origin = &image->header;
	char		relmap[AB_RELMAP_SIZE];
	bool		known = relmap_of(origin->snapshot, relmap);

	if (known && !ab_storage_relmap_sound(origin->db, origin->spc) &&
		map_was_changed(image, relmap))
	{
		ereport(elevel,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("pg_filenode.map of branch database %u is missing or damaged",
						origin->db),
				 errdetail("The branch had changed it, so the one that it inherits is of no use.")));
		known = false;
	}
	ab_dir_make(origin->db, origin->spc, origin->snapshot, known ? relmap : NULL);
	ab_originfile_free(image);
}

bool
ab_dir_is_whole(Oid db, Oid spc)
{
	return ab_storage_has_small_files(db, spc);
}

void
ab_dir_ensure(Oid db, Oid spc)
{
	AbOriginImage image;

	if (ab_dir_is_whole(db, spc))
		return;
	LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	AB_FAILPOINT("directory-locked");
	if (ab_originfile_load(db, &image))
		make_of_origin(&image, ERROR);
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
}

/* False, after a WARNING, if the origin is damaged, or if there is none. */
static bool
try_load(Oid db, AbOriginImage *image)
{
	AbOriginHeader header;

	return ab_storage_read_origin(db, &header) && ab_originfile_load(db, image);
}

void
ab_dir_try(Oid db)
{
	AbOriginImage image;

	if (try_load(db, &image))
		make_of_origin(&image, WARNING);
}

bool
ab_dir_has_lost_map(Oid db)
{
	AbOriginImage image;
	char		relmap[AB_RELMAP_SIZE];
	bool		lost;

	if (!try_load(db, &image))
		return false;
	lost = !ab_storage_relmap_sound(db, image.header.spc) &&
		relmap_of(image.header.snapshot, relmap) && map_was_changed(&image, relmap);
	ab_originfile_free(&image);
	return lost;
}

void
ab_dir_make_empty(Oid db, Oid spc)
{
	TablespaceCreateDbspace(spc, db, RecoveryInProgress());
}

/* ---- changes of the map ---- */

void
ab_dir_sync_names(Oid db, Oid spc)
{
	char	   *dir = GetDatabasePath(db, spc);
	char	   *map = psprintf("%s/pg_filenode.map", dir);

	ab_file_sync_parent(map);
	ab_file_sync_parent(dir);
	pfree(map);
	pfree(dir);
}

/* Has this transaction given a mapped catalog of its database another file? */
static bool
map_will_change(const char *relmap)
{
	for (int i = 0; i < map_length(relmap); i++)
	{
		MapEntry	entry = map_entry(relmap, i);

		if (RelationMapOidToFilenode(entry.mapoid, false) != entry.mapfilenode)
			return true;
	}
	return false;
}

static Oid	new_file_in = InvalidOid;
static bool map_changes = false;

static void
before_commit(void)
{
	char		path[MAXPGPATH];
	char	   *file;
	size_t		len = 0;

	if (new_file_in != MyDatabaseId || DatabasePath == NULL)
		return;
	snprintf(path, sizeof(path), "%s/pg_filenode.map", DatabasePath);
	file = ab_file_read(path, &len);
	map_changes = file == NULL || len != AB_RELMAP_SIZE || map_will_change(file);
	if (map_changes)
	{
		ab_dir_sync_names(MyDatabaseId, MyDatabaseTableSpace);
		AB_FAILPOINT("directory-synced");
	}
	if (file != NULL)
		pfree(file);
}

static void
at_xact_end(XactEvent event, void *arg)
{
	if (new_file_in == InvalidOid)
		return;
	if (event == XACT_EVENT_PRE_COMMIT)
	{
		before_commit();
		return;
	}
	if (event == XACT_EVENT_COMMIT && map_changes)
		AB_FAILPOINT_NO_ERROR("map-changed");
	new_file_in = InvalidOid;
	map_changes = false;
}

void
ab_dir_note_new_file(Oid db)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		registered = true;
	}
	new_file_in = db;
}

/*
 * Nobody may have needed the directory here before.  It gets the map of the record, which
 * the server then overwrites with the same.
 */
bool
ab_dir_before_relmap_redo(const xl_relmap_update *rec)
{
	AbSnapId	none = {0};
	bool		is_branch;

	if (!OidIsValid(rec->dbid) || rec->nbytes != AB_RELMAP_SIZE)
		return false;
	ab_dir_make_empty(rec->dbid, rec->tsid);
	is_branch = ab_origin_exists(rec->dbid);
	if (is_branch)
		ab_dir_make(rec->dbid, rec->tsid, none, rec->data);
	AB_FAILPOINT_NO_ERROR("redo-relmap");
	return is_branch;
}

void
ab_dir_after_relmap_redo(const xl_relmap_update *rec)
{
	ab_dir_sync_names(rec->dbid, rec->tsid);
}

/* ---- repair ---- */

static void
repair(Oid db)
{
	AbOriginImage image;

	if (!try_load(db, &image))
		return;
	if (ab_storage_dir_exists(db, image.header.spc) &&
		!(ab_storage_version_sound(db, image.header.spc) &&
		  ab_storage_relmap_sound(db, image.header.spc)))
		make_of_origin(&image, LOG);
	else
		ab_originfile_free(&image);
}

/* Only directories that are there are looked at, however many branches have none. */
void
ab_dir_repair_all(void)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "agent_branch repair",
											  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	int			n;
	Oid		   *dbs = ab_origin_list(&n);
	List	   *there = ab_storage_databases_with_files();
	MemoryContext each = AllocSetContextCreate(cxt, "agent_branch repair of one",
											   ALLOCSET_SMALL_SIZES);
	ListCell   *lc;

	MemoryContextSwitchTo(each);
	foreach(lc, there)
	{
		Oid			db = lfirst_oid(lc);

		if (bsearch(&db, dbs, n, sizeof(Oid), oid_cmp) == NULL)
			continue;
		repair(db);
		MemoryContextReset(each);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}
