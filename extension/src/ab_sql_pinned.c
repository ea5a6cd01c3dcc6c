/*
 * ab_sql_pinned.c
 *	  branch.pinned: which snapshot holds which bytes, and for whom.
 *
 * Backends in the control database.  No locks: files come and go while they are
 * counted.  Computed once for each query: the heads of all manifests, the sizes of
 * layer files, and for each database with before-images one walk through its store.
 */
#include "ab_compat.h"

#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/tuplestore.h"

#include "ab_catalogrows.h"
#include "ab_images.h"
#include "ab_kept.h"
#include "ab_origin.h"
#include "ab_pins.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_at.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_pinned);
PG_FUNCTION_INFO_V1(ab_sql_pinned_bytes);

/* A place where pages of snapshots are: a layer's file, or images of a database. */
typedef struct Layer
{
	AbSnapId	id;				/* hash key: the snapshot whose layer it is */
	Oid			live_db;
	int			users;			/* manifests that name it */
	int64		needed;			/* bytes */
	int64		alone;			/* of these, what goes when its last user goes */
	int64		zombies;		/* of needed: files of dropped relations */
} Layer;

/* What all snapshots hold. */
typedef struct Holdings
{
	AbPin	   *pins;
	int			npins;
	HTAB	   *layers;
} Holdings;

/* ---- counting ---- */

