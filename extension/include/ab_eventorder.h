/*
 * ab_eventorder.h
 *	  Up to which id all events are settled.
 *
 * Ids come from a sequence and transactions commit in any order, so who reads events
 * in order of id and remembers the last one would miss some.  Everybody who is about to
 * write events therefore says from which id on, until it has committed or aborted; below
 * the least of these nothing can come any more.
 */
#ifndef AB_EVENTORDER_H
#define AB_EVENTORDER_H

#include "ab_types.h"

/*
 * Take the next id.  The first one of a transaction is announced before; every
 * transaction that has taken one calls ab_eventorder_end() when it is over and what it
 * has written can be seen, or never will be.
 */
extern int64 ab_eventorder_next(Oid sequence);
extern void ab_eventorder_end(void);

/*
 * All events with this id or a lower one can be seen in a snapshot that is taken after
 * the call, or do not exist.
 */
extern int64 ab_eventorder_settled(Oid sequence);

/* Up to which id notifications have been sent. */
extern int64 ab_eventorder_notified(Oid sequence);
extern void ab_eventorder_set_notified(int64 id);

#endif							/* AB_EVENTORDER_H */
