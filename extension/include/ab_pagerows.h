/*
 * ab_pagerows.h
 *	  Which rows of a heap page are not the same on two sides.
 */
#ifndef AB_PAGEROWS_H
#define AB_PAGEROWS_H

#include "ab_compat.h"

#include "access/htup_details.h"
#include "storage/off.h"

/*
 * Row versions, by their place in the page, that only one of the two sides has, or that
 * differ in more than what readers find out and note: other bytes, another inserter or
 * deleter or locker.  Those left out are the same version, and seen by the same
 * transactions on both sides, if the pages have one origin and what happened to each
 * since then is not seen here before it is over there.
 */
typedef struct AbPageRows
{
	OffsetNumber of_a[MaxHeapTuplesPerPage];
	OffsetNumber of_b[MaxHeapTuplesPerPage];
	int			na;
	int			nb;
} AbPageRows;

/* Of two pages of BLCKSZ; NULL: there is none.  What cannot be read counts as differing. */
extern void ab_page_changed_rows(const char *a, const char *b, AbPageRows *rows);

#endif							/* AB_PAGEROWS_H */
