/*
 * ab_gc.c
 *	  Giving back what nobody needs (invariants B1, B3, S3, S4).
 *
 * Backends that call branch.gc() in the control database, or drop or move a database
 * that has been branched, and the sweeper.  One at a time: all functions hold a
 * heavyweight lock while they work, for which the sweeper does not wait.  Nothing here is undone by ROLLBACK; all of it is
 * decided by what is committed.  A crash leaves the rest to the next run.
 *
 * Why a snapshot can be judged unneeded: a creator holds a lock on the hidden
 * database from before it looks at the snapshot until its transaction ends, and its
 * origin file counts in nbranches from before that end.  The keeper's lock on the
 * hidden database comes after all creators' ends and before any other can find the
 * row; so nbranches, read after the row is gone, never rises again.
 */
#include "ab_gc.h"

#include <dirent.h>
#include <sys/stat.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_file.h"
#include "ab_hidden.h"
#include "ab_images.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_pins.h"
#include "ab_request.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_softdelete.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

#define GC_LOCK_KEY		0x41424743	/* "ABGC" */
#define GC_LOCK_CLASS	0xAB	/* users' advisory locks have 1 and 2 here */

/* Locks held at once while sweeping: the lock table is shared by everybody. */
#define SWEEP_BATCH		256

/* ---- serialisation ---- */

static LOCKTAG
gc_locktag(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, InvalidOid, GC_LOCK_KEY, 0, GC_LOCK_CLASS);
	return tag;
}

bool
ab_gc_lock(void)
{
	LOCKTAG		tag = gc_locktag();

	return LockAcquire(&tag, ExclusiveLock, false,
					   MyBgworkerEntry != NULL) != LOCKACQUIRE_NOT_AVAIL;
}

void
ab_gc_unlock(void)
{
	LOCKTAG		tag = gc_locktag();

	LockRelease(&tag, ExclusiveLock, false);
}

/* ---- sets of snapshot ids (AbSnapId has no padding that is not zero) ---- */

static HTAB *
id_set(void)
{
	HASHCTL		ctl;

	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AbSnapId);
	ctl.entrysize = sizeof(AbSnapId);
	ctl.hcxt = CurrentMemoryContext;
	return hash_create("agent_branch snapshot ids", 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static bool
id_in(HTAB *set, AbSnapId id)
{
	return hash_search(set, &id, HASH_FIND, NULL) != NULL;
}

static void
add_id(HTAB *set, AbSnapId id)
{
	(void) hash_search(set, &id, HASH_ENTER, NULL);
}

static List *
add_item(List *items, const char *kind, const char *name, int64 bytes)
{
	AbGcItem   *item = palloc(sizeof(AbGcItem));

	item->kind = kind;
	item->name = pstrdup(name);
	item->bytes = bytes;
	return lappend(items, item);
}

/* ---- storage without a row ---- */

/* Is there a committed (or own) row, seen with a snapshot taken now? */
static bool
database_row_exists(Oid db)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	Snapshot	snapshot;
	bool		found;

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	rel = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_database_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(db));
	scan = systable_beginscan(rel, DatabaseOidIndexId, true, snapshot, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return found;
}

static void
unlock_orphan(Oid db)
{
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
}

/*
 * Lock the database object if nobody else does and say whether its storage is
 * garbage; if not the lock is given back.  A lock we have already is a creation or
 * deletion of this very transaction, which may still be rolled back.
 */
static bool
lock_orphan(Oid db)
{
	if (ab_try_lock_database(db) != AB_LOCKED_NOW)
		return false;
	if (!database_row_exists(db))
		return true;
	unlock_orphan(db);
	return false;
}

static List *
sweep_batch(List *items, Oid *orphans, int n, bool dry_run)
{
	if (n == 0)
		return items;
	for (int i = 0; i < n; i++)
	{
		int64		bytes;
		int64		files;
		char		name[16];

		ab_storage_usage(orphans[i], &bytes, &files);
		snprintf(name, sizeof(name), "%u", orphans[i]);
		items = add_item(items, "branch", name, bytes);
	}
	if (!dry_run)
		ab_storage_remove(orphans, n);
	for (int i = 0; i < n; i++)
		unlock_orphan(orphans[i]);
	return items;
}

/* OIDs of all databases that have a row, sorted. */
static Oid *
database_oids(int *n)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			allocated = 256;
	Oid		   *oids = palloc(allocated * sizeof(Oid));

	*n = 0;
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (*n == allocated)
		{
			allocated *= 2;
			oids = repalloc(oids, allocated * sizeof(Oid));
		}
		oids[(*n)++] = ((Form_pg_database) GETSTRUCT(tuple))->oid;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	qsort(oids, *n, sizeof(Oid), oid_cmp);
	return oids;
}

