/*
 * ab_page.c
 *	  Comparing two versions of a page: may the difference be forgotten?  And what
 *	  has to be changed in a page before a branch may have it.
 *
 * Pure functions on page images; any process.  The list of bits is the audit's
 * table of page changes without WAL: bits that a reader sets from what it found
 * out, and that the next reader can find out again.  PD_ALL_VISIBLE is not among
 * them: the visibility map relies on it (E3).
 */
#include "ab_page.h"

#include "access/gist.h"
#include "access/hash.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/xlog.h"
#include "commands/sequence.h"
#include "storage/bufpage.h"
#include "storage/checksum.h"

typedef enum PageKind
{
	PAGE_UNKNOWN,
	PAGE_HEAP,
	PAGE_BTREE,
	PAGE_GIST,
	PAGE_HASH
} PageKind;

static bool
layout_is_sane(const PageHeaderData *p)
{
	return PageGetPageSize((Page) p) == BLCKSZ &&
		p->pd_lower >= SizeOfPageHeaderData &&
		p->pd_lower <= p->pd_upper &&
		p->pd_upper <= p->pd_special &&
		p->pd_special <= BLCKSZ &&
		p->pd_special == MAXALIGN(p->pd_special);
}

/* Told apart by the special space; its last two bytes name the index type. */
static PageKind
page_kind(const char *page)
{
	const PageHeaderData *p = (const PageHeaderData *) page;
	Size		special = BLCKSZ - p->pd_special;
	uint16		tag = *(const uint16 *) (page + BLCKSZ - sizeof(uint16));

	if (special == 0)
		return PAGE_HEAP;
	if (special == MAXALIGN(sizeof(GISTPageOpaqueData)) && tag == GIST_PAGE_ID)
		return PAGE_GIST;
	if (special == MAXALIGN(sizeof(HashPageOpaqueData)) && tag == HASHO_PAGE_ID)
		return PAGE_HASH;
	if (special == MAXALIGN(sizeof(BTPageOpaqueData)) && tag <= MAX_BT_CYCLE_ID)
		return PAGE_BTREE;
	return PAGE_UNKNOWN;
}

/*
 * Heap tuples: the four "committed/invalid" bits.  Both xmin bits together mean
 * frozen, which is no hint: it must be the same on both sides.
 */
static bool
mask_heap(char *base, char *page)
{
	const uint16 hints = HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID |
		HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID;
	OffsetNumber max = PageGetMaxOffsetNumber((Page) page);

	((PageHeader) base)->pd_prune_xid = 0;
	((PageHeader) page)->pd_prune_xid = 0;
	((PageHeader) base)->pd_flags &= ~(PD_HAS_FREE_LINES | PD_PAGE_FULL);
	((PageHeader) page)->pd_flags &= ~(PD_HAS_FREE_LINES | PD_PAGE_FULL);

	for (OffsetNumber off = FirstOffsetNumber; off <= max; off++)
	{
		ItemId		id = PageGetItemId((Page) page, off);
		HeapTupleHeader old;
		HeapTupleHeader new;

		/* line pointers were compared already: same place in both */
		if (!ItemIdIsNormal(id))
			continue;
		if (ItemIdGetOffset(id) + SizeofHeapTupleHeader > BLCKSZ)
			return false;
		old = (HeapTupleHeader) (base + ItemIdGetOffset(id));
		new = (HeapTupleHeader) (page + ItemIdGetOffset(id));
		if (HeapTupleHeaderXminFrozen(old) != HeapTupleHeaderXminFrozen(new))
			return false;
		old->t_infomask &= ~hints;
		new->t_infomask &= ~hints;
	}
	return true;
}

