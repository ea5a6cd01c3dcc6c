/*
 * ab_base.h
 *	  Bases: databases in which the state that two databases have in common is read.
 *
 * A base is a branch of a snapshot that nobody asked for by name: closed to clients, owned
 * by nobody but the bootstrap superuser, shared by all who need that state, and dropped when
 * nobody does.  It can be made of a snapshot that is closed, too, as long as something hangs
 * on that and its transaction ids can still be looked up.
 */
#ifndef AB_BASE_H
#define AB_BASE_H

#include "ab_types.h"

/* Names that begin like this are nobody's. */
extern bool ab_base_name_is_reserved(const char *datname);

/* Is it one?  From whatever database; no lock. */
extern bool ab_is_base(Oid db);

/*
 * The base of a snapshot, which stays until the transaction ends and can be reached by
 * ab_remote_open() until then; its name.  The snapshot is one that database "of" descends
 * from, or one of that database itself: 22023.  42501 if the caller may not connect to that;
 * 55000 if the state cannot be read any more.
 */
extern char *ab_base_open(AbSnapId id, Oid of);

/* Has this transaction opened it? */
extern bool ab_base_is_open(Oid db);

/* In the keeper: have it.  pattern: a database with the same encoding and so on. */
extern void ab_base_add(AbSnapId id, Oid pattern);

/* Drop it if nobody reads it now; true if it is gone.  Waits for no lock. */
extern bool ab_base_drop(Oid db);

/* Drop those that nobody reads, and has wanted for a while (all: or not). */
extern void ab_base_sweep(bool all);

#endif							/* AB_BASE_H */
