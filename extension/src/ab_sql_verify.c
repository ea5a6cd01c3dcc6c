/*
 * ab_sql_verify.c
 *	  branch.verify(): do the files say what the invariants of extension/README say?
 *
 * Backends in the control database.  A branch is looked at under AccessShareLock on
 * its database object, so that nobody drops it meanwhile; one that is being made or
 * dropped is left out.  Nothing is changed.  Storage that merely waits for the next
 * sweep is garbage, not a violation (B1): branch.gc(dry_run => true) lists it.
 */
#include "ab_compat.h"

#include <sys/stat.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_dir.h"
#include "ab_file.h"
#include "ab_gc.h"
#include "ab_hidden.h"
#include "ab_images.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_registry.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_storagefiles.h"

PG_FUNCTION_INFO_V1(ab_sql_verify);

typedef struct Verify
{
	ReturnSetInfo *rsinfo;
	HTAB	   *snapshots;		/* ids looked at already */
} Verify;

static void report(Verify *v, const char *object, const char *fmt,...) pg_attribute_printf(3, 4);

static void
report(Verify *v, const char *object, const char *fmt,...)
{
	Datum		values[2];
	bool		nulls[2] = {false, false};
	StringInfoData problem;

	initStringInfo(&problem);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&problem, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&problem, needed);
	}
	values[0] = CStringGetTextDatum(object);
	values[1] = CStringGetTextDatum(problem.data);
	tuplestore_putvalues(v->rsinfo->setResult, v->rsinfo->setDesc, values, nulls);
}

/* ---- snapshots ---- */

static char *
snapshot_label(AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	return psprintf("snapshot %s", text);
}

/* Blocks of a layer's file, -1 without one; a ragged end is reported. */
static int64
layer_blocks(Verify *v, const char *label, AbSnapId id)
{
	char	   *path = ab_snapshot_path(id, ".pages");
	struct stat st;

	if (stat(path, &st) < 0)
	{
		report(v, label, "layer file \"%s\" cannot be read: %s", path, strerror(errno));
		return -1;
	}
	if (st.st_size % BLCKSZ != 0)
		report(v, label, "length %lld of layer file \"%s\" is no multiple of a block",
			   (long long) st.st_size, path);
	return st.st_size / BLCKSZ;
}

/* Every run lies inside the file of its layer (S2, S4). */
static void
check_layers(Verify *v, const char *label, const AbManifest *m)
{
	int64	   *blocks;

	if (m->h->nlayers == 0)
		return;
	blocks = palloc(m->h->nlayers * sizeof(int64));
	for (uint32 i = 0; i < m->h->nlayers; i++)
	{
		if (m->layers[i].live_db != InvalidOid)
			blocks[i] = -1;		/* a database, not a file */
		/* a snapshot without pages of its own may have no file for them */
		else if (i == 0 && m->h->pages_blocks == 0)
			blocks[i] = 0;
		else
			blocks[i] = layer_blocks(v, label, m->layers[i].id);
	}
	if (blocks[0] >= 0 && blocks[0] < (int64) m->h->pages_blocks)
		report(v, label, "layer file has " INT64_FORMAT " blocks instead of %u",
			   blocks[0], m->h->pages_blocks);
	for (uint32 i = 0; i < m->h->nruns; i++)
	{
		const AbRun *run = &m->runs[i];

		if (run->layer >= m->h->nlayers)
			report(v, label, "run %u names layer %u of %u", i, run->layer, m->h->nlayers);
		else if (blocks[run->layer] >= 0 &&
				 (int64) run->position + run->count > blocks[run->layer])
			report(v, label, "run %u ends at block %lld of layer %u, which has " INT64_FORMAT,
				   i, (long long) run->position + run->count, run->layer,
				   blocks[run->layer]);
	}
}

/*
 * Manifest and layers of a snapshot, once in each call of verify.  frozen_xid and
 * min_multi of a sound one are given back.
 */
