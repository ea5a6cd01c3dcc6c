/*
 * ab_page.h
 *	  Comparing two versions of a page: may the difference be forgotten?
 */
#ifndef AB_PAGE_H
#define AB_PAGE_H

#include "ab_compat.h"

#include "storage/block.h"

/*
 * True if page differs from base only in bits that PostgreSQL itself treats as
 * hints and can work out again: heap tuple hint bits, pd_prune_xid,
 * PD_PAGE_FULL, PD_HAS_FREE_LINES, LP_DEAD marks and "has garbage" flags of
 * indexes, pd_checksum (rule 8).  Anything unknown: false.  Both are BLCKSZ.
 */
extern bool ab_page_only_hints_differ(const char *base, const char *page);

extern bool ab_page_is_sequence(const char *page);

/*
 * Make an inherited page fit for the branch: in a sequence, forget the values that
 * the parent has logged ahead.  The LSN stays (I5); the checksum is set anew.
 */
extern void ab_page_settle(char *page, BlockNumber block);

#endif							/* AB_PAGE_H */
