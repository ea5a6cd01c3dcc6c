/*
 * ab_manifest.h
 *	  Reading, searching and building manifests (format: ab_format.h).
 *
 * A manifest that is loaded is one mapping of its file; the same snapshot is
 * mapped once for each process and counted by reference.  Manifests never change
 * once confirmed, so they need no lock.
 */
#ifndef AB_MANIFEST_H
#define AB_MANIFEST_H

#include "ab_format.h"

typedef struct AbManifest
{
	const AbManifestHeader *h;
	const AbLayerRef *layers;
	const AbForkEntry *forks;
	const AbRun *runs;
	const char *relmap;			/* AB_RELMAP_SIZE bytes */
	/* private */
	void	   *mapping;
	size_t		mapped;
	int			refs;
} AbManifest;

/*
 * Map the manifest of a confirmed snapshot.  Raises 58P01 if there is none and
 * XX001 if it is damaged or the snapshot is poisoned.  Pair with _release.
 */
extern AbManifest *ab_manifest_acquire(AbSnapId id);
extern void ab_manifest_release(AbManifest *m);

/*
 * Only the header, without the checksum over the whole: who looks at many snapshots
 * must not read many manifests.  False if there is none, or it is no manifest.
 */
extern bool ab_manifest_read_header(AbSnapId id, AbManifestHeader *h);
extern bool ab_manifest_read_pending_header(AbSnapId id, AbManifestHeader *h);

/* The entry of a fork, or NULL. */
extern const AbForkEntry *ab_manifest_find(const AbManifest *m, AbForkKey key);

/* Has it any fork of a relation?  Allocates and raises nothing. */
extern bool ab_manifest_has_relation(const AbManifest *m, Oid spc, Oid rel);

/* The run that covers a block, or NULL: the block is zeros. */
extern const AbRun *ab_manifest_run(const AbManifest *m, const AbForkEntry *e,
									BlockNumber block);

/*
 * Check an image of a manifest file; NULL if good, else a palloc'd reason.
 * Never raises: also used by redo and branch.verify().
 */
extern char *ab_manifest_check(const char *image, size_t len, AbManifest *out);

/* The same of one that ab_builder_seal() has not been called for yet. */
extern char *ab_manifest_check_unsealed(const char *image, size_t len, AbManifest *out);

/*
 * Set the arrays of out into an image, looking only at its magic, version and whether
 * its length fits.  Allocates and raises nothing.
 */
extern bool ab_manifest_layout(const char *image, size_t len, AbManifest *out);

/* qsort/bsearch order of fork entries: spc, rel, fork. */
extern int	ab_fork_entry_compare(const void *a, const void *b);

/* ---- building (ab_builder.c) ---- */

typedef struct AbManifestBuilder AbManifestBuilder;

extern AbManifestBuilder *ab_manifest_builder(void);	/* in CurrentMemoryContext */

/* There will be so many, or more: room for them at once. */
extern void ab_builder_expect(AbManifestBuilder *b, uint32 nforks, uint32 nruns);

/* layers[0], the snapshot itself, is there from the start. */
extern uint32 ab_builder_layer(AbManifestBuilder *b, AbLayerRef layer);	/* index; once each */
extern void ab_builder_fork(AbManifestBuilder *b, AbForkKey key, uint16 flags,
							BlockNumber nblocks);

/* Of the fork added last: see AbForkEntry. */
extern void ab_builder_inherited(AbManifestBuilder *b, BlockNumber nblocks);

/* Runs of the fork added last, in order of start; neighbours are joined. */
extern void ab_builder_run(AbManifestBuilder *b, BlockNumber start,
						   BlockNumber count, uint32 layer, uint32 position);
extern void ab_builder_relmap(AbManifestBuilder *b, const char *relmap);

/*
 * The image: sorted and counted, with layers[0] live if the header's flags say so.
 * header: magic, version and counts are filled in here.  It is good for a file once it
 * is sealed, with the same header: that gives it the snapshot's id, which is known only
 * after WAL insertion, the rest of the header, and the CRC.
 */
extern char *ab_builder_image(AbManifestBuilder *b, AbManifestHeader *header,
							  size_t *len);
extern void ab_builder_seal(char *image, size_t len, AbManifestHeader *header);

/* Both at once. */
extern char *ab_builder_finish(AbManifestBuilder *b, AbManifestHeader *header,
							   size_t *len);

#endif							/* AB_MANIFEST_H */
