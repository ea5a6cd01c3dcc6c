/*
 * ab_pagerows.c
 *	  Which rows of a heap page are not the same on two sides.
 *
 * Pure functions on page images; any process.  A transaction id is given out once in a
 * cluster, and a transaction puts no two rows in one place, so two versions with the same
 * bytes, inserter and deleter in the same place of pages of one origin are one version.
 * Freezing is noted in bits beside the inserter, which stays.
 */
#include "ab_pagerows.h"

#include "storage/bufpage.h"

/* What the next reader can find out again. */
#define HINTS (HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID | \
			   HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID)

static bool
is_heap_page(const char *page)
{
	const PageHeaderData *p = (const PageHeaderData *) page;

	return PageGetPageSize((Page) p) == BLCKSZ &&
		p->pd_lower >= SizeOfPageHeaderData &&
		p->pd_lower <= p->pd_upper &&
		p->pd_upper <= p->pd_special &&
		p->pd_special == BLCKSZ &&
		PageGetMaxOffsetNumber((Page) p) <= MaxHeapTuplesPerPage;
}

/* Does the place hold a row that lies in the page as it should? */
static bool
is_row(const char *page, ItemId id)
{
	return ItemIdIsNormal(id) &&
		ItemIdGetLength(id) >= SizeofHeapTupleHeader &&
		ItemIdGetOffset(id) >= ((const PageHeaderData *) page)->pd_upper &&
		ItemIdGetOffset(id) + ItemIdGetLength(id) <= BLCKSZ;
}

/*
 * Is it sure that the inserter has committed on both sides if it has on one?  A frozen row
 * beside one that is not known to be committed could be an inserter of the same number
 * from before the numbers went round.
 */
static bool
same_fate(const HeapTupleHeaderData *a, const HeapTupleHeaderData *b)
{
	return HeapTupleHeaderXminFrozen(a) == HeapTupleHeaderXminFrozen(b) ||
		(HeapTupleHeaderXminCommitted(a) && HeapTupleHeaderXminCommitted(b));
}

static bool
is_same_row(const char *a, ItemId ida, const char *b, ItemId idb)
{
	Size		len = ItemIdGetLength(ida);
	const char *rowa = a + ItemIdGetOffset(ida);
	const char *rowb = b + ItemIdGetOffset(idb);
	HeapTupleHeaderData ha;
	HeapTupleHeaderData hb;

	if (len != ItemIdGetLength(idb))
		return false;
	memcpy(&ha, rowa, SizeofHeapTupleHeader);
	memcpy(&hb, rowb, SizeofHeapTupleHeader);
	if (!same_fate(&ha, &hb))
		return false;
	ha.t_infomask &= ~HINTS;
	hb.t_infomask &= ~HINTS;
	return memcmp(&ha, &hb, SizeofHeapTupleHeader) == 0 &&
		memcmp(rowa + SizeofHeapTupleHeader, rowb + SizeofHeapTupleHeader,
			   len - SizeofHeapTupleHeader) == 0;
}

/* All places there can be: reading a row where none is finds none. */
static int
all_places(OffsetNumber *places)
{
	for (int i = 0; i < MaxHeapTuplesPerPage; i++)
		places[i] = FirstOffsetNumber + i;
	return MaxHeapTuplesPerPage;
}

static bool
is_empty(const char *page)
{
	return page == NULL || PageIsNew((Page) page);
}

void
ab_page_changed_rows(const char *a, const char *b, AbPageRows *rows)
{
	OffsetNumber maxa = 0;
	OffsetNumber maxb = 0;

	rows->na = rows->nb = 0;
	if ((!is_empty(a) && !is_heap_page(a)) || (!is_empty(b) && !is_heap_page(b)))
	{
		rows->na = all_places(rows->of_a);
		rows->nb = all_places(rows->of_b);
		return;
	}
	if (!is_empty(a))
		maxa = PageGetMaxOffsetNumber((Page) a);
	if (!is_empty(b))
		maxb = PageGetMaxOffsetNumber((Page) b);
	for (OffsetNumber off = FirstOffsetNumber; off <= Max(maxa, maxb); off++)
	{
		ItemId		ida = off <= maxa ? PageGetItemId((Page) a, off) : NULL;
		ItemId		idb = off <= maxb ? PageGetItemId((Page) b, off) : NULL;

		if (ida && idb && is_row(a, ida) && is_row(b, idb) && is_same_row(a, ida, b, idb))
			continue;
		if (ida && ItemIdIsNormal(ida))
			rows->of_a[rows->na++] = off;
		if (idb && ItemIdIsNormal(idb))
			rows->of_b[rows->nb++] = off;
	}
}
