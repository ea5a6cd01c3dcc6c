/*
 * ab_imageuse.c
 *	  Which snapshots need which before-image, and how much that is.
 *
 * Any process; no locks: an entry that is being written is passed over.
 */
#include "ab_imageuse.h"

#include "miscadmin.h"

#include "ab_imagechain.h"
#include "ab_images.h"

/* How many of the snapshots are not after "upto"? */
static int
count_upto(const AbSnapId *living, int nliving, XLogRecPtr upto)
{
	int			low = 0;
	int			high = nliving;

	while (low < high)
	{
		int			mid = (low + high) / 2;

		if (living[mid].lsn <= upto)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

bool
ab_image_any_living(const AbSnapId *living, int nliving, XLogRecPtr after,
					XLogRecPtr upto)
{
	return count_upto(living, nliving, after) < count_upto(living, nliving, upto);
}

AbImageUse
ab_image_use(AbImageRef at, const AbImageEntry *e, const AbSnapId *living, int nliving,
			 int *first, int *last)
{
	int			from;
	int			to;

	if (!ab_image_entry_is_valid(at, e))
		return ab_image_entry_is_empty(e) ? AB_USE_EMPTY : AB_USE_UNKNOWN;
	if (e->flags & AB_IMAGE_DEAD)
		return AB_USE_DEAD;
	from = count_upto(living, nliving, e->prev.lsn);
	to = count_upto(living, nliving, at.lsn) - 1;
	if (first)
		*first = from;
	if (last)
		*last = to;
	return from <= to ? AB_USE_NEEDED : AB_USE_NOT_NEEDED;
}

/* Add what the images of one group are for: needed[i] counts from snapshot i on. */
static void
add_group(AbSnapId epoch, uint32 group, const AbImageGroup *g, const AbSnapId *living,
		  int nliving, int64 *needed, int64 *alone)
{
	for (uint32 i = 0; i < AB_GROUP_SLOTS; i++)
	{
		AbImageRef	at = ab_image_ref(epoch, group * AB_GROUP_SLOTS + i);
		const AbImageEntry *e = &g->entry[i];
		int			first;
		int			last;

		if (ab_image_use(at, e, living, nliving, &first, &last) != AB_USE_NEEDED ||
			(e->flags & AB_IMAGE_GONE))
			continue;
		needed[first] += BLCKSZ;
		if (last + 1 < nliving)
			needed[last + 1] -= BLCKSZ;
		if (first == last)
			alone[first] += BLCKSZ;
	}
}

void
ab_images_usage(Oid db, const AbSnapId *living, int nliving, int64 *needed, int64 *alone)
{
	int			nfiles;
	AbSnapId   *files = ab_imagefile_list(db, &nfiles);
	AbImageGroup *g = palloc(sizeof(AbImageGroup));

	memset(needed, 0, sizeof(int64) * nliving);
	memset(alone, 0, sizeof(int64) * nliving);
	for (int i = 0; i < nfiles; i++)
	{
		int			fd = ab_imagefile_epoch(db, files[i]);
		uint32		nslots;

		if (fd < 0 || !ab_imagefile_slots(fd, &nslots))
			continue;
		for (uint32 group = 0; group * AB_GROUP_SLOTS < nslots; group++)
		{
			CHECK_FOR_INTERRUPTS();
			if (ab_image_group_read(db, files[i], group, g))
				add_group(files[i], group, g, living, nliving, needed, alone);
		}
	}
	for (int i = 1; i < nliving; i++)
		needed[i] += needed[i - 1];
	pfree(g);
	pfree(files);
}
