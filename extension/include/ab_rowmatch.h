/*
 * ab_rowmatch.h
 *	  Rows of two sides that wait for the row of the same key on the other one.
 */
#ifndef AB_ROWMATCH_H
#define AB_ROWMATCH_H

#include "ab_compat.h"

#include "storage/block.h"
#include "storage/off.h"

#include "ab_rowvalues.h"

typedef struct AbWaitingRow
{
	uint64		code;			/* of its key; all its bits are mixed */
	uint64		print;			/* of its values */
	BlockNumber block;
	OffsetNumber offset;
	uint8		side;			/* 0 or 1 */
	char		status;
} AbWaitingRow;

/* Keys of which the last bits of the upper halves of their codes are these. */
typedef struct AbRowPart
{
	int			nbits;
	uint32		bits;
} AbRowPart;

extern bool ab_rowpart_has(AbRowPart part, uint64 code);

/* Two rows of one key, of which it is not known whether they are the same, or which columns are. */
typedef struct AbRowPair
{
	uint64		code;
	uint64		columns;		/* as was said when they met */
	BlockNumber block[2];
	OffsetNumber offset[2];
} AbRowPair;

/*
 * So that memory suffices for any number of rows, only those of a part of all keys are
 * looked at at a time, a smaller one when there are too many:
 *
 *	match = ab_rowmatch_begin(bytes);
 *	while (ab_rowmatch_next(match))
 *		look at all rows; of those of ab_rowmatch_part(), which may shrink meanwhile,
 *			find() the other one and meet() it, or add() this one;
 *		end_part() says what was found.
 */
typedef struct AbRowMatch AbRowMatch;

typedef struct AbRowsFound
{
	uint64		left[2];		/* rows of each side that none was found for */
	uint64		differ;			/* pairs */
	AbRowPair  *unknown;		/* and those that are kept */
	uint64		nunknown;
} AbRowsFound;

extern AbRowMatch *ab_rowmatch_begin(Size bytes);
extern bool ab_rowmatch_next(AbRowMatch *match);
extern AbRowPart ab_rowmatch_part(const AbRowMatch *match);

/* NULL: none waits with this code. */
extern AbWaitingRow *ab_rowmatch_find(AbRowMatch *match, uint64 code);

/* The row has met the one that waited for it, of the other side. */
extern void ab_rowmatch_meet(AbRowMatch *match, AbWaitingRow *waiting,
							 const AbWaitingRow *row, AbRowVerdict verdict);

/* Same; the pair is kept, whatever it is. */
extern void ab_rowmatch_keep(AbRowMatch *match, AbWaitingRow *waiting,
							 const AbWaitingRow *row, uint64 columns);

/* None with its code waits.  What find() gave is void then. */
extern void ab_rowmatch_add(AbRowMatch *match, const AbWaitingRow *row);

/* Valid until the next part. */
extern void ab_rowmatch_end_part(AbRowMatch *match, AbRowsFound *found);

/* Of the part that has ended: rows that none was found for, by their places; how many. */
extern uint64 ab_rowmatch_left(AbRowMatch *match, AbWaitingRow **rows);
extern void ab_rowmatch_end(AbRowMatch *match);

#endif							/* AB_ROWMATCH_H */