typedef struct Orphan
{
	Oid			db;
	Oid			parent;
	XLogRecPtr	born;			/* 0: its origin cannot be read, and none of its pages written */
} Orphan;

static int
compare_orphans(const void *a, const void *b)
{
	XLogRecPtr	x = ((const Orphan *) a)->born;
	XLogRecPtr	y = ((const Orphan *) b)->born;

	return x > y ? -1 : x < y;
}

/* Storage without a row, the youngest first: who inherits is younger than what he inherits from. */
static Orphan *
list_orphans(int *n)
{
	int			norigins;
	int			nrows;
	Oid		   *origins = ab_origin_list(&norigins);
	Oid		   *rows;
	Orphan	   *orphans = palloc(Max(norigins, 1) * sizeof(Orphan));

	*n = 0;
	AcceptInvalidationMessages();
	rows = database_oids(&nrows);
	for (int i = 0; i < norigins; i++)
	{
		AbOriginHeader header = {0};

		CHECK_FOR_INTERRUPTS();
		if (bsearch(&origins[i], rows, nrows, sizeof(Oid), oid_cmp) != NULL)
			continue;
		(void) ab_storage_read_origin(origins[i], &header);
		orphans[*n].db = origins[i];
		orphans[*n].parent = header.parent_db;
		orphans[(*n)++].born = header.incarnation.lsn;
	}
	pfree(rows);
	pfree(origins);
	qsort(orphans, *n, sizeof(Orphan), compare_orphans);
	return orphans;
}

/* What one that is not removed now may inherit from stays, too (B3). */
static List *
sweep(bool dry_run)
{
	List	   *items = NIL;
	List	   *held = NIL;
	AbPinsNeeded needed = {0};
	Oid			batch[SWEEP_BATCH];
	int			nbatch = 0;
	int			n;
	Orphan	   *orphans = list_orphans(&n);

	for (int i = 0; i < n; i++)
	{
		Oid			db = orphans[i].db;

		CHECK_FOR_INTERRUPTS();
		if (list_member_oid(held, db) || !lock_orphan(db))
		{
			held = list_append_unique_oid(held, orphans[i].parent);
			continue;
		}
		if (!ab_origin_exists(db) || ab_pins_storage_needed(&needed, db))
		{
			unlock_orphan(db);	/* its abort removed it meanwhile, or it is needed */
			continue;
		}
		batch[nbatch++] = db;
		if (nbatch == SWEEP_BATCH)
		{
			items = sweep_batch(items, batch, nbatch, dry_run);
			nbatch = 0;
		}
	}
	return sweep_batch(items, batch, nbatch, dry_run);
}

List *
ab_sweep_orphans(bool dry_run)
{
	List	   *items;

	if (!ab_gc_lock())
		return NIL;
	items = sweep(dry_run);
	ab_gc_unlock();
	return items;
}

/*
 * Shared buffers of a standby may have pages of deleted branches, and whoever writes
 * one compares it with the page that it inherits, until the branch's BRANCH_DROP is
 * replayed.  So that comes before the record of what its parent's files become (B3).
 */
void
ab_gc_before_files_go(Oid db, const char *verb)
{
	LOCKTAG		tag = gc_locktag();
	Orphan	   *orphans;
	int			n;

	ab_pins_check_files(db, verb);
	if (!ab_snaptable_has_live(db))
		return;
	orphans = list_orphans(&n);
	if (n == 0)
		return;

	/* who has committed a deletion may still be about to give back his lock */
	for (int i = 0; i < n; i++)
	{
		if (orphans[i].parent != db)
			continue;
		LockSharedObject(DatabaseRelationId, orphans[i].db, 0, AccessExclusiveLock);
		unlock_orphan(orphans[i].db);
	}
	pfree(orphans);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	(void) sweep(false);
	ab_gc_unlock();
}

/* ---- snapshots ---- */

/*
 * May no further branch be made of this snapshot?  age: of its hidden row, NULL if it
 * is closed.  The newest one saves the next branch a copy; it is closed only if asked
 * for, and if no branch hangs on it.
 */
