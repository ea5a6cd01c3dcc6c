/*
 * ab_pins.c
 *	  Which snapshots need which layers, and whose files are needed as they are.
 *
 * A snapshot needs the layers that its manifest names.  If one of these is live, its
 * pages are in the files of a database; and if that is a branch, a page that is not
 * there is one of the snapshot that the branch hung on (ab_live.c), with all that this
 * needs.
 *
 * Backends, in any database, and the sweeper.  Nothing is locked.  Manifests do not
 * change; new ones that name a layer come only of snapshots that name it, too, while
 * a branch hangs on these or their hidden row is there.
 */
#include "ab_pins.h"

#include <fcntl.h>
#include <unistd.h>

#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_storagefiles.h"

/* Names given in an error's DETAIL. */
#define MAX_HOLDERS 10

/* No manifest has more; what says so is damaged. */
#define MAX_LAYERS (MaxAllocSize / sizeof(AbLayerRef))

/* ---- reading ---- */

/* The head of a manifest: header and layers. */
static bool
read_pin(AbPin *pin)
{
	char	   *path = ab_snapshot_path(pin->slot.id, ".manifest");
	int			fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	AbManifestHeader *h = &pin->header;
	bool		ok = false;
	size_t		size;

	pfree(path);
	if (fd < 0)
		return false;
	if (pg_pread(fd, h, sizeof(*h), 0) == sizeof(*h) &&
		h->magic == AB_MANIFEST_MAGIC && h->version == AB_MANIFEST_VERSION &&
		h->nlayers > 0 && h->nlayers <= MAX_LAYERS)
	{
		size = h->nlayers * sizeof(AbLayerRef);
		pin->layers = palloc(size);
		ok = pg_pread(fd, pin->layers, size, sizeof(*h)) == size;
	}
	CloseTransientFile(fd);
	return ok;
}

static int
compare_pins(const void *a, const void *b)
{
	AbSnapId	x = ((const AbPin *) a)->slot.id;
	AbSnapId	y = ((const AbPin *) b)->slot.id;

	if (x.lsn != y.lsn)
		return x.lsn < y.lsn ? -1 : 1;
	return x.tli < y.tli ? -1 : x.tli > y.tli;
}

AbPin *
ab_pins_read(int *n)
{
	int			nslots;
	AbSnapSlot *slots = ab_snaptable_all(&nslots);
	AbPin	   *pins = palloc0(Max(nslots, 1) * sizeof(AbPin));

	*n = 0;
	for (int i = 0; i < nslots; i++)
	{
		CHECK_FOR_INTERRUPTS();
		pins[*n].slot = slots[i];
		if (slots[i].confirmed && read_pin(&pins[*n]))
			(*n)++;
	}
	qsort(pins, *n, sizeof(AbPin), compare_pins);
	pfree(slots);
	return pins;
}

static AbPin *
find_pin(AbPin *pins, int npins, AbSnapId id)
{
	AbPin		key = {.slot.id = id};

	return bsearch(&key, pins, npins, sizeof(AbPin), compare_pins);
}

/* ---- what they need ---- */

static List *
push(List *todo, AbPin *pins, int npins, AbSnapId id)
{
	AbPin	   *pin = AbSnapIdIsValid(id) ? find_pin(pins, npins, id) : NULL;

	if (pin == NULL || pin->reached)
		return todo;
	pin->reached = true;
	return lappend(todo, pin);
}

/* Mark whatever the pins in todo (reached already) need. */
static void
reach(AbPin *pins, int npins, List *todo)
{
	while (todo != NIL)
	{
		AbPin	   *pin = llast(todo);

		todo = list_delete_last(todo);
		CHECK_FOR_INTERRUPTS();
		for (uint32 i = 0; i < pin->header.nlayers; i++)
		{
			const AbLayerRef *ref = &pin->layers[i];

			if (OidIsValid(ref->live_db))
				todo = push(todo, pins, npins, ref->id);
		}
		if (pin->layers[0].of_branch)
			todo = push(todo, pins, npins, pin->header.base);
	}
}

static bool
reaches_database(const AbPin *pins, int npins, Oid db)
{
	for (int i = 0; i < npins; i++)
	{
		if (!pins[i].reached)
			continue;
		for (uint32 k = 0; k < pins[i].header.nlayers; k++)
			if (pins[i].layers[k].live_db == db)
				return true;
	}
	return false;
}

static bool
is_reached(AbPin *pins, int npins, AbSnapId id)
{
	AbPin	   *pin = AbSnapIdIsValid(id) ? find_pin(pins, npins, id) : NULL;

	return pin != NULL && pin->reached;
}

static bool
needs_files_of(AbPin *pins, int npins, const AbPin *pin, Oid db)
{
	for (uint32 i = 0; i < pin->header.nlayers; i++)
	{
		const AbLayerRef *ref = &pin->layers[i];

		if (ref->live_db == db ||
			(OidIsValid(ref->live_db) && is_reached(pins, npins, ref->id)))
			return true;
	}
	return pin->layers[0].of_branch && is_reached(pins, npins, pin->header.base);
}

/*
 * Those that need a database's files as they are, to the front; how many?  One pass:
 * a manifest names only what is older.
 */
