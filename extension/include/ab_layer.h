/*
 * ab_layer.h
 *	  Reading pages of snapshots: out of .pages files or of living databases.
 */
#ifndef AB_LAYER_H
#define AB_LAYER_H

#include "ab_manifest.h"

/*
 * Content of a block of the snapshot, as it was: zeros where no run covers it.
 * block < entry->nblocks.  Raises 58P01/XX001 when the layer cannot give it.
 */
extern void ab_snapshot_read(const AbManifest *m, const AbForkEntry *entry,
							 BlockNumber block, char *page);

/* Hint to the kernel that the block will be read. */
extern void ab_snapshot_prefetch(const AbManifest *m, const AbForkEntry *entry,
								 BlockNumber block);

/* Remove a layer's file; its space is free at once.  Bumps layer_generation. */
extern void ab_layer_remove(AbSnapId id);

#endif							/* AB_LAYER_H */