static bool
to_be_closed(const AbSnapSlot *slot, HTAB *keep, bool unused_too, const AbHiddenAge *age)
{
	AbSnapSlot	newest;

	if (id_in(keep, slot->id))
	{
		if (age == NULL || age->used < AB_HIDDEN_AGE_CLOSE)
			return false;
		ereport(WARNING,
				(errmsg("named snapshot %s is too old to be branched any more",
						ab_hidden_name(slot->id)),
				 errdetail("Its transaction ids are about to need freezing; its branches are not affected.")));
		return true;
	}
	/* an unused live one makes its source save pages for nobody */
	if (age == NULL || ((unused_too || slot->live) && slot->nbranches == 0))
		return true;
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(slot->source_db)) ||
		ab_database_is_deleted(slot->source_db))
		return true;
	if (!ab_snaptable_newest(slot->source_db, &newest) ||
		!AbSnapIdEquals(newest.id, slot->id))
		return true;
	return age->used >= AB_HIDDEN_AGE_CLOSE ||
		(age->used >= AB_HIDDEN_AGE_UNNAMED &&
		 ab_hidden_source_is_younger(slot->source_db, age));
}

/*
 * The layers a manifest names, added to a set.  False if it is damaged: then nobody
 * knows which layers it needs.
 */
static bool
add_layers_of(HTAB *layers, AbSnapId id)
{
	size_t		len;
	char	   *image = ab_file_read(ab_snapshot_path(id, ".manifest"), &len);
	char	   *problem;
	AbManifest	m;

	if (image == NULL)
		return true;			/* retired meanwhile */
	problem = ab_manifest_check(image, len, &m);
	if (problem == NULL)
	{
		for (uint32 i = 0; i < m.h->nlayers; i++)
			add_id(layers, m.layers[i].id);

		/* pages that the branch turns out not to own are read there (ab_live.c) */
		if ((m.h->flags & AB_MANIFEST_LIVE) && AbSnapIdIsValid(m.h->base))
			add_id(layers, m.h->base);
	}
	else
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("manifest of snapshot %s is damaged: %s",
						ab_hidden_name(id), problem),
				 errdetail("No layer is given back while it is there.")));
	pfree(image);
	return problem == NULL;
}

/* Ids (AbSnapId *) of all files of one kind. */
static List *
list_files(const char *suffix)
{
	List	   *ids = NIL;
	DIR		   *dir = AllocateDir(AB_SNAPSHOT_DIR);
	struct dirent *de;

	while ((de = ReadDir(dir, AB_SNAPSHOT_DIR)) != NULL)
	{
		AbSnapId   *id = palloc(sizeof(AbSnapId));

		if (ab_snapshot_parse_file(de->d_name, suffix, id))
			ids = lappend(ids, id);
		else
			pfree(id);
	}
	FreeDir(dir);
	return ids;
}

/* Has a snapshot a manifest, finished or pending? */
static bool
has_manifest(AbSnapId id)
{
	return ab_file_exists(ab_snapshot_path(id, ".manifest")) ||
		ab_file_exists(ab_snapshot_path(id, ".pending"));
}

static int64
file_bytes(AbSnapId id, const char *suffix)
{
	struct stat st;

	if (stat(ab_snapshot_path(id, suffix), &st) < 0)
		return 0;
	return (int64) st.st_blocks * 512;
}

static char *
id_text(AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	return pstrdup(text);
}

/*
 * Ids that origin files name, whether or not their branch still has a row.  False
 * if some file cannot be read: then nothing can be said of any snapshot.
 * without_orphans: a dry run, before which no sweep has removed those.
 */
static bool
read_references(HTAB *referenced, bool without_orphans)
{
	int			nrows;
	AbOrigins  *origins = ab_origin_all();
	Oid		   *rows = database_oids(&nrows);
	AbPinsNeeded needed = {0};
	bool		complete = origins->pack.problem == NULL;

	for (int i = 0; i < origins->n; i++)
	{
		AbOriginHeader header;
		Oid			db = origins->dbs[i];

		CHECK_FOR_INTERRUPTS();
		if (without_orphans &&
			bsearch(&db, rows, nrows, sizeof(Oid), oid_cmp) == NULL &&
			!ab_pins_storage_needed(&needed, db) &&
			lock_orphan(db))
		{
			unlock_orphan(db);
			continue;
		}
		if (ab_storage_read_listed(origins, i, &header))
			add_id(referenced, header.snapshot);
		else if (ab_origin_exists(db))
			complete = false;
	}
	ab_origins_free(origins);
	return complete;
}

/*
 * Close one snapshot if it is to be closed.  True if it is (or would be) closed and
 * has no branches, so that its manifest can go.
 */