/* Index pages: LP_DEAD marks and the flag that says there are some. */
static void
mask_index(char *page, PageKind kind)
{
	OffsetNumber max = PageGetMaxOffsetNumber((Page) page);
	char	   *special = page + ((PageHeader) page)->pd_special;

	for (OffsetNumber off = FirstOffsetNumber; off <= max; off++)
	{
		ItemId		id = PageGetItemId((Page) page, off);

		if (ItemIdIsDead(id) && ItemIdHasStorage(id))
			id->lp_flags = LP_NORMAL;
	}
	if (kind == PAGE_BTREE)
		((BTPageOpaque) special)->btpo_flags &= ~BTP_HAS_GARBAGE;
	else if (kind == PAGE_GIST)
		((GISTPageOpaque) special)->flags &= ~F_HAS_GARBAGE;
	else
		((HashPageOpaque) special)->hasho_flag &= ~LH_PAGE_HAS_DEAD_TUPLES;
}

/* In heaps every change of a line pointer is a change. */
static bool
same_line_pointers(const char *base, const char *page)
{
	const PageHeaderData *p = (const PageHeaderData *) page;

	return ((const PageHeaderData *) base)->pd_lower == p->pd_lower &&
		memcmp(base + SizeOfPageHeaderData, page + SizeOfPageHeaderData,
			   p->pd_lower - SizeOfPageHeaderData) == 0;
}

bool
ab_page_is_sequence(const char *page)
{
	static const uint32 sequence_magic = 0x1717;	/* SEQ_MAGIC in sequence.c */
	const PageHeaderData *p = (const PageHeaderData *) page;

	return !PageIsNew((Page) page) && layout_is_sane(p) &&
		BLCKSZ - p->pd_special == MAXALIGN(sizeof(uint32)) &&
		*(const uint32 *) (page + p->pd_special) == sequence_magic &&
		PageGetMaxOffsetNumber((Page) page) == FirstOffsetNumber;
}

/*
 * The WAL record of a nextval says more than the page: it promises values ahead, and
 * log_cnt says how many of them need no record.  The promise was made to the parent;
 * an image of the page taken now would replace it in recovery.  So a branch starts
 * with none, and its first nextval is logged.
 */
void
ab_page_settle(char *page, BlockNumber block)
{
	PageHeader	p = (PageHeader) page;
	ItemId		id;
	HeapTupleHeader tuple;
	Form_pg_sequence_data data;

	if (block != 0 || !ab_page_is_sequence(page))
		return;
	id = PageGetItemId(page, FirstOffsetNumber);
	if (!ItemIdIsNormal(id) || ItemIdGetOffset(id) + ItemIdGetLength(id) > BLCKSZ ||
		ItemIdGetLength(id) < SizeofHeapTupleHeader)
		return;
	tuple = (HeapTupleHeader) PageGetItem(page, id);
	if (ItemIdGetLength(id) < tuple->t_hoff + offsetof(FormData_pg_sequence_data, is_called))
		return;
	data = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	if (data->log_cnt == 0)
		return;
	data->log_cnt = 0;
	if (p->pd_checksum != 0 && DataChecksumsEnabled())
		p->pd_checksum = pg_checksum_page(page, block);
}

bool
ab_page_only_hints_differ(const char *base, const char *page)
{
	PGAlignedBlock old;
	PGAlignedBlock new;
	PageKind	kind;

	memcpy(old.data, base, BLCKSZ);
	memcpy(new.data, page, BLCKSZ);
	((PageHeader) old.data)->pd_checksum = 0;
	((PageHeader) new.data)->pd_checksum = 0;
	if (memcmp(old.data, new.data, BLCKSZ) == 0)
		return true;

	if (!layout_is_sane((PageHeader) old.data) ||
		!layout_is_sane((PageHeader) new.data))
		return false;
	kind = page_kind(new.data);
	if (kind == PAGE_UNKNOWN || kind != page_kind(old.data))
		return false;

	if (kind == PAGE_HEAP)
	{
		if (!same_line_pointers(old.data, new.data) ||
			!mask_heap(old.data, new.data))
			return false;
	}
	else
	{
		mask_index(old.data, kind);
		mask_index(new.data, kind);
	}
	return memcmp(old.data, new.data, BLCKSZ) == 0;
}
