/*
 * ab_builder.c
 *	  Building the image of a manifest (format: ab_format.h).
 *
 * Any process, in the memory context current at ab_manifest_builder().
 */
#include "ab_manifest.h"

#include "utils/memutils.h"

#include "ab_file.h"

struct AbManifestBuilder
{
	MemoryContext cxt;
	AbLayerRef *layers;
	uint32		nlayers;
	uint32		maxlayers;
	AbForkEntry *forks;
	uint32		nforks;
	uint32		maxforks;
	AbRun	   *runs;
	uint32		nruns;
	uint32		maxruns;
	bool		has_relmap;
	char		relmap[AB_RELMAP_SIZE];
};

AbManifestBuilder *
ab_manifest_builder(void)
{
	AbManifestBuilder *b = palloc0(sizeof(AbManifestBuilder));

	b->cxt = CurrentMemoryContext;
	b->maxlayers = 8;
	b->layers = palloc0(sizeof(AbLayerRef) * b->maxlayers);
	b->nlayers = 1;				/* the snapshot itself */
	b->maxforks = 1024;
	b->forks = palloc(sizeof(AbForkEntry) * b->maxforks);
	b->maxruns = 1024;
	b->runs = palloc(sizeof(AbRun) * b->maxruns);
	return b;
}

void
ab_builder_expect(AbManifestBuilder *b, uint32 nforks, uint32 nruns)
{
	Assert(b->nforks == 0 && b->nruns == 0);
	if (nforks > b->maxforks)
	{
		b->maxforks = nforks;
		b->forks = repalloc_huge(b->forks, sizeof(AbForkEntry) * nforks);
	}
	if (nruns > b->maxruns)
	{
		b->maxruns = nruns;
		b->runs = repalloc_huge(b->runs, sizeof(AbRun) * nruns);
	}
}

/* Double an array in place when it is full. */
static void *
grown(void *array, uint32 used, uint32 *max, size_t size)
{
	if (used < *max)
		return array;
	*max *= 2;
	return repalloc_huge(array, size * *max);
}

uint32
ab_builder_layer(AbManifestBuilder *b, AbLayerRef layer)
{
	b->layers = grown(b->layers, b->nlayers, &b->maxlayers, sizeof(AbLayerRef));
	b->layers[b->nlayers] = layer;
	return b->nlayers++;
}

void
ab_builder_fork(AbManifestBuilder *b, AbForkKey key, uint16 flags,
				BlockNumber nblocks)
{
	AbForkEntry *e;

	b->forks = grown(b->forks, b->nforks, &b->maxforks, sizeof(AbForkEntry));
	e = &b->forks[b->nforks++];
	memset(e, 0, sizeof(*e));
	e->spc = key.spc;
	e->rel = key.rel;
	e->fork = (int16) key.fork;
	e->flags = flags;
	e->nblocks = nblocks;
	e->first_run = b->nruns;
}

void
ab_builder_inherited(AbManifestBuilder *b, BlockNumber nblocks)
{
	b->forks[b->nforks - 1].inherited = nblocks;
}

void
ab_builder_run(AbManifestBuilder *b, BlockNumber start, BlockNumber count,
			   uint32 layer, uint32 position)
{
	AbForkEntry *e = &b->forks[b->nforks - 1];
	AbRun	   *r;

	if (count == 0)
		return;
	if (e->nruns > 0)
	{
		r = &b->runs[b->nruns - 1];
		if (r->layer == layer && r->start + r->count == start &&
			r->position + r->count == position)
		{
			r->count += count;
			return;
		}
	}
	b->runs = grown(b->runs, b->nruns, &b->maxruns, sizeof(AbRun));
	r = &b->runs[b->nruns++];
	r->start = start;
	r->count = count;
	r->layer = layer;
	r->position = position;
	e->nruns++;
}

void
ab_builder_relmap(AbManifestBuilder *b, const char *relmap)
{
	memcpy(b->relmap, relmap, AB_RELMAP_SIZE);
	b->has_relmap = true;
}

char *
ab_builder_image(AbManifestBuilder *b, AbManifestHeader *header, size_t *len)
{
	char	   *image;
	char	   *at;

	if (!b->has_relmap)
		elog(ERROR, "manifest without a relation map");

	/* runs are found through first_run, so the forks can move freely */
	qsort(b->forks, b->nforks, sizeof(AbForkEntry), ab_fork_entry_compare);

	header->magic = AB_MANIFEST_MAGIC;
	header->version = AB_MANIFEST_VERSION;
	header->nlayers = b->nlayers;
	header->nforks = b->nforks;
	header->nruns = b->nruns;
	if (header->flags & AB_MANIFEST_LIVE)
	{
		b->layers[0].live_db = header->source_db;
		b->layers[0].of_branch = AbSnapIdIsValid(header->base);
	}

	*len = sizeof(AbManifestHeader) + AB_RELMAP_SIZE +
		(size_t) b->nlayers * sizeof(AbLayerRef) +
		(size_t) b->nforks * sizeof(AbForkEntry) +
		(size_t) b->nruns * sizeof(AbRun);
	image = MemoryContextAllocHuge(b->cxt, *len);

	memcpy(image, header, sizeof(AbManifestHeader));	/* until it is sealed */
	at = image + sizeof(AbManifestHeader);
	memcpy(at, b->layers, b->nlayers * sizeof(AbLayerRef));
	at += b->nlayers * sizeof(AbLayerRef);
	memcpy(at, b->forks, b->nforks * sizeof(AbForkEntry));
	at += b->nforks * sizeof(AbForkEntry);
	memcpy(at, b->runs, b->nruns * sizeof(AbRun));
	at += b->nruns * sizeof(AbRun);
	memcpy(at, b->relmap, AB_RELMAP_SIZE);
	return image;
}

void
ab_builder_seal(char *image, size_t len, AbManifestHeader *header)
{
	AbLayerRef *self = (AbLayerRef *) (image + sizeof(AbManifestHeader));

	self->id = header->id;
	memcpy(image, header, sizeof(AbManifestHeader));
	header->crc = ab_crc_without(image, len, offsetof(AbManifestHeader, crc));
	((AbManifestHeader *) image)->crc = header->crc;
}

char *
ab_builder_finish(AbManifestBuilder *b, AbManifestHeader *header, size_t *len)
{
	char	   *image = ab_builder_image(b, header, len);

	ab_builder_seal(image, *len, header);
	return image;
}