static bool
close_one(AbSnapSlot *slot, HTAB *keep, bool unused_too, HTAB *dry_references)
{
	bool		dry_run = dry_references != NULL;
	AbHiddenAge age;
	bool		open = ab_hidden_read_age(slot->id, &age);
	AbSnapSlot	now;

	if (dry_run && !id_in(dry_references, slot->id))
		slot->nbranches = 0;
	if (!to_be_closed(slot, keep, unused_too, open ? &age : NULL))
		return false;

	/* a merge that was committed since the others were looked for */
	if (open && !id_in(keep, slot->id) && ab_tables_is_merge_base(slot->id))
		return false;
	if (open && !dry_run && !ab_request_drop_hidden(slot->id))
		return false;
	if (dry_run)
		now = *slot;
	else if (!ab_snaptable_get(slot->id, &now))
		return false;
	return now.nbranches == 0 &&
		!id_in(keep, slot->id); /* closed by age; its name still wants it */
}

/* Rows whose snapshot never came to be: its taker failed after the keeper's commit. */
static void
drop_stray_hidden(void)
{
	List	   *stray = NIL;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	ListCell   *lc;

	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		AbSnapId	id;
		AbSnapSlot	slot;

		if (ab_hidden_name_parse(NameStr(form->datname), &id) &&
			!ab_snaptable_get(id, &slot) && !has_manifest(id))
		{
			AbSnapId   *copy = palloc(sizeof(AbSnapId));

			*copy = id;
			stray = lappend(stray, copy);
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	foreach(lc, stray)
		(void) ab_request_drop_hidden(*(AbSnapId *) lfirst(lc));
}

/* ---- layers ---- */

/* Order does not matter; equal sets give equal sums. */
static uint64
ids_sum(uint64 sum, AbSnapId id, uint64 salt)
{
	return sum + hash_bytes_extended((const unsigned char *) &id, sizeof(id), salt);
}

/*
 * Layers that no manifest names.  The layers are listed before table and manifests
 * are read: a snapshot in the making is in the table before its layer has a name, and
 * apart from its own it names only layers of the snapshot its source hangs on, which
 * therefore has a branch and a manifest.  gone: manifests retired in this run; in a
 * dry run they are still there.
 */
static List *
retire_layers(List *items, bool dry_run, HTAB *gone)
{
	static uint64 nothing_to_do = 0;
	List	   *layers = list_files(".pages");
	List	   *manifests = list_files(".manifest");
	List	   *strays = NIL;
	HTAB	   *named = id_set();
	uint64		sum = 1;
	ListCell   *lc;

	foreach(lc, layers)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);
		AbSnapSlot	slot;

		if (!id_in(gone, id) && (ab_snaptable_get(id, &slot) || has_manifest(id)))
			continue;
		strays = lappend(strays, lfirst(lc));
		sum = ids_sum(sum, id, 1);
	}
	foreach(lc, manifests)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);

		if (!id_in(gone, id))
			sum = ids_sum(sum, id, 2);
	}
	if (strays == NIL || sum == nothing_to_do)
		return items;

	foreach(lc, manifests)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);

		if (!id_in(gone, id) && !add_layers_of(named, id))
			return items;
	}

	nothing_to_do = sum;
	foreach(lc, strays)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);

		if (id_in(named, id))
			continue;
		nothing_to_do = 0;
		items = add_item(items, "layer", id_text(id), file_bytes(id, ".pages"));
		if (!dry_run)
			ab_snapshot_retire(id, AB_RETIRE_PAGES);
	}
	return items;
}

static List *
retire_one(List *items, AbSnapId id, HTAB *gone, bool dry_run)
{
	bool		live = OidIsValid(ab_snapshot_live_source(id));

	items = add_item(items, "snapshot", id_text(id), file_bytes(id, ".manifest"));
	add_id(gone, id);
	if (!dry_run)
		ab_snapshot_retire(id, AB_RETIRE_MANIFEST | (live ? AB_RETIRE_PAGES : 0));
	return items;
}

/* ---- live snapshots ---- */

/* How many manifests of other snapshots name a layer. */
typedef struct Named
{
	AbSnapId	id;				/* hash key */
	int			times;
} Named;

/* What one manifest names beside its own layer. */
typedef struct Naming
{
	AbSnapId	id;
	HTAB	   *layers;
} Naming;

static void
count_names(HTAB *named, const Naming *naming, int delta)
{
	HASH_SEQ_STATUS scan;
	AbSnapId   *layer;

	hash_seq_init(&scan, naming->layers);
	while ((layer = hash_seq_search(&scan)) != NULL)
	{
		bool		found;
		Named	   *n = hash_search(named, layer, HASH_ENTER, &found);

		n->times = (found ? n->times : 0) + delta;
	}
}

/*
 * All manifests that stay for now, and what they name.  False if one cannot be read:
 * then it may name anything.
 */