static HTAB *
id_table(Size entrysize, MemoryContext cxt)
{
	HASHCTL		ctl;

	MemSet(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(AbSnapId);
	ctl.entrysize = entrysize;
	ctl.hcxt = cxt;
	return hash_create("agent_branch holdings", 256, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
add_layers(Holdings *h, const AbPin *pin)
{
	for (uint32 i = 0; i < pin->header.nlayers; i++)
	{
		const AbLayerRef *ref = &pin->layers[i];
		bool		found;
		Layer	   *layer = hash_search(h->layers, &ref->id, HASH_ENTER, &found);

		if (!found)
		{
			layer->live_db = ref->live_db;
			layer->users = 0;
			layer->needed = layer->alone = layer->zombies = 0;
			if (!OidIsValid(ref->live_db))
				layer->needed = layer->alone = ab_sql_file_bytes(ref->id, ".pages");
		}
		layer->users++;
	}
}

static int
compare_layers(const ListCell *a, const ListCell *b)
{
	const Layer *x = lfirst(a);
	const Layer *y = lfirst(b);

	if (x->live_db != y->live_db)
		return x->live_db < y->live_db ? -1 : 1;
	return x->id.lsn < y->id.lsn ? -1 : x->id.lsn > y->id.lsn;
}

/*
 * Images and dropped files that live layers[first, end), all of one database, need.  A
 * branch that was deleted, but whose files are needed, is as good as dropped.
 */
static void
count_images(List *layers, int first, int end)
{
	int			n = end - first;
	AbSnapId   *living = palloc(n * sizeof(AbSnapId));
	int64	   *needed = palloc0(n * sizeof(int64));
	int64	   *alone = palloc0(n * sizeof(int64));
	int64	   *zombies = palloc0(n * sizeof(int64));
	int64	   *zombies_alone = palloc0(n * sizeof(int64));
	Layer	   *layer = NULL;

	for (int i = 0; i < n; i++)
	{
		layer = list_nth(layers, first + i);
		living[i] = layer->id;
	}
	ab_images_usage(layer->live_db, living, n, needed, alone);
	ab_kept_usage(layer->live_db, living, n, zombies, zombies_alone);
	if (get_database_name(layer->live_db) == NULL)
	{
		int64		bytes;
		int64		files;

		ab_storage_usage(layer->live_db, &bytes, &files);
		for (int i = 0; i < n; i++)
			zombies[i] += bytes;
		if (n == 1)
			zombies_alone[0] += bytes;
	}
	for (int i = 0; i < n; i++)
	{
		layer = list_nth(layers, first + i);
		layer->needed = needed[i] + zombies[i];
		layer->alone = alone[i] + zombies_alone[i];
		layer->zombies = zombies[i];
	}
}

static void
count_live_layers(Holdings *h)
{
	List	   *live = NIL;
	HASH_SEQ_STATUS scan;
	Layer	   *layer;
	int			first = 0;

	hash_seq_init(&scan, h->layers);
	while ((layer = hash_seq_search(&scan)) != NULL)
		if (OidIsValid(layer->live_db))
			live = lappend(live, layer);
	list_sort(live, compare_layers);
	for (int i = 1; i <= list_length(live); i++)
	{
		if (i < list_length(live) &&
			((Layer *) list_nth(live, i))->live_db ==
			((Layer *) list_nth(live, first))->live_db)
			continue;
		CHECK_FOR_INTERRUPTS();
		count_images(live, first, i);
		first = i;
	}
}

static Holdings *
count_holdings(void)
{
	Holdings   *h = palloc(sizeof(Holdings));

	h->pins = ab_pins_read(&h->npins);
	h->layers = id_table(sizeof(Layer), CurrentMemoryContext);
	for (int i = 0; i < h->npins; i++)
		add_layers(h, &h->pins[i]);
	count_live_layers(h);
	return h;
}

typedef struct Sums
{
	int64		held;			/* all that a snapshot needs */
	int64		zombies;		/* of that, files of relations dropped since */
	int64		alone;			/* of that, what nobody else needs */
} Sums;

static void
sum_up(const Holdings *h, const AbPin *pin, Sums *s)
{
	s->held = s->alone = ab_sql_file_bytes(pin->slot.id, ".manifest");
	s->zombies = 0;
	for (uint32 i = 0; i < pin->header.nlayers; i++)
	{
		const Layer *layer = hash_search(h->layers, &pin->layers[i].id, HASH_FIND, NULL);

		s->held += layer->needed;
		s->zombies += layer->zombies;
		if (layer->users == 1)
			s->alone += layer->alone;
	}
}

/* ---- for whom ---- */

typedef struct Holders
{
	AbSnapId	id;				/* hash key */
	List	   *texts;			/* char * */
} Holders;

static void
add_holder(HTAB *holders, AbSnapId id, char *text)
{
	bool		found;
	Holders    *e = hash_search(holders, &id, HASH_ENTER, &found);

	if (!found)
		e->texts = NIL;
	e->texts = lappend(e->texts, text);
}

/*
 * Branches on snapshots, then names of these, merges, of which later ones begin with them,
 * and deeper snapshots on their layers.
 */
static HTAB *
find_holders(const Holdings *h, const AbKnownSnapshot *known, int nknown)
{
	HTAB	   *holders = id_table(sizeof(Holders), CurrentMemoryContext);
	AbOrigins  *origins = ab_origin_all();
	ListCell   *lc;

	for (int i = 0; i < origins->n; i++)
	{
		AbOriginHeader origin;
		char	   *name;

		CHECK_FOR_INTERRUPTS();
		if (ab_storage_read_listed(origins, i, &origin) &&
			(name = get_database_name(origins->dbs[i])) != NULL)
			add_holder(holders, origin.snapshot, psprintf("branch %s", name));
	}
	for (int i = 0; i < nknown; i++)
		foreach(lc, known[i].names)
			add_holder(holders, known[i].slot.id,
					   psprintf("name %s", (char *) lfirst(lc)));
	foreach(lc, ab_tables_merge_bases())
	{
		AbNamedSnapshot *base = lfirst(lc);

		add_holder(holders, base->id, psprintf("merge %s", base->name));
	}
	for (int i = 0; i < h->npins; i++)
	{
		const AbPin *pin = &h->pins[i];
		char		text[AB_SNAPID_TEXT_LEN + 1];

		ab_snapid_format(pin->slot.id, text);
		for (uint32 k = 1; k < pin->header.nlayers; k++)
			add_holder(holders, pin->layers[k].id, psprintf("snapshot %s", text));
	}
	return holders;
}

static Datum
holders_datum(HTAB *holders, AbSnapId id)
{
	Holders    *e = hash_search(holders, &id, HASH_FIND, NULL);
	ArrayBuildState *state = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	ListCell   *lc;

	foreach(lc, e ? e->texts : NIL)
		state = accumArrayResult(state, CStringGetTextDatum((char *) lfirst(lc)),
								 false, TEXTOID, CurrentMemoryContext);
	return makeArrayResult(state, CurrentMemoryContext);
}

/* ---- SQL ---- */

static Oid
owner_of(const AbKnownSnapshot *known, int nknown, const AbPin *pin)
{
	for (int i = 0; i < nknown; i++)
		if (AbSnapIdEquals(known[i].slot.id, pin->slot.id))
			return known[i].owner;
	return pin->slot.source_db;
}

/* (id, parent_id, kind, held_bytes, zombie_bytes, freed_if_dropped, holders) */
Datum
ab_sql_pinned(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	AbKnownSnapshot *known;
	Holdings   *h;
	HTAB	   *holders;
	int			nknown;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	known = ab_sql_known_snapshots(&nknown);
	h = count_holdings();
	holders = find_holders(h, known, nknown);
	for (int i = 0; i < h->npins; i++)
	{
		const AbPin *pin = &h->pins[i];
		char		text[AB_SNAPID_TEXT_LEN + 1];
		Datum		values[7];
		bool		nulls[7] = {false};
		Oid			owner = owner_of(known, nknown, pin);
		Sums		sums;

		if (!ab_sql_may_see(owner))
			continue;
		ab_snapid_format(pin->slot.id, text);
		sum_up(h, pin, &sums);
		values[0] = CStringGetTextDatum(text);
		values[1] = ObjectIdGetDatum(owner);
		values[2] = CStringGetTextDatum(pin->header.flags & AB_MANIFEST_LIVE ?
										"before_image" : "pages");
		values[3] = Int64GetDatum(sums.held);
		values[4] = Int64GetDatum(sums.zombies);
		values[5] = Int64GetDatum(sums.alone);
		values[6] = holders_datum(holders, pin->slot.id);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * Bytes that nobody but the snapshot of a branch needs.  All snapshots are counted at
 * the first call in a query, so that a row costs nothing more.
 */
Datum
ab_sql_pinned_bytes(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	AbOriginHeader origin;
	Holdings   *h = fcinfo->flinfo->fn_extra;

	ab_require_control_database();
	if (!ab_storage_read_origin(db, &origin) || !ab_sql_may_see(db))
		PG_RETURN_NULL();
	if (h == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		h = count_holdings();
		fcinfo->flinfo->fn_extra = h;
		MemoryContextSwitchTo(old);
	}
	for (int i = 0; i < h->npins; i++)
	{
		Sums		sums;

		if (!AbSnapIdEquals(h->pins[i].slot.id, origin.snapshot))
			continue;
		sum_up(h, &h->pins[i], &sums);
		PG_RETURN_INT64(sums.alone);
	}
	PG_RETURN_NULL();
}
