/*
 * ab_overlay.h
 *	  A branch's own files: ordinary md files in base/<branch>, with the same
 *	  block numbers, sparse.  Below a fork's limit an all-zero block means
 *	  "inherited"; above it, it is simply a zero page.
 */
#ifndef AB_OVERLAY_H
#define AB_OVERLAY_H

#include "ab_origin.h"

#include "storage/md.h"
#include "storage/smgr.h"

/* Is there an own file?  Asks the filesystem unless a positive is known. */
static inline bool ab_overlay_exists(AbBranch *b, AbFork *f, SMgrRelation reln);

/*
 * Make the own file, sized to the limit, unless it is there.  Appears under its
 * name complete (rule 21), then the generation is bumped.  Nobody writes into an own
 * file without having called this: whoever did not make it waits until it is known.
 */
extern void ab_overlay_create(AbBranch *b, AbFork *f, SMgrRelation reln);

/*
 * The same, whether or not there is one of the right length already.  Without sync the
 * caller syncs the directory, between ab_overlay_names_begin() and _end().
 */
extern void ab_overlay_make(AbBranch *b, AbFork *f, SMgrRelation reln, bool sync);

extern void ab_overlay_names_begin(void);
extern void ab_overlay_names_end(void);

/*
 * In recovery, of a branch that passes for a plain database: what is there of a file may
 * be no more than the branch owned.  Make it at least so long.
 */
extern void ab_overlay_lengthen(RelFileNode rnode, ForkNumber fork, BlockNumber nblocks);

/* Read the own page; false if there is none (no file, too short, all zero). */
extern bool ab_overlay_read(AbBranch *b, AbFork *f, SMgrRelation reln,
							BlockNumber block, char *page);

/*
 * Of a relation that was dropped: an empty main fork, for md to remove after the next checkpoint,
 * so that no other relation gets the number before.  Crash recovery repeats the drop, and would
 * take away that one's files, whose contents need not be in WAL with wal_level = minimal.
 * Raises nothing; false if it could not be made.
 */
extern bool ab_overlay_hold_number(RelFileNode rnode);

/* Blocks of the own file; 0 without one. */
static inline BlockNumber ab_overlay_nblocks(AbBranch *b, AbFork *f, SMgrRelation reln);

/*
 * Cut the own file, if there is one.  Made for critical sections: allocates
 * nothing.  The limit has been lowered already.
 */
extern void ab_overlay_truncate(AbBranch *b, AbFork *f, SMgrRelation reln,
								BlockNumber old_blocks, BlockNumber nblocks);

/*
 * Is a fork empty, and was its tablespace dropped?  Of a relation that is dropped md leaves an
 * empty file until the next checkpoint, so a snapshot may have it that is taken while DROP
 * TABLESPACE has that checkpoint done.  No branch has such a relation.
 */
extern bool ab_overlay_is_left_over(const AbFork *f);

extern bool ab_page_is_zero(const char *page);

/* ---- what is asked all the time ---- */

extern bool ab_overlay_look_for_file(AbBranch *b, AbFork *f, SMgrRelation reln);

static inline bool
ab_overlay_exists(AbBranch *b, AbFork *f, SMgrRelation reln)
{
	return likely(f->own_known) ? f->own_exists : ab_overlay_look_for_file(b, f, reln);
}

static inline BlockNumber
ab_overlay_nblocks(AbBranch *b, AbFork *f, SMgrRelation reln)
{
	return ab_overlay_exists(b, f, reln) ? mdnblocks(reln, f->key.fork) : 0;
}

#endif							/* AB_OVERLAY_H */
