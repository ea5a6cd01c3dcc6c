/*
 * ab_originslots.h
 *	  Writing the limit slots of an origin (format: ab_format.h), without any cache.
 *	  Users of branches want ab_origin.h.
 */
#ifndef AB_ORIGINSLOTS_H
#define AB_ORIGINSLOTS_H

#include "ab_format.h"

/* Free slots that must be at hand before anything is truncated. */
#define AB_SLOT_RESERVE 32

/*
 * Write one slot, replacing the one for the same fork, durably, and bump the
 * generation.  Lock: the database's origin lock, exclusive, taken here.
 * Allocates nothing; uses the descriptor that _hold opened.  elevel: of failure.
 */
extern void ab_originslots_put(Oid db, AbSnapId incarnation,
							   AbLimitSlot *slot, int elevel);

/*
 * Keep the file open in this process, so that _put_slot need not open it.  An origin that
 * has been gathered gets one to keep ready; with its first slot that gets its name, durably.
 * False, with errno, if that cannot be done (ENOENT: it has no origin any more).
 */
extern bool ab_originslots_hold(Oid db, AbSnapId incarnation);

/* Changes with what is kept open. */
extern uint32 ab_originslots_held_moment;

/* Append a block of free slots if fewer than the reserve are left.  A full disk
 * is forgiven if lenient.  True if a block was appended. */
extern bool ab_originslots_extend(Oid db, bool lenient);

/* Close it, if it is that database's. */
extern void ab_originslots_let_go(Oid db);

#endif							/* AB_ORIGINSLOTS_H */
