/*
 * ab_capture.h
 *	  Saving old pages of plain databases for their snapshots before they are
 *	  overwritten (README.before_images; invariants E1, E2).
 *
 * The caller holds the guard of the database, shared.
 */
#ifndef AB_CAPTURE_H
#define AB_CAPTURE_H

#include "ab_types.h"

#include "access/xlogreader.h"

/*
 * A block is about to be written or extended over; a fork is about to lose all its
 * blocks from one on.  On return the old content is safe, or the snapshots that
 * would need it are poisoned.  Both may run in a critical section and in any
 * process; they raise nothing.
 */
extern void ab_capture_block(RelFileNode rnode, ForkNumber fork, BlockNumber block);
extern void ab_capture_tail(RelFileNode rnode, ForkNumber fork, BlockNumber from);

/* Blocks [from, end) of a fork, whether they change or not; the same otherwise. */
extern void ab_capture_range(RelFileNode rnode, ForkNumber fork, BlockNumber from,
							 BlockNumber end);

/*
 * While a snapshot is taken and not usable yet: it is to see "page" in this block,
 * which changed physically around its record; older snapshots of the database go on
 * seeing what they saw.  Raises errors.  Takes the guard itself.
 */
extern void ab_capture_window(AbSnapId id, RelFileNode rnode, ForkNumber fork,
							  BlockNumber block, const char *page);

/* Replay of BEFORE_IMAGE. */
extern void ab_capture_redo(XLogReaderState *record);

#endif							/* AB_CAPTURE_H */
