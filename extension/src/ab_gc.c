/*
 * ab_gc.c
 *	  Giving back snapshots that nobody needs (invariants S3, S4): which are closed, and
 *	  which then go, with their manifests and layers (ab_gc_layers.c) and what they had
 *	  kept of plain databases.  Storage of databases: ab_gc_orphans.c.
 *
 * Backends that call branch.gc() in the control database, and the sweeper.  One at a
 * time: they have the turn (ab_gc_parts.h).  Nothing here is undone by ROLLBACK; all of it is
 * decided by what is committed.  A crash leaves the rest to the next run.
 *
 * Why a snapshot can be judged unneeded: a creator holds a lock on the hidden
 * database from before it looks at the snapshot until its transaction ends, and its
 * origin file counts in nbranches from before that end.  The keeper's lock on the
 * hidden database comes after all creators' ends and before any other can find the
 * row; so nbranches, read after the row is gone, never rises again.
 */
#include "ab_gc.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "ab_gc_layers.h"
#include "ab_gc_parts.h"
#include "ab_hidden.h"
#include "ab_images.h"
#include "ab_origin.h"
#include "ab_pins.h"
#include "ab_request.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_softdelete.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

/* ---- closing ---- */

/*
 * May no further branch be made of this snapshot?  age: of its hidden row, NULL if it
 * is closed.  The newest one saves the next branch a copy; it is closed only if asked
 * for, and if no branch hangs on it.
 */
static bool
to_be_closed(const AbSnapSlot *slot, HTAB *keep, bool unused_too, const AbHiddenAge *age)
{
	AbSnapSlot	newest;

	if (ab_gc_has_id(keep, slot->id))
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
 * Ids that origin files name, whether or not their branch still has a row.  False
 * if some file cannot be read: then nothing can be said of any snapshot.
 * without_orphans: a dry run, before which no sweep has removed those.
 */
static bool
read_references(HTAB *referenced, bool without_orphans)
{
	int			nrows;
	AbOrigins  *origins = ab_origin_all();
	Oid		   *rows = ab_gc_database_oids(&nrows);
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
			ab_gc_lock_orphan(db))
		{
			ab_gc_unlock_orphan(db);
			continue;
		}
		if (ab_storage_read_listed(origins, i, &header))
			ab_gc_add_id(referenced, header.snapshot);
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

	if (dry_run && !ab_gc_has_id(dry_references, slot->id))
		slot->nbranches = 0;
	if (!to_be_closed(slot, keep, unused_too, open ? &age : NULL))
		return false;

	/* a merge that was committed since the others were looked for */
	if (open && !ab_gc_has_id(keep, slot->id) && ab_tables_is_merge_base(slot->id))
		return false;
	if (open && !dry_run && !ab_request_drop_hidden(slot->id))
		return false;
	if (dry_run)
		now = *slot;
	else if (!ab_snaptable_get(slot->id, &now))
		return false;
	return now.nbranches == 0 &&
		!ab_gc_has_id(keep, slot->id); /* closed by age; its name still wants it */
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
			!ab_snaptable_get(id, &slot) && !ab_gc_has_manifest(id))
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

/* ---- all of it ---- */

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
			items = ab_gc_add_item(items, "images", name, bytes);
	}
	pfree(dbs);
	return items;
}

List *
ab_retire_snapshots(bool dry_run, bool unused_too, List *keep)
{
	List	   *items = NIL;
	HTAB	   *kept = ab_gc_ids();
	HTAB	   *gone = ab_gc_ids();
	HTAB	   *referenced = ab_gc_ids();
	List	   *live = NIL;
	AbSnapSlot *slots;
	int			nslots;
	int			ncandidates = 0;
	ListCell   *lc;

	if (!ab_gc_lock())
		return NIL;
	foreach(lc, keep)
		ab_gc_add_id(kept, *(AbSnapId *) lfirst(lc));
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
		if (!ab_gc_has_id(referenced, slots[i].id) && !slots[i].live)
			items = ab_gc_retire_one(items, slots[i].id, gone, dry_run);

	for (int i = 0; i < ncandidates; i++)
		if (!ab_gc_has_id(referenced, slots[i].id) && slots[i].live)
			live = lappend(live, &slots[i].id);
	items = ab_gc_retire_live(items, live, gone, dry_run);
	items = ab_gc_retire_layers(items, dry_run, gone);
	items = reclaim_images(items, dry_run, gone);
	ab_gc_unlock();
	return items;
}
