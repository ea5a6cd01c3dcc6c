/*
 * ab_originfile.h
 *	  The origin file itself (format: ab_format.h), without any cache.
 *	  Users of branches want ab_origin.h; its life-of-the-file functions are
 *	  implemented here as well.
 */
#ifndef AB_ORIGINFILE_H
#define AB_ORIGINFILE_H

#include "ab_format.h"

/* Free slots that must be at hand before anything is truncated. */
#define AB_SLOT_RESERVE 32

typedef struct AbOriginImage
{
	AbOriginHeader header;
	AbLimitSlot *slots;			/* used ones */
	int			nslots;
	int			nfree;
	char	   *file;			/* private; NULL: it has no file of its own */
} AbOriginImage;

/* Read and check; false if there is none.  Raises XX001 if damaged. */
extern bool ab_originfile_load(Oid db, AbOriginImage *image);
extern void ab_originfile_free(AbOriginImage *image);

/*
 * Write one slot, replacing the one for the same fork, durably, and bump the
 * generation.  Lock: the database's origin lock, exclusive, taken here.
 * Allocates nothing; uses the descriptor that _hold opened.  elevel: of failure.
 */
extern void ab_originfile_put_slot(Oid db, AbSnapId incarnation,
								   AbLimitSlot *slot, int elevel);

/*
 * Keep the file open in this process, so that _put_slot need not open it.  An origin that
 * has been gathered gets one to keep ready; with its first slot that gets its name, durably.
 * False, with errno, if that cannot be done (ENOENT: it has no origin any more).
 */
extern bool ab_originfile_hold(Oid db, AbSnapId incarnation);

/* Changes with what is kept open. */
extern uint32 ab_originfile_held_moment;

/* Append a block of free slots if fewer than the reserve are left.  A full disk
 * is forgiven if lenient.  True if a block was appended. */
extern bool ab_originfile_extend(Oid db, bool lenient);

/*
 * Does an origin have a file of its own that says no more than its header, which is put
 * into *header?  And remove that file, if it still is so and says the same; what is
 * damaged stays.  The file is in need of nobody: the branch has no directory.
 */
extern bool ab_originfile_is_bare(Oid db, AbOriginHeader *header);
extern bool ab_originfile_unlink_bare(const AbOriginHeader *header);

/*
 * A branch that was damaged for a while may have lost changes meanwhile: then it must
 * never be read again, even if the damage is gone.  The mark is durable on return; an
 * invalid incarnation means whatever is there.
 */
extern void ab_originfile_mark_lost(Oid db, AbSnapId incarnation);
extern bool ab_originfile_is_lost(Oid db, AbSnapId incarnation);

#endif							/* AB_ORIGINFILE_H */
