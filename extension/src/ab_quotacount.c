/*
 * ab_quotacount.c
 *	  Counting the branches that a quota is about, once after each start and after
 *	  databases have changed hands: a scan of pg_database, and a look at the origin file
 *	  of each that may be one.
 *
 * Backends of any database.  No locks but those of an ordinary scan.
 */
#include "ab_quotacount.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "ab_base.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_size.h"
#include "ab_snapshot.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"

typedef enum Match
{
	MATCH_NO,
	MATCH_YES,
	MATCH_GONE					/* it was dropped while we were counting */
} Match;

/* Is it a branch of that parent? */
static Match
match_origin(AbQuotaKey key, Oid db)
{
	AbOriginHeader header;
	bool		there;

	if (!OidIsValid(key.parent))
		there = ab_origin_exists(db);
	else
	{
		there = ab_storage_read_origin(db, &header);
		if (there && header.parent_db != key.parent)
			return MATCH_NO;
	}
	if (there)
		return MATCH_YES;
	return SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db)) ?
		MATCH_NO : MATCH_GONE;
}

static Match
match(AbQuotaKey key, Form_pg_database form, bool with_deleted)
{
	if (OidIsValid(key.role) && form->datdba != key.role)
		return MATCH_NO;
	if (ab_hidden_name_is_reserved(NameStr(form->datname)) ||
		ab_base_name_is_reserved(NameStr(form->datname)))
		return MATCH_NO;
	if (!with_deleted && ab_deleted_name_is_reserved(NameStr(form->datname)))
		return MATCH_NO;
	return match_origin(key, form->oid);
}

int64
ab_quotacount_branches(AbQuotaKey key, Snapshot snapshot)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tup;
	int64		n = 0;

	while (n >= 0 && HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		CHECK_FOR_INTERRUPTS();
		switch (match(key, (Form_pg_database) GETSTRUCT(tup), false))
		{
			case MATCH_NO:
				break;
			case MATCH_YES:
				n++;
				break;
			case MATCH_GONE:
				n = -1;
				break;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return n;
}

int64
ab_quotacount_bytes(AbQuotaKey key)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tup;
	int64		bytes = 0;

	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tup);

		CHECK_FOR_INTERRUPTS();
		if (match(key, form, true) == MATCH_YES)
			bytes += ab_size_own_pages(form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return bytes;
}
