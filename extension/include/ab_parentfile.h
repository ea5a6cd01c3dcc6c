/*
 * ab_parentfile.h
 *	  Reading the files of databases around the storage manager, as saving and
 *	  reading before-images has to.
 */
#ifndef AB_PARENTFILE_H
#define AB_PARENTFILE_H

#include "ab_types.h"

/*
 * A block of a relation's file as it is on disk (or in the kernel) now; what is
 * behind the end of the file is zeros, and so is everything without a file of a map
 * (a map that says less than it could is a good map) or if missing_ok.  False with
 * errno if it cannot be read.  Runs anywhere, critical sections included: allocates
 * nothing, raises nothing.
 *
 * sees: a live snapshot that sees the file, if the caller reads for one and asks
 * afterwards whether it is sound; else AB_NO_SNAPSHOT.
 */
extern bool ab_parentfile_read(AbSnapId sees, RelFileNode rnode, ForkNumber fork,
							   BlockNumber block, bool missing_ok, char *page);

/* Hint to the kernel that the block will be read. */
extern void ab_parentfile_prefetch(AbSnapId sees, RelFileNode rnode, ForkNumber fork,
								   BlockNumber block);

/* Around reads by who is no session of the branch that inherits: what they open is closed. */
extern uint32 ab_parentfile_begin(void);
extern void ab_parentfile_end(uint32 begun);

/* Path of a segment, written into buf[MAXPGPATH]; allocates nothing. */
extern void ab_relation_path(char *buf, RelFileNode rnode, ForkNumber fork,
							 BlockNumber segno);

#endif							/* AB_PARENTFILE_H */
