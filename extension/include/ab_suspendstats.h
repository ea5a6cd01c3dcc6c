/*
 * ab_suspendstats.h
 *	  Putting the statistics of suspended branches away.
 */
#ifndef AB_SUSPENDSTATS_H
#define AB_SUSPENDSTATS_H

#include "ab_activity.h"

/*
 * The activity worker's, each in a transaction; the first and the second are followed by
 * ab_suspendstats_committed(), in the next one, when they have committed.  They do a part,
 * and say whether there is more.
 */
extern bool ab_suspendstats_put_away(void);
extern bool ab_suspendstats_bring_back(void);
extern void ab_suspendstats_committed(void);
extern void ab_suspendstats_tidy(void);

/*
 * Called with the database locked, before it is dropped.  An entry that was dropped with the
 * others stays for a while, marked, if a session still has it in use: autovacuum's launcher,
 * or whoever has read pg_stat_database.  The server drops it after it has committed, when an
 * error is a PANIC, and to find it marked is one.  So the mark is taken off for that.
 */
extern void ab_suspendstats_before_drop(Oid db);

/* Which ones are put away; once after the server has started. */
extern void ab_suspendstats_load(void);

#endif							/* AB_SUSPENDSTATS_H */
