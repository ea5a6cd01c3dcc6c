/*
 * ab_eventsync.h
 *	  The part of events that is done in the background.
 */
#ifndef AB_EVENTSYNC_H
#define AB_EVENTSYNC_H

#include "ab_types.h"

/*
 * What the keeper does about events each time it wakes: writes those that the notes of
 * other databases stand for, and sends notifications.  Transactions of its own.
 * Returns in how many milliseconds to try again what cannot be done now, 0: all is done.
 */
extern long ab_eventsync_tend(void);

/*
 * If it is wanted: compare all branches with all events, and add the events that are
 * missing (created, deleted).  In a transaction of the caller's.  True: there are too
 * many for one transaction, and another is to go on.
 */
extern bool ab_eventsync_compare(void);

/*
 * Remove events older than agent_branch.event_retention, if that is due or now is
 * set; the last one that tells that a living branch came to be stays.  Returns how
 * many, at most a batch: 0 means that there are no more.
 */
extern uint64 ab_eventsync_prune(bool now);

#endif							/* AB_EVENTSYNC_H */
