/*
 * ab_live.c
 *	  Pages of a live layer: an image if the page was overwritten since, else the
 *	  parent's own file.
 *
 * Sessions of branches and the startup process; no lock over the whole.  Whoever
 * overwrites a page has put its image into the index before (E1), and whoever fails to
 * has poisoned the snapshot before.  So the file is read first, and then it is
 * asked whether that was still right.
 *
 * A branch's own file may lack pages that the manifest calls its own: the manifest
 * names whole stretches of the file that are not holes, and on a standby it is the
 * primary's.  Such a page is zeros, here and in the file; then it is inherited.
 *
 * But not one of a visibility map.  A power cut may have taken what was written into it, and
 * replay does not put it back where the relation's tombstone is durable already: it finds
 * zeros, in which there is no bit to be cleared.  What was inherited has that bit.  A map
 * that has no bits is a good map.
 */
#include "ab_live.h"

#include "ab_epoch.h"
#include "ab_images.h"
#include "ab_layer.h"
#include "ab_overlay.h"
#include "ab_parentfile.h"

static RelFileNode
node_of(const AbLayerRef *layer, AbForkKey key)
{
	RelFileNode rnode = {key.spc, layer->live_db, key.rel};

	return rnode;
}

static void
raise_unreadable(const AbLayerRef *layer, AbForkKey key, BlockNumber block, bool image)
{
	int			error = errno;

	/* this says more, if it is the reason */
	ab_epoch_require_sound(layer->id);
	errno = error;
	if (error == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not read inherited block %u of relation %u", block, key.rel),
				 errdetail("The page that was saved for this snapshot of database %u is damaged.",
						   layer->live_db)));
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not read inherited block %u of relation %u %s database %u: %m",
					block, key.rel, image ? "from the saved pages of" : "in",
					layer->live_db)));
}

/* Nobody has overwritten the page, up to now at least. */
static void
read_from_file(const AbLayerRef *layer, AbForkKey key, BlockNumber block, char *page)
{
	if (!ab_parentfile_read(layer->id, node_of(layer, key), key.fork, block,
							layer->of_branch != 0, page))
		raise_unreadable(layer, key, block, false);
}

static void
read_as_saved(const AbLayerRef *layer, AbForkKey key, BlockNumber block, char *page)
{
	XLogRecPtr	newest;
	uint32		when;

	/* usually nothing of the relation is saved: that is found out at once, and again */
	if (ab_images_none(layer->live_db, key, &when))
	{
		read_from_file(layer, key, block, page);
		if (ab_images_still_none(when))
		{
			ab_epoch_require_sound(layer->id);
			return;
		}
	}
	do
	{
		switch (ab_images_read(layer->live_db, layer->id.lsn, key, block, page))
		{
			case AB_IMAGE_FOUND:
				ab_epoch_require_sound(layer->id);
				return;
			case AB_IMAGE_FAILED:
				raise_unreadable(layer, key, block, true);
				break;
			case AB_IMAGE_NONE:
				break;
		}
		read_from_file(layer, key, block, page);
		if (!ab_images_newest(layer->live_db, key, block, &newest))
			raise_unreadable(layer, key, block, true);
	} while (newest >= layer->id.lsn);
	ab_epoch_require_sound(layer->id);
}

/* What the branch inherited where it has no page of its own. */
static void
read_inherited(const AbLayerRef *layer, AbForkKey key, BlockNumber block, char *page)
{
	AbManifest *m = ab_manifest_acquire(layer->id);
	AbManifest *volatile base = NULL;

	PG_TRY();
	{
		const AbForkEntry *e = ab_manifest_find(m, key);
		const AbForkEntry *below = NULL;

		if (e != NULL && block < e->inherited)
		{
			base = ab_manifest_acquire(m->h->base);
			below = ab_manifest_find(base, key);
		}
		if (below != NULL && block < below->nblocks)
			ab_snapshot_read(base, below, block, page);
	}
	PG_FINALLY();
	{
		if (base != NULL)
			ab_manifest_release(base);
		ab_manifest_release(m);
	}
	PG_END_TRY();
}

void
ab_live_read(const AbLayerRef *layer, AbForkKey key, BlockNumber block, char *page)
{
	read_as_saved(layer, key, block, page);
	if (layer->of_branch && key.fork != VISIBILITYMAP_FORKNUM && ab_page_is_zero(page))
		read_inherited(layer, key, block, page);
}

void
ab_live_prefetch(const AbLayerRef *layer, AbForkKey key, BlockNumber block)
{
	ab_parentfile_prefetch(layer->id, node_of(layer, key), key.fork, block);
}