static bool
check_snapshot(Verify *v, AbSnapId id, AbManifestHeader *header)
{
	char	   *label = snapshot_label(id);
	char	   *path = ab_snapshot_path(id, ".manifest");
	char	   *image;
	char	   *problem;
	size_t		len;
	AbManifest	m;
	bool		seen;

	(void) hash_search(v->snapshots, &id, HASH_ENTER, &seen);
	image = ab_file_read(path, &len);
	if (image == NULL)
	{
		if (!seen)
			report(v, label, "manifest \"%s\" is missing", path);
		return false;
	}
	problem = ab_manifest_check(image, len, &m);
	if (problem != NULL)
	{
		if (!seen)
			report(v, label, "manifest \"%s\" is damaged: %s", path, problem);
		pfree(image);
		return false;
	}
	*header = *m.h;
	if (!seen)
	{
		if (!AbSnapIdEquals(m.h->id, id))
			report(v, label, "manifest \"%s\" is that of another snapshot", path);
		if (ab_snaptable_is_poisoned(id))
			report(v, label, "it is poisoned: its pages must not be read");
		check_layers(v, label, &m);
	}
	pfree(image);
	return true;
}

/* ---- branches ---- */

/* What pg_database says, against origin and manifest. */
static void
check_row(Verify *v, const char *label, Form_pg_database row,
		  const AbOriginHeader *origin, const AbManifestHeader *m)
{
	if (row->dattablespace != origin->spc)
		report(v, label, "its default tablespace is %u, but its files were made in %u",
			   row->dattablespace, origin->spc);
	if (row->datconnlimit == DATCONNLIMIT_INVALID_DB)
		report(v, label, "it is marked invalid: a DROP DATABASE was interrupted");
	if (m != NULL && TransactionIdIsNormal(m->frozen_xid) &&
		TransactionIdIsNormal(row->datfrozenxid) &&
		TransactionIdPrecedes(row->datfrozenxid, m->frozen_xid))
		report(v, label, "datfrozenxid %u precedes %u of its snapshot",
			   row->datfrozenxid, m->frozen_xid);
}

static void
check_files(Verify *v, const char *label, const AbOriginHeader *origin)
{
	/* what is missing is made when it is needed, unless it had been changed */
	if (ab_dir_has_lost_map(origin->db))
		report(v, label, "pg_filenode.map is missing or damaged");
}

/* Row and registry agree whether it is deleted, recoverably. */
static void
check_deletion(Verify *v, const char *label, Form_pg_database row)
{
	bool		deleted = ab_database_is_deleted(row->oid);
	AbRegistryRow r;
	bool		remembered;

	remembered = ab_registry_get(row->oid, &r) && !r.isnull[AB_REGISTRY_DELETED_AT];
	if (deleted && row->datallowconn)
		report(v, label, "it is deleted, but can be connected to");
	if (deleted && !remembered)
		report(v, label, "it is deleted, but nobody knows since when: it stays until branch.delete() or branch.recover() is called");
	if (!deleted && remembered)
		report(v, label, "branch.registry says that it is deleted");
}

/* Its row exists and its object is locked. */
static void
check_locked_branch(Verify *v, Form_pg_database row)
{
	char	   *label = psprintf("branch \"%s\"", NameStr(row->datname));
	char	   *problem = ab_origin_check(row->oid);
	AbOriginHeader origin;
	AbManifestHeader m;
	AbSnapSlot	slot;
	bool		sound;

	if (problem != NULL)
	{
		report(v, label, "origin file: %s", problem);
		return;
	}
	if (!ab_origin_read(row->oid, &origin))
		return;
	if (origin.db != row->oid)
		report(v, label, "its origin file is that of database %u", origin.db);
	if (!ab_snaptable_get(origin.snapshot, &slot))
		report(v, label, "%s is not in the table of snapshots",
			   snapshot_label(origin.snapshot));
	else
	{
		if (!slot.confirmed)
			report(v, label, "%s was never confirmed", snapshot_label(origin.snapshot));
		if (slot.nbranches == 0)
			report(v, label, "%s counts no branches", snapshot_label(origin.snapshot));
		/* restored to a snapshot of itself, it hangs on one of what it was before */
		if (slot.source_db != origin.parent_db &&
			SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(slot.source_db)))
			report(v, label, "%s was taken of database %u, not of its parent %u",
				   snapshot_label(origin.snapshot), slot.source_db, origin.parent_db);
	}
	sound = check_snapshot(v, origin.snapshot, &m);
	if (sound && origin.depth != m.depth + 1)
		report(v, label, "its depth is %u, that of its snapshot %u", origin.depth, m.depth);
	check_row(v, label, row, &origin, sound ? &m : NULL);
	check_deletion(v, label, row);
	check_files(v, label, &origin);
}

