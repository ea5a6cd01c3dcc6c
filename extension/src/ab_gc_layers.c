/*
 * ab_gc_layers.c
 *	  Giving back manifests, and layers that no manifest names (invariant S4).
 *
 * Backends that call branch.gc() in the control database, and the sweeper, in their turn
 * (ab_gc_parts.h); no other lock.  A manifest goes before the layers that it names: a
 * crash leaves layers that nobody names, which the next run finds.
 */
#include "ab_gc_layers.h"

#include <dirent.h>
#include <sys/stat.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/hsearch.h"

#include "ab_file.h"
#include "ab_gc_parts.h"
#include "ab_hidden.h"
#include "ab_manifest.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_wal.h"

/* ---- files ---- */

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
bool
ab_gc_has_manifest(AbSnapId id)
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
			ab_gc_add_id(layers, m.layers[i].id);

		/* pages that the branch turns out not to own are read there (ab_live.c) */
		if ((m.h->flags & AB_MANIFEST_LIVE) && AbSnapIdIsValid(m.h->base))
			ab_gc_add_id(layers, m.h->base);
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

List *
ab_gc_retire_one(List *items, AbSnapId id, HTAB *gone, bool dry_run)
{
	bool		live = OidIsValid(ab_snapshot_live_source(id));

	items = ab_gc_add_item(items, "snapshot", id_text(id), file_bytes(id, ".manifest"));
	ab_gc_add_id(gone, id);
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
		n->layers = ab_gc_ids();
		if (ab_gc_has_id(gone, n->id))
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
List *
ab_gc_retire_live(List *items, List *candidates, HTAB *gone, bool dry_run)
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
			items = ab_gc_retire_one(items, id, gone, dry_run);
			candidates = foreach_delete_current(candidates, lc);
			progress = true;
			foreach(nc, namings)
				if (AbSnapIdEquals(((Naming *) lfirst(nc))->id, id))
					count_names(named, lfirst(nc), -1);
		}
	}
	return items;
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
List *
ab_gc_retire_layers(List *items, bool dry_run, HTAB *gone)
{
	static uint64 nothing_to_do = 0;
	List	   *layers = list_files(".pages");
	List	   *manifests = list_files(".manifest");
	List	   *strays = NIL;
	HTAB	   *named = ab_gc_ids();
	uint64		sum = 1;
	ListCell   *lc;

	foreach(lc, layers)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);
		AbSnapSlot	slot;

		if (!ab_gc_has_id(gone, id) && (ab_snaptable_get(id, &slot) || ab_gc_has_manifest(id)))
			continue;
		strays = lappend(strays, lfirst(lc));
		sum = ids_sum(sum, id, 1);
	}
	foreach(lc, manifests)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);

		if (!ab_gc_has_id(gone, id))
			sum = ids_sum(sum, id, 2);
	}
	if (strays == NIL || sum == nothing_to_do)
		return items;

	foreach(lc, manifests)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);

		if (!ab_gc_has_id(gone, id) && !add_layers_of(named, id))
			return items;
	}

	nothing_to_do = sum;
	foreach(lc, strays)
	{
		AbSnapId	id = *(AbSnapId *) lfirst(lc);

		if (ab_gc_has_id(named, id))
			continue;
		nothing_to_do = 0;
		items = ab_gc_add_item(items, "layer", id_text(id), file_bytes(id, ".pages"));
		if (!dry_run)
			ab_snapshot_retire(id, AB_RETIRE_PAGES);
	}
	return items;
}
