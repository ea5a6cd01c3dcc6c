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

/* Which ones are put away; once after the server has started. */
extern void ab_suspendstats_load(void);

#endif							/* AB_SUSPENDSTATS_H */