/* Lock the database object for a moment; skip what is being made or dropped. */
static void
check_branch(Verify *v, Oid db)
{
	LOCKTAG		tag;
	HeapTuple	tuple;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	if (LockAcquire(&tag, AccessShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return;
	AcceptInvalidationMessages();
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	if (HeapTupleIsValid(tuple))
	{
		check_locked_branch(v, (Form_pg_database) GETSTRUCT(tuple));
		ReleaseSysCache(tuple);
	}
	LockRelease(&tag, AccessShareLock, false);
}

static void
check_all_branches(Verify *v)
{
	int			n;
	Oid		   *dbs = ab_origin_list(&n);
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "agent_branch verify",
											  ALLOCSET_DEFAULT_SIZES);

	for (int i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		CHECK_FOR_INTERRUPTS();
		check_branch(v, dbs[i]);
		MemoryContextSwitchTo(old);
		MemoryContextReset(cxt);
	}
	MemoryContextDelete(cxt);
}

/* ---- the whole ---- */

static void
check_all_snapshots(Verify *v)
{
	int			n;
	AbSnapSlot *slots = ab_snaptable_all(&n);

	for (int i = 0; i < n; i++)
	{
		AbManifestHeader m;
		AbSnapSlot	now;

		CHECK_FOR_INTERRUPTS();
		if (!slots[i].confirmed || !ab_snaptable_get(slots[i].id, &now))
			continue;			/* retired meanwhile */
		(void) check_snapshot(v, slots[i].id, &m);
	}
}

/* The store's own rules (README.before_images, E4). */
static void
check_images(Verify *v)
{
	int			n;
	Oid		   *dbs = ab_images_databases(&n);

	for (int i = 0; i < n; i++)
	{
		ListCell   *lc;

		CHECK_FOR_INTERRUPTS();
		foreach(lc, ab_images_check(dbs[i]))
			report(v, psprintf("saved pages of database %u", dbs[i]), "%s",
				   (char *) lfirst(lc));
	}
}

/* Rows that stand for snapshots which are no more. */
static void
check_stray_rows(Verify *v)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database row = (Form_pg_database) GETSTRUCT(tuple);
		AbSnapId	id;
		AbSnapSlot	slot;

		if (ab_hidden_name_parse(NameStr(row->datname), &id) &&
			!ab_snaptable_get(id, &slot))
			report(v, snapshot_label(id), "database \"%s\" stands for it, but it does not exist",
				   NameStr(row->datname));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/*
 * Files that should have been cleared away when the server started: everything in
 * the making is younger than that.  In recovery a server that stopped between the two
 * records of a snapshot has its manifest, and goes on to the second one.
 */
static void
check_old_files(Verify *v, const char *directory)
{
	DIR		   *dir = AllocateDir(directory);
	struct dirent *de;
	pg_time_t	started = timestamptz_to_time_t(PgStartTime);

	while ((de = ReadDir(dir, directory)) != NULL)
	{
		char	   *path = psprintf("%s/%s", directory, de->d_name);
		AbSnapId	id;
		struct stat st;

		if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_mtime >= started)
			continue;
		if (strncmp(de->d_name, AB_TMP_PREFIX, strlen(AB_TMP_PREFIX)) == 0)
			report(v, path, "temporary file older than this server's start");
		else if (ab_snapshot_parse_file(de->d_name, ".pending", &id) && !RecoveryInProgress())
			report(v, path, "manifest never confirmed, older than this server's start");
		pfree(path);
	}
	FreeDir(dir);
}

