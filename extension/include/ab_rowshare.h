/*
 * ab_rowshare.h
 *	  Blocks of two tables that some processes look at side by side: whoever asks for their
 *	  rows, and the workers of its sessions in the two databases.
 *
 *	share = ab_rowshare_begin(reader, sessions);
 *	for each part:
 *		ab_rowshare_part(share, part);
 *		while (ab_rowshare_take(share, blocks, &n)), look at these blocks;
 *		now and then, and at last with wait, take the others' rows: ab_rowshare_rows()
 */
#ifndef AB_ROWSHARE_H
#define AB_ROWSHARE_H

#include "ab_compat.h"

#include "ab_remote.h"
#include "ab_rowreader.h"

/* Taken at a time. */
#define AB_BLOCKS_TAKEN 64

typedef struct AbRowShare AbRowShare;

typedef enum AbRowShared
{
	AB_SHARED_ROWS,
	AB_SHARED_NONE_YET,			/* only without wait */
	AB_SHARED_ALL,				/* there are no more */
	AB_SHARED_UNTOLD			/* it cannot be told from the pages */
} AbRowShared;

/*
 * The sessions are those that the reader's snapshots are of, and must be ready.  Whether
 * they take a share is decided here: not of a few blocks, and no more than
 * max_parallel_workers_per_gather.
 */
extern AbRowShare *ab_rowshare_begin(const AbRowReader *reader, AbRemote **sessions);

/* Begin anew, with rows of the part. */
extern void ab_rowshare_part(AbRowShare *share, AbRowPart part);

/* The next blocks that nobody has taken, no more than AB_BLOCKS_TAKEN.  False: none. */
extern bool ab_rowshare_take(AbRowShare *share, BlockNumber *blocks, int *n);

/* Rows that another process has found, valid until the next call.  Raises its errors. */
extern AbRowShared ab_rowshare_rows(AbRowShare *share, bool wait, const AbWaitingRow **rows,
									int *n);

/* Leave the rest; the sessions are ready again. */
extern void ab_rowshare_stop(AbRowShare *share);

#endif							/* AB_ROWSHARE_H */