static int
sort_out_users(AbPin *pins, int npins, Oid db)
{
	int			n = 0;

	for (int i = 0; i < npins; i++)
		pins[i].reached = needs_files_of(pins, npins, &pins[i], db);
	for (int i = 0; i < npins; i++)
		if (pins[i].reached)
			pins[n++] = pins[i];
	return n;
}

static bool
is_open(AbSnapId id)
{
	char	   *hidden = ab_hidden_name(id);
	bool		open = OidIsValid(get_database_oid(hidden, true));

	pfree(hidden);
	return open;
}

/* ---- storage of branches that are gone ---- */

/*
 * What is needed: snapshots of which a branch can still be made (whoever is making one
 * keeps the hidden row), those on which branches hang that have a row, and what these
 * need.  In this order: when a hidden row has gone, the branches are committed.
 */
static AbPin *
mark_needed(int *npins)
{
	AbPin	   *pins = ab_pins_read(npins);
	List	   *todo = NIL;
	AbOrigins  *origins;

	AcceptInvalidationMessages();
	for (int i = 0; i < *npins; i++)
		if (is_open(pins[i].slot.id))
			todo = push(todo, pins, *npins, pins[i].slot.id);
	AcceptInvalidationMessages();
	origins = ab_origin_all();
	for (int i = 0; i < origins->n; i++)
	{
		AbOriginHeader header;

		CHECK_FOR_INTERRUPTS();
		if (SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(origins->dbs[i])) &&
			ab_storage_read_listed(origins, i, &header))
			todo = push(todo, pins, *npins, header.snapshot);
	}
	ab_origins_free(origins);
	reach(pins, *npins, todo);
	return pins;
}

bool
ab_pins_storage_needed(AbPinsNeeded *needed, Oid db)
{
	if (!ab_snaptable_has_live(db))
		return false;
	if (needed->pins == NULL)
		needed->pins = mark_needed(&needed->npins);
	return reaches_database(needed->pins, needed->npins, db);
}

/* ---- databases that are about to be dropped or moved ---- */

/* OIDs of living branches on one of these snapshots. */
static List *
branches_on(AbPin *pins, int npins)
{
	List	   *found = NIL;
	AbOrigins  *origins;

	AcceptInvalidationMessages();
	origins = ab_origin_all();
	for (int i = 0; i < origins->n; i++)
	{
		AbOriginHeader header;

		CHECK_FOR_INTERRUPTS();
		if (ab_storage_read_listed(origins, i, &header) &&
			SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(origins->dbs[i])) &&
			find_pin(pins, npins, header.snapshot) != NULL)
			found = lappend_oid(found, origins->dbs[i]);
	}
	ab_origins_free(origins);
	return found;
}

static void
raise_needed(Oid db, const char *verb, const char *who, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("cannot %s database \"%s\", because others share its pages",
					verb, get_database_name(db)),
			 errdetail("%s", who),
			 errhint("%s", hint)));
}

/*
 * Only the keeper can tell whether a name protects a snapshot, from whatever database
 * we are in; without a control database there are no names.  What it closes for us is
 * a snapshot that the next sweep would close.
 */
static bool
is_kept(AbSnapId id)
{
	return is_open(id) && OidIsValid(get_database_oid(ab_control_database, true)) &&
		!ab_request_drop_hidden(id);
}

static void
check_kept(Oid db, const char *verb, const AbPin *pins, int npins)
{
	StringInfoData who;
	int			kept = 0;

	initStringInfo(&who);
	for (int i = 0; i < npins; i++)
	{
		char		text[AB_SNAPID_TEXT_LEN + 1];

		if (!is_kept(pins[i].slot.id))
			continue;
		ab_snapid_format(pins[i].slot.id, text);
		if (kept++ < MAX_HOLDERS)
			appendStringInfo(&who, "%s%s", kept > 1 ? ", " : "", text);
	}
	if (kept > MAX_HOLDERS)
		appendStringInfo(&who, " and %d more", kept - MAX_HOLDERS);
	if (kept > 0)
		raise_needed(db, verb,
					 psprintf("These snapshots are kept under names, or are being branched: %s.", who.data),
					 psprintf("Drop their names with branch.drop_snapshot() in database \"%s\" first; the view branch.snapshots has them.",
							  ab_control_database));
}

static void
check_branches(Oid db, const char *verb, AbPin *pins, int npins)
{
	List	   *branches = branches_on(pins, npins);

	/* about to be dropped itself */
	branches = list_delete_oid(branches, db);
	if (branches != NIL)
		raise_needed(db, verb, psprintf("These are branches: %s.", ab_name_list(branches)),
					 "Delete them first.");
}

/*
 * Branches are looked for twice: first because nothing should be closed for a
 * statement that is refused anyway, then because one of a deeper snapshot, for which
 * nobody needs our lock, may have come before that was closed.
 */
void
ab_pins_check_files(Oid db, const char *verb)
{
	AbPin	   *pins;
	int			n;

	if (!ab_snaptable_has_live(db))
		return;
	pins = ab_pins_read(&n);
	n = sort_out_users(pins, n, db);
	check_branches(db, verb, pins, n);
	check_kept(db, verb, pins, n);
	check_branches(db, verb, pins, n);
}
