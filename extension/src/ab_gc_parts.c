/*
 * ab_gc_parts.c
 *	  What the parts of giving back share: the turn, sets of snapshot ids, the list of
 *	  what was given back, the databases that have a row.
 *
 * Backends and the sweeper.  The turn is a heavyweight lock, for which the sweeper does
 * not wait; all else here is the caller's own memory.  A crash leaves nothing.
 */
#include "ab_gc_parts.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_database.h"
#include "postmaster/bgworker.h"
#include "storage/lock.h"
#include "utils/builtins.h"

#define GC_LOCK_KEY		0x41424743	/* "ABGC" */
#define GC_LOCK_CLASS	0xAB	/* users' advisory locks have 1 and 2 here */

/* ---- the turn ---- */

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
ab_gc_lock_waiting(void)
{
	LOCKTAG		tag = gc_locktag();

	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

void
ab_gc_unlock(void)
{
	LOCKTAG		tag = gc_locktag();

	LockRelease(&tag, ExclusiveLock, false);
}

/* ---- sets of snapshot ids (AbSnapId has no padding that is not zero) ---- */

HTAB *
ab_gc_ids(void)
{
	HASHCTL		ctl;

	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AbSnapId);
	ctl.entrysize = sizeof(AbSnapId);
	ctl.hcxt = CurrentMemoryContext;
	return hash_create("agent_branch snapshot ids", 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

bool
ab_gc_has_id(HTAB *set, AbSnapId id)
{
	return hash_search(set, &id, HASH_FIND, NULL) != NULL;
}

void
ab_gc_add_id(HTAB *set, AbSnapId id)
{
	(void) hash_search(set, &id, HASH_ENTER, NULL);
}

/* ---- lists ---- */

List *
ab_gc_add_item(List *items, const char *kind, const char *name, int64 bytes)
{
	AbGcItem   *item = palloc(sizeof(AbGcItem));

	item->kind = kind;
	item->name = pstrdup(name);
	item->bytes = bytes;
	return lappend(items, item);
}

/* OIDs of all databases that have a row, sorted. */
Oid *
ab_gc_database_oids(int *n)
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