/*
 * Layers that no manifest names and that are not in the making: a snapshot is in
 * the table before its layer has a name.
 */
static void
check_stray_layers(Verify *v)
{
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;
	List	   *ids = NIL;
	HTAB	   *named;
	HASHCTL		ctl;
	ListCell   *lc;

	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = ctl.entrysize = sizeof(AbSnapId);
	ctl.hcxt = CurrentMemoryContext;
	named = hash_create("agent_branch layers", 64, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	while ((de = ReadDir(dir, AB_SNAPSHOT_DIR)) != NULL)
	{
		AbSnapId	id;

		if (ab_snapshot_parse_file(de->d_name, ".pages", &id))
		{
			AbSnapId   *copy = palloc(sizeof(AbSnapId));

			*copy = id;
			ids = lappend(ids, copy);
		}
		else if (ab_snapshot_parse_file(de->d_name, ".manifest", &id))
		{
			size_t		len;
			char	   *image = ab_file_read(ab_snapshot_path(id, ".manifest"), &len);
			AbManifest	m;

			if (image == NULL || ab_manifest_check(image, len, &m) != NULL)
				continue;
			for (uint32 i = 0; i < m.h->nlayers; i++)
				(void) hash_search(named, &m.layers[i].id, HASH_ENTER, NULL);
			pfree(image);
		}
	}
	FreeDir(dir);

	foreach(lc, ids)
	{
		AbSnapId   *id = lfirst(lc);
		char	   *path = ab_snapshot_path(*id, ".pages");
		AbSnapSlot	slot;

		if (hash_search(named, id, HASH_FIND, NULL) == NULL &&
			!ab_snaptable_get(*id, &slot) && ab_file_exists(path))
			report(v, snapshot_label(*id), "no manifest needs its layer \"%s\"", path);
	}
}

static void
check_gathered(Verify *v)
{
	AbPack		pack;

	ab_originpack_read(&pack);
	if (pack.problem != NULL)
		report(v, "gathered origins", "file \"%s\": %s", AB_PACK_FILE, pack.problem);
	ab_originpack_free(&pack);
}

Datum
ab_sql_verify(PG_FUNCTION_ARGS)
{
	Verify		v;
	HASHCTL		ctl;
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_text(fcinfo, 0);
	InitMaterializedSRF(fcinfo, 0);
	ab_request_first_sweep();

	v.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = ctl.entrysize = sizeof(AbSnapId);
	ctl.hcxt = CurrentMemoryContext;
	v.snapshots = hash_create("agent_branch snapshots verified", 64, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	if (name == NULL)
	{
		check_all_branches(&v);

		/* from here on nothing may be given back between two looks */
		(void) ab_gc_lock();
		check_all_snapshots(&v);
		check_stray_rows(&v);
		check_images(&v);
		check_gathered(&v);
		check_old_files(&v, AB_SNAPSHOT_DIR);
		check_old_files(&v, AB_BRANCH_DIR);
		check_stray_layers(&v);
		ab_gc_unlock();
		return (Datum) 0;
	}
	db = get_database_oid(name, true);
	if (!OidIsValid(db))
		db = ab_find_deleted(name, false);
	if (!OidIsValid(db))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("branch \"%s\" does not exist", name),
				 errhint("The view branch.branches lists those that do.")));
	if (!ab_origin_exists(db))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("database \"%s\" is not a branch", name),
				 errhint("The view branch.branches lists the branches.")));
	check_branch(&v, db);
	return (Datum) 0;
}
