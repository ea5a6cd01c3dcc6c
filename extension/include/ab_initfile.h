/*
 * ab_initfile.h
 *	  pg_internal.init for new branches: what a first connection would have to collect
 *	  from the catalogs and write.
 */
#ifndef AB_INITFILE_H
#define AB_INITFILE_H

#include "ab_types.h"

/*
 * While a snapshot is taken, nobody writes in the source: hold its file on to, before
 * the snapshot; keep what is held for the snapshot's branches, after it, unless it has
 * become invalid meanwhile, or let go of it, if none was taken.  Never raise.
 */
extern void ab_initfile_hold(Oid db, Oid spc);
extern void ab_initfile_keep(AbSnapId id, Oid db, Oid spc);
extern void ab_initfile_let_go(void);

/* Give a new branch its own name of the file, if there is one.  Never raises. */
extern void ab_initfile_give(AbSnapId id, Oid db, Oid spc);

/* The snapshot goes. */
extern void ab_initfile_drop(AbSnapId id);

/* At start of the server: nothing of before may be used. */
extern void ab_initfile_drop_all(void);

#endif							/* AB_INITFILE_H */
