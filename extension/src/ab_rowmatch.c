/*
 * ab_rowmatch.c
 *	  Rows of two sides that wait for the row of the same key on the other one
 *	  (ab_rowmatch.h).
 *
 * Private memory of any process.  A hash table of fixed size.  Keys are in parts by some
 * bits of their codes; when there is no more room, the part is halved: what is known of
 * one half is forgotten, and found out again when that half's turn comes.
 */
#include "ab_rowmatch.h"

#include "port/pg_bitutils.h"

#define SH_PREFIX waiting
#define SH_ELEMENT_TYPE AbWaitingRow
#define SH_KEY_TYPE uint64
#define SH_KEY code
#define SH_HASH_KEY(table, key) ((uint32) (key))
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define BITS 32

struct AbRowMatch
{
	waiting_hash *rows;
	uint32		most;			/* rows and pairs in memory at a time */
	AbRowPair  *unknown;
	uint32		nunknown;
	uint32		max_unknown;

	/*
	 * Pairs that differ, by the first bit, of those that do not tell what is in the part,
	 * that is set: halving at that bit puts them into the other half.  BITS: none is.
	 */
	uint64		differ[BITS + 1];
	AbRowPart	part;			/* looked at */
	AbRowPart	todo[BITS];		/* halves that are still to come: one for each bit at most */
	int			ntodo;
};

AbRowMatch *
ab_rowmatch_begin(Size bytes)
{
	AbRowMatch *match = palloc0(sizeof(AbRowMatch));

	/* the table doubles when it is nearly full, and has both for a moment */
	match->most = (uint32) Max(1024, Min(bytes / (3 * sizeof(AbWaitingRow)), 1 << 28));
	match->rows = waiting_create(CurrentMemoryContext, 1024, NULL);
	match->max_unknown = 64;
	match->unknown = palloc_array(AbRowPair, match->max_unknown);
	match->todo[match->ntodo++] = (AbRowPart) {0, 0};
	return match;
}

bool
ab_rowmatch_next(AbRowMatch *match)
{
	if (match->ntodo == 0)
		return false;
	match->part = match->todo[--match->ntodo];
	waiting_reset(match->rows);
	match->nunknown = 0;
	MemSet(match->differ, 0, sizeof(match->differ));
	return true;
}

static uint32
number_of(uint64 code)
{
	return (uint32) (code >> 32);
}

bool
ab_rowpart_has(AbRowPart part, uint64 code)
{
	uint32		mask = (UINT32_C(1) << part.nbits) - 1;

	return (number_of(code) & mask) == part.bits;
}

AbRowPart
ab_rowmatch_part(const AbRowMatch *match)
{
	return match->part;
}

/* The half that stays is the one without the bit. */
static void
halve(AbRowMatch *match)
{
	AbRowPart	other = match->part;
	uint32		kept = 0;
	waiting_iterator it;
	AbWaitingRow *row;

	if (match->part.nbits >= BITS - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many rows differ to be counted in work_mem")));
	other.bits |= UINT32_C(1) << other.nbits;
	match->differ[other.nbits] = 0;
	other.nbits++;
	match->part.nbits++;
	match->todo[match->ntodo++] = other;

	/* it goes backwards, so an element can be deleted under way */
	waiting_start_iterate(match->rows, &it);
	while ((row = waiting_iterate(match->rows, &it)) != NULL)
		if (!ab_rowpart_has(match->part, row->code))
			waiting_delete_item(match->rows, row);
	for (uint32 i = 0; i < match->nunknown; i++)
		if (ab_rowpart_has(match->part, match->unknown[i].code))
			match->unknown[kept++] = match->unknown[i];
	match->nunknown = kept;
}

static void
make_room(AbRowMatch *match)
{
	while (match->rows->members + match->nunknown >= match->most)
		halve(match);
}

AbWaitingRow *
ab_rowmatch_find(AbRowMatch *match, uint64 code)
{
	return waiting_lookup(match->rows, code);
}

void
ab_rowmatch_add(AbRowMatch *match, const AbWaitingRow *row)
{
	AbWaitingRow *added;
	char		status;
	bool		found;

	make_room(match);
	if (!ab_rowpart_has(match->part, row->code))
		return;
	added = waiting_insert(match->rows, row->code, &found);
	Assert(!found);
	status = added->status;
	*added = *row;
	added->status = status;
}

static void
add_unknown(AbRowMatch *match, const AbRowPair *pair)
{
	make_room(match);
	if (!ab_rowpart_has(match->part, pair->code))
		return;
	if (match->nunknown == match->max_unknown)
	{
		match->max_unknown *= 2;
		match->unknown = repalloc_huge(match->unknown,
									   sizeof(AbRowPair) * (Size) match->max_unknown);
	}
	match->unknown[match->nunknown++] = *pair;
}

/* The row that waited does no longer. */
static AbRowPair
pair_up(AbRowMatch *match, AbWaitingRow *waiting, const AbWaitingRow *row, uint64 columns)
{
	AbRowPair	pair = {row->code, columns};

	pair.block[waiting->side] = waiting->block;
	pair.offset[waiting->side] = waiting->offset;
	pair.block[row->side] = row->block;
	pair.offset[row->side] = row->offset;
	waiting_delete_item(match->rows, waiting);
	return pair;
}

void
ab_rowmatch_meet(AbRowMatch *match, AbWaitingRow *waiting, const AbWaitingRow *row,
				 AbRowVerdict verdict)
{
	AbRowPair	pair = pair_up(match, waiting, row, AB_COLUMNS_UNTOLD);
	uint32		rest = number_of(row->code) >> match->part.nbits;

	if (verdict == AB_ROWS_DIFFER)
		match->differ[rest == 0 ? BITS : match->part.nbits + pg_rightmost_one_pos32(rest)]++;
	else if (verdict == AB_ROWS_UNKNOWN)
		add_unknown(match, &pair);
}

void
ab_rowmatch_keep(AbRowMatch *match, AbWaitingRow *waiting, const AbWaitingRow *row,
				 uint64 columns)
{
	AbRowPair	pair = pair_up(match, waiting, row, columns);

	add_unknown(match, &pair);
}

static int
by_place(const void *a, const void *b)
{
	const AbWaitingRow *one = a;
	const AbWaitingRow *other = b;

	if (one->side != other->side)
		return one->side - other->side;
	if (one->block != other->block)
		return one->block < other->block ? -1 : 1;
	return one->offset - other->offset;
}

uint64
ab_rowmatch_left(AbRowMatch *match, AbWaitingRow **rows)
{
	AbWaitingRow *left = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(AbWaitingRow) *
												((Size) match->rows->members + 1));
	uint64		n = 0;
	waiting_iterator it;
	AbWaitingRow *row;

	waiting_start_iterate(match->rows, &it);
	while ((row = waiting_iterate(match->rows, &it)) != NULL)
		left[n++] = *row;
	qsort(left, n, sizeof(AbWaitingRow), by_place);
	*rows = left;
	return n;
}

void
ab_rowmatch_end_part(AbRowMatch *match, AbRowsFound *found)
{
	waiting_iterator it;
	AbWaitingRow *row;

	MemSet(found, 0, sizeof(*found));
	found->unknown = match->unknown;
	found->nunknown = match->nunknown;
	for (int i = 0; i <= BITS; i++)
		found->differ += match->differ[i];
	waiting_start_iterate(match->rows, &it);
	while ((row = waiting_iterate(match->rows, &it)) != NULL)
		found->left[row->side]++;
}

void
ab_rowmatch_end(AbRowMatch *match)
{
	waiting_destroy(match->rows);
	pfree(match->unknown);
	pfree(match);
}
