/*
 * ab_live.h
 *	  Pages of a live layer: of a plain database as it was at one of its snapshots.
 */
#ifndef AB_LIVE_H
#define AB_LIVE_H

#include "ab_manifest.h"

/* The block as the layer's snapshot sees it.  Raises 58P01/XX001. */
extern void ab_live_read(const AbLayerRef *layer, AbForkKey key, BlockNumber block,
						 char *page);

extern void ab_live_prefetch(const AbLayerRef *layer, AbForkKey key, BlockNumber block);

#endif							/* AB_LIVE_H */
