/*
 * ab_eventtold.c
 *	  Branches whose creation may not have been told (ab_eventtold.h).
 *
 * Backends and the keeper.  Takes no lock of its own: whoever tells of a branch has it
 * locked (ab_eventsync.c, ab_event_make_known).
 *
 * A database has been told if the log ever had it appear: its OID is not given again
 * before four thousand million others were.
 */
#include "ab_eventtold.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "ab_base.h"
#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_origin.h"
#include "ab_snapshot.h"
#include "ab_storagefiles.h"

bool
ab_eventtold_appears(const char *event)
{
	return strcmp(event, "created") == 0 || strcmp(event, "reset") == 0 ||
		strcmp(event, "restored") == 0 || strcmp(event, "recovered") == 0;
}

/* ---- what there is to tell ---- */

bool
ab_eventtold_creation(AbNote *note, Oid db, const char *name, Oid owner)
{
	AbOriginHeader header;
	char		id[AB_SNAPID_TEXT_LEN + 1];
	char	   *by = GetUserNameFromId(owner, true);
	char	   *parent;

	if (ab_hidden_name_is_reserved(name) || ab_base_name_is_reserved(name) ||
		!ab_origin_exists(db) || !ab_storage_read_origin(db, &header))
		return false;
	memset(note, 0, sizeof(*note));
	strlcpy(note->event, "created", sizeof(note->event));
	note->at = header.created_at;
	note->db = db;
	note->owner = owner;
	strlcpy(note->branch, name, sizeof(note->branch));
	strlcpy(note->by, by ? by : "", sizeof(note->by));
	parent = ab_database_name(header.parent_db);
	strlcpy(note->parent, parent ? parent : "", sizeof(note->parent));
	ab_snapid_format(header.snapshot, id);
	snprintf(note->detail, sizeof(note->detail),
			 "{\"snapshot\": \"%s\", \"found\": true}", id);
	return true;
}

/* ---- what has been told ---- */

HTAB *
ab_eventtold_set(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Oid);
	ctl.hcxt = CurrentMemoryContext;
	return hash_create("agent_branch databases", 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
ab_eventtold_add(HTAB *set, Oid db)
{
	(void) hash_search(set, &db, HASH_ENTER, NULL);
}

bool
ab_eventtold_in(HTAB *set, Oid db)
{
	return hash_search(set, &db, HASH_FIND, NULL) != NULL;
}

HTAB *
ab_eventtold_read(Relation log, HTAB *in_question)
{
	HTAB	   *told = ab_eventtold_set();
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(log, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple	tuple;

	while ((tuple = systable_getnext(scan)) != NULL)
	{
		bool		isnull;
		Oid			db = DatumGetObjectId(heap_getattr(tuple, AB_EVENT_COL_BRANCH_ID + 1,
													   RelationGetDescr(log), &isnull));
		Datum		event;

		CHECK_FOR_INTERRUPTS();
		if (!ab_eventtold_in(in_question, db))
			continue;
		event = heap_getattr(tuple, AB_EVENT_COL_EVENT + 1, RelationGetDescr(log), &isnull);
		if (ab_eventtold_appears(TextDatumGetCString(event)))
			ab_eventtold_add(told, db);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return told;
}
