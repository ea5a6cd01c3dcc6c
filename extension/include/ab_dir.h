/*
 * ab_dir.h
 *	  The directory of a branch in its default tablespace, which is made when it is
 *	  first needed.
 */
#ifndef AB_DIR_H
#define AB_DIR_H

#include "ab_format.h"

#include "utils/relmapper.h"

/* Are the directory and both small files there, by their lengths? */
extern bool ab_dir_is_whole(Oid db, Oid spc);

/*
 * See that a branch has its directory; does nothing for a plain database.  In a
 * transaction: takes AccessShareLock on the database object for a moment, if
 * something is missing.  spc is the database's tablespace.
 */
extern void ab_dir_ensure(Oid db, Oid spc);

/* The same for who holds such a lock already, and goes on if the branch is damaged. */
extern void ab_dir_try(Oid db);

/*
 * Make what is not whole, with that map (NULL: none is known, and none is written).  For
 * who holds a lock on the database object, or is alone.
 */
extern void ab_dir_make(Oid db, Oid spc, AbSnapId snapshot, const char *relmap);

/* Is the map missing or damaged, of a branch that had changed it? */
extern bool ab_dir_has_lost_map(Oid db);

/* Only the directory, empty, if it is missing: the server's own records name it. */
extern void ab_dir_make_empty(Oid db, Oid spc);

/* Names of the directory and of what is in it, onto the disk. */
extern void ab_dir_sync_names(Oid db, Oid spc);

/* A relation's file was made in a branch: the transaction may change the map. */
extern void ab_dir_note_new_file(Oid db);

/* Around replay of a change of a relation map.  _before: does _after have to be called? */
extern bool ab_dir_before_relmap_redo(const xl_relmap_update *rec);
extern void ab_dir_after_relmap_redo(const xl_relmap_update *rec);

/* In the postmaster, after a crash: every directory that is there is made whole. */
extern void ab_dir_repair_all(void);

#endif							/* AB_DIR_H */
