/*
 * ab_lineage.h
 *	  What a database descends from, and what two have in common.
 */
#ifndef AB_LINEAGE_H
#define AB_LINEAGE_H

#include "ab_format.h"

/* A state that a database once was in, or began as. */
typedef struct AbAncestor
{
	Oid			db;				/* whose state it is; it may be gone */
	AbSnapId	at;				/* the snapshot; invalid: as it is now */
	Oid			holder;			/* a database that hangs on the snapshot and so keeps it;
								 * InvalidOid: none is known */
} AbAncestor;

/* The database itself, what it was branched from, and so on (AbAncestor *). */
extern List *ab_lineage(Oid db);

/*
 * The nearest state that both have been in.  False if there is none, or if a snapshot
 * between is no more.  Of a database with itself: as it is now.  *via: the one of the two
 * whose lineage has the snapshot.
 */
extern bool ab_merge_base(Oid a, Oid b, AbAncestor *found, Oid *via);

#endif							/* AB_LINEAGE_H */
