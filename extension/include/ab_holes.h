/*
 * ab_holes.h
 *	  Which blocks of a branch's own file are surely holes, so that nobody reads the zeros.
 */
#ifndef AB_HOLES_H
#define AB_HOLES_H

#include "ab_origin.h"

/*
 * Is the block, of a main fork with an own file and below its limit, known to be a hole
 * there now?  False: it has to be looked at.  Only for who has the block's buffer in his
 * hands, to read it or to write it; ab_holes.c says why.
 */
extern bool ab_holes_known(AbBranch *b, RelFileNode rnode, BlockNumber block);

/* It was looked at, and is all zeros: learn more about its neighbourhood, if that pays. */
extern void ab_holes_found_one(AbBranch *b, RelFileNode rnode, BlockNumber block);

/*
 * Called by who writes a block that was, or may have been, a hole: after the write, also
 * if that failed, and before another process can get the block's buffer.
 */
extern void ab_holes_filled(RelFileNode rnode, BlockNumber block);

#endif							/* AB_HOLES_H */