static bool
read_namings(HTAB *named, List **namings, HTAB *gone)
{
	ListCell   *lc;

	foreach(lc, list_files(".manifest"))
	{
		Naming	   *n = palloc(sizeof(Naming));

		CHECK_FOR_INTERRUPTS();
		n->id = *(AbSnapId *) lfirst(lc);
		n->layers = id_set();
		if (id_in(gone, n->id))
			continue;
		if (!add_layers_of(n->layers, n->id))
			return false;
		(void) hash_search(n->layers, &n->id, HASH_REMOVE, NULL);
		count_names(named, n, 1);
		*namings = lappend(*namings, n);
	}
	return true;
}

static bool
is_named(HTAB *named, AbSnapId id)
{
	Named	   *n = hash_search(named, &id, HASH_FIND, NULL);

	return n != NULL && n->times > 0;
}

/*
 * Of a live snapshot the layer is the whole: it goes when no other manifest names it
 * (E6).  One that goes may have been the last to name another.
 */
static List *
retire_live(List *items, List *candidates, HTAB *gone, bool dry_run)
{
	HASHCTL		ctl;
	HTAB	   *named;
	List	   *namings = NIL;
	bool		progress = candidates != NIL;

	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AbSnapId);
	ctl.entrysize = sizeof(Named);
	ctl.hcxt = CurrentMemoryContext;
	named = hash_create("agent_branch named layers", 64, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	if (progress && !read_namings(named, &namings, gone))
		return items;
	while (progress)
	{
		ListCell   *lc;

		progress = false;
		foreach(lc, candidates)
		{
			AbSnapId	id = *(AbSnapId *) lfirst(lc);
			ListCell   *nc;

			if (is_named(named, id))
				continue;
			items = retire_one(items, id, gone, dry_run);
			candidates = foreach_delete_current(candidates, lc);
			progress = true;
			foreach(nc, namings)
				if (AbSnapIdEquals(((Naming *) lfirst(nc))->id, id))
					count_names(named, lfirst(nc), -1);
		}
	}
	return items;
}

/*
 * What before-image snapshots had kept and none needs any more, for each parent.  gone:
 * snapshots retired in this run; in a dry run they are still there.
 */
static List *
reclaim_images(List *items, bool dry_run, HTAB *gone)
{
	int			n;
	Oid		   *dbs = ab_images_databases(&n);
	List	   *leaving = NIL;
	HASH_SEQ_STATUS scan;
	AbSnapId   *id;

	hash_seq_init(&scan, gone);
	while ((id = hash_seq_search(&scan)) != NULL)
		leaving = lappend(leaving, id);
	for (int i = 0; i < n; i++)
	{
		int64		bytes = ab_snapshot_reclaim(dbs[i], leaving, dry_run);
		char		name[16];

		snprintf(name, sizeof(name), "%u", dbs[i]);
		if (bytes > 0)
			items = add_item(items, "images", name, bytes);
	}
	pfree(dbs);
	return items;
}

List *
ab_retire_snapshots(bool dry_run, bool unused_too, List *keep)
{
	List	   *items = NIL;
	HTAB	   *kept = id_set();
	HTAB	   *gone = id_set();
	HTAB	   *referenced = id_set();
	List	   *live = NIL;
	AbSnapSlot *slots;
	int			nslots;
	int			ncandidates = 0;
	ListCell   *lc;

	if (!ab_gc_lock())
		return NIL;
	foreach(lc, keep)
		add_id(kept, *(AbSnapId *) lfirst(lc));
	if (dry_run && !read_references(referenced, true))
	{
		ab_gc_unlock();
		return NIL;
	}
	if (!dry_run)
		drop_stray_hidden();

	/* in this order: the row of a confirmed snapshot is seen, or gone for good */
	slots = ab_snaptable_all(&nslots);
	AcceptInvalidationMessages();
	for (int i = 0; i < nslots; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (slots[i].confirmed && close_one(&slots[i], kept, unused_too,
											   dry_run ? referenced : NULL))
			slots[ncandidates++] = slots[i];
	}

	/* nbranches says so already; the files are the truth */
	if (!dry_run && ncandidates > 0 && !read_references(referenced, false))
		ncandidates = 0;
	for (int i = 0; i < ncandidates; i++)
		if (!id_in(referenced, slots[i].id) && !slots[i].live)
			items = retire_one(items, slots[i].id, gone, dry_run);

	for (int i = 0; i < ncandidates; i++)
		if (!id_in(referenced, slots[i].id) && slots[i].live)
			live = lappend(live, &slots[i].id);
	items = retire_live(items, live, gone, dry_run);
	items = retire_layers(items, dry_run, gone);
	items = reclaim_images(items, dry_run, gone);
	ab_gc_unlock();
	return items;
}
