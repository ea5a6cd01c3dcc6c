/*
 * ab_kept.h
 *	  Files of relations that a plain database has dropped and a snapshot of it still
 *	  needs: they stay where they are (rule 16; invariants E7, E8).
 */
#ifndef AB_KEPT_H
#define AB_KEPT_H

#include "ab_keptnotes.h"

#include "datatype/timestamp.h"

/*
 * A fork is to be unlinked.  True if it is not to be, because living snapshots need the
 * relation's files: that is noted for later.  Without files there is nothing to note, and the
 * number is free.  Raises nothing; takes the guard.  Then comes _end_unlink(), not under the
 * guard: md's unlink may wait for the checkpointer.
 */
extern bool ab_kept_begin_unlink(RelFileNode rnode, ForkNumber fork, bool has_files);
extern void ab_kept_end_unlink(Oid db);

/*
 * Wait until no file of the database is being unlinked (false: past the deadline); later,
 * under the guard exclusively: has none been since?  Between the two its directories
 * can be listed (a file that goes in between would be listed and not kept).
 */
extern bool ab_kept_no_unlinks(Oid db, TimestampTz deadline, uint32 *mark);
extern bool ab_kept_still_no_unlinks(Oid db, uint32 mark);

/*
 * Relations of db that were dropped and whose files are kept, sorted, palloc'd: no new
 * snapshot has them.
 */
extern AbKeptRelation *ab_kept_relations(Oid db, int *n);

/*
 * Unlink what no living snapshot needs any more; bytes freed.  May raise.  leaving: as
 * in ab_snapshot_reclaim().
 */
extern int64 ab_kept_sweep(Oid db, List *leaving, bool dry_run);

/*
 * Replay of what that says in WAL: the files of these relations go.  May raise.  A copy of
 * the files may be from before, and of the notes from after that.
 */
extern void ab_kept_redo(Oid db, const AbKeptRelation *gone, int n);

/* Replay has come to where a relation gets that number; of another one, files may be kept here. */
extern void ab_kept_number_given(RelFileNode rnode, XLogRecPtr end);

/* Server start: what a crash has kept the above from finishing. */
extern void ab_kept_finish(Oid db);

/*
 * For each living snapshot: bytes that are kept for it, shared with others or not, and
 * of those only for it.  Arrays of nliving.
 */
extern void ab_kept_usage(Oid db, const AbSnapId *living, int nliving,
						  int64 *needed, int64 *alone);

#endif							/* AB_KEPT_H */
