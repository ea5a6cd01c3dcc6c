/*
 * ab_gc_parts.h
 *	  What the parts of giving back (ab_gc*.c) share, and nobody else needs.
 */
#ifndef AB_GC_PARTS_H
#define AB_GC_PARTS_H

#include "ab_gc.h"

#include "utils/hsearch.h"

/* The turn, waited for by a background worker, too. */
extern void ab_gc_lock_waiting(void);

/* Sets of snapshot ids, in the caller's memory context. */
extern HTAB *ab_gc_ids(void);
extern bool ab_gc_has_id(HTAB *set, AbSnapId id);
extern void ab_gc_add_id(HTAB *set, AbSnapId id);

/* Appends an AbGcItem. */
extern List *ab_gc_add_item(List *items, const char *kind, const char *name, int64 bytes);

/* OIDs of all databases that have a row, sorted, palloc'd. */
extern Oid *ab_gc_database_oids(int *n);

/*
 * Lock the object of a database if nobody else does, and if its storage is garbage
 * (ab_gc_orphans.c); false: nothing is locked.
 */
extern bool ab_gc_lock_orphan(Oid db);
extern void ab_gc_unlock_orphan(Oid db);

#endif							/* AB_GC_PARTS_H */
