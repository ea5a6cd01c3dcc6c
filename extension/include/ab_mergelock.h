/*
 * ab_mergelock.h
 *	  One merge into a database at a time, and none out of it meanwhile.
 */
#ifndef AB_MERGELOCK_H
#define AB_MERGELOCK_H

#include "postgres.h"

/* Second and last part of its locks in pg_locks; the view branch.merges knows them. */
#define AB_MERGELOCK_KEY	0x41424D47	/* "ABMG" */
#define AB_MERGELOCK_CLASS	0xAB	/* users' advisory locks have 1 and 2 here */

/*
 * Who merges source into target, to the end of the transaction; source is target: of that
 * alone.  55P03 after lock_timeout.
 */
extern void ab_mergelock_take(Oid source, Oid target);

/* The session that writes, in the target, to the end of its transaction. */
extern void ab_mergelock_take_inside(void);

#endif							/* AB_MERGELOCK_H */
