/*
 * ab_changes.h
 *	  Which blocks of two databases may differ, because one is a branch of the other or
 *	  both are branches of one.
 */
#ifndef AB_CHANGES_H
#define AB_CHANGES_H

#include "ab_format.h"

/* Blocks [start, end). */
typedef struct AbBlockRange
{
	BlockNumber start;
	BlockNumber end;
} AbBlockRange;

typedef struct AbBlockRanges
{
	AbBlockRange *range;		/* in no certain order; they may overlap */
	int			n;
	int			max;
} AbBlockRanges;

/* What two databases have in common, and how to tell what either changed since. */
typedef struct AbKinship AbKinship;

/*
 * Find it, and write their dirty buffers, so that what any transaction that is over by
 * now did is in their files.  NULL: nothing in common that can be told from.  The
 * caller sees to it that neither database goes; changes made meanwhile may or may not
 * count.
 */
extern AbKinship *ab_kinship(Oid a, Oid b);

/*
 * Blocks of the main fork of a relation, whose file has the same number in both, in
 * which they may differ.  Appended to ranges.  False: it cannot be told, because the
 * file is not one that both have from their common snapshot.
 */
extern bool ab_kinship_changes(AbKinship *k, Oid spc, Oid rel, AbBlockRanges *ranges);

extern void ab_kinship_release(AbKinship *k);

/* Size of the main fork as a session in the database sees it; 0 if there is no file. */
extern BlockNumber ab_relation_blocks(Oid db, Oid spc, Oid rel);

#endif							/* AB_CHANGES_H */
