/*
 * ab_recovery.h
 *	  Where recovery begins, and whether the files it begins with are all of one time.
 */
#ifndef AB_RECOVERY_H
#define AB_RECOVERY_H

#include "ab_types.h"

#include "catalog/pg_control.h"

#include "ab_shmem.h"

/*
 * In the postmaster, before recovery.  Are these the files of a base backup that has
 * not been replayed to its end?  Then they may be from different times.  *redo: where
 * replay will begin.
 */
extern bool ab_recovery_from_backup(const ControlFileData *control, XLogRecPtr *redo);

/* In the startup process: is such a backup being replayed, and not to its end yet? */
extern bool ab_recovery_in_backup(void);

/*
 * In the startup process, while it replays a record that ends there: has no page been written
 * after that record?  The server says that it is consistent only when it has replayed it; if
 * an earlier startup process died in the middle of the record, no page is from a later time.
 */
extern bool ab_recovery_is_consistent_at(XLogRecPtr end);

/*
 * Said by the postmaster, before recovery, if there is any: files may be from a later time
 * than replay has come to (ahead), and, if they are a base backup of a primary, from
 * different times (mixed).
 */
extern void ab_recovery_begin(bool ahead, bool mixed);

/* The startup process, before each record and when replay is over: is that still so? */
extern void ab_recovery_check(bool replay_is_over);

/* Asked by any process; sessions always find the files in order. */
static inline bool ab_recovery_files_are_ahead(void);
extern bool ab_recovery_files_are_mixed(void);

/*
 * Note that a page that a branch inherits is gone, so that zeros had to do; true: that is
 * news in this process.  And ask it (when there are many, the answer may be yes for one
 * more).
 */
extern bool ab_recovery_note_gap(Oid db);
extern bool ab_recovery_has_gap(Oid db);

/* ---- asked for all the time ---- */

extern bool ab_recovery_files_are_ahead_here(void);

static inline bool
ab_recovery_files_are_ahead(void)
{
	return unlikely(ab_shared->files_ahead) && ab_recovery_files_are_ahead_here();
}

#endif							/* AB_RECOVERY_H */
