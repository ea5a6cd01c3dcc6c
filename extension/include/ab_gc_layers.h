/*
 * ab_gc_layers.h
 *	  Giving back manifests and layers.  Sets are those of ab_gc_parts.h; gone: snapshots
 *	  that were retired in this run, whose manifests are still there in a dry run.
 */
#ifndef AB_GC_LAYERS_H
#define AB_GC_LAYERS_H

#include "ab_gc_parts.h"

/* Has a snapshot a manifest, finished or pending? */
extern bool ab_gc_has_manifest(AbSnapId id);

/* The manifest of a snapshot that nobody needs; of a live one its layer as well. */
extern List *ab_gc_retire_one(List *items, AbSnapId id, HTAB *gone, bool dry_run);

/* The same of those live snapshots (AbSnapId *) whose layer no other manifest names. */
extern List *ab_gc_retire_live(List *items, List *candidates, HTAB *gone, bool dry_run);

/* Layers that no manifest names. */
extern List *ab_gc_retire_layers(List *items, bool dry_run, HTAB *gone);

#endif							/* AB_GC_LAYERS_H */
