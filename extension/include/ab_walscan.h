/*
 * ab_walscan.h
 *	  What WAL says about a database (rule 27; F2).
 */
#ifndef AB_WALSCAN_H
#define AB_WALSCAN_H

#include "ab_types.h"

#include "nodes/pg_list.h"

typedef struct AbTouchedBlock
{
	RelFileNode rnode;
	ForkNumber	fork;
	BlockNumber block;
} AbTouchedBlock;

typedef enum AbScanVerdict
{
	AB_SCAN_CLEAN,				/* nothing, or only changes that mean nothing */
	AB_SCAN_CHANGED,			/* the database's contents changed */
	AB_SCAN_UNKNOWN				/* the WAL is not there any more */
} AbScanVerdict;

/*
 * Read the WAL of (from, upto], flushed first, and say whether it changes the
 * contents of database db.  from must be the end (or start) of a record.
 * Records that change one page without changing what it means (pruning, hint
 * images, and so on) are not changes; the blocks they touch are appended to
 * *touched (AbTouchedBlock *) if touched is not NULL.  Stops at the first
 * change.  sequence_is_change: nextval counts as one.
 */
extern AbScanVerdict ab_walscan(Oid db, XLogRecPtr from, XLogRecPtr upto,
								bool sequence_is_change, List **touched);

/* What a server without the library can have replayed (ab_trust.c). */
typedef enum AbReplay
{
	AB_REPLAY_STOPS,			/* at a record of ours, having changed nothing */
	AB_REPLAY_ENDS,				/* with the WAL, having changed nothing */
	AB_REPLAY_CHANGES			/* one of the databases */
} AbReplay;

/*
 * Before the server has started: read from a redo pointer to the first record of ours
 * or the end of WAL.  Does anything concern one of these databases (OIDs)?
 */
extern AbReplay ab_walscan_replay(TimeLineID tli, XLogRecPtr redo, const List *dbs);

/*
 * Is there a record at this position that is not the very first one?  initdb and
 * pg_resetwal begin WAL with one that has no predecessor.
 */
extern bool ab_walscan_has_predecessor(TimeLineID tli, XLogRecPtr pos);

#endif							/* AB_WALSCAN_H */
