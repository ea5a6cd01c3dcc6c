/*
 * ab_activityfile.h
 *	  Activity that shared memory does not hold: what finds no entry, and everything while
 *	  the server is down.
 */
#ifndef AB_ACTIVITYFILE_H
#define AB_ACTIVITYFILE_H

#include "ab_activity.h"

/*
 * Append to the file; the caller holds the activity lock exclusively.  Fails with a line
 * in the log, and then this is lost.
 */
extern void ab_activity_spill(const AbActivity *what);

/*
 * The databases of the file from the given position on, at most max of them, each once.
 * *upto: position after the last record that is in the answer.  The caller holds the
 * activity lock.
 */
extern int	ab_activity_read_spill(AbActivity *into, int max, int64 from, int64 *upto);

/* All that was in it is in the table. */
extern void ab_activity_empty_spill(void);

/* The postmaster's: what it finds at start, and has itself called at its end. */
extern void ab_activity_restore(void);

#endif							/* AB_ACTIVITYFILE_H */
