/*
 * ab_firstuse.h
 *	  Whoever connects to a branch finds its directory there.
 */
#ifndef AB_FIRSTUSE_H
#define AB_FIRSTUSE_H

#include "ab_compat.h"

#include "access/htup.h"

/* Install the hooks, after those that refuse connections. */
extern void ab_firstuse_install(void);

/*
 * The row of a database, copied, for a process that has none yet; NULL: there is no
 * database of that name.
 */
extern HeapTuple ab_firstuse_database(const char *name);

/*
 * Autovacuum comes to databases by their age, too, and no hook sees its workers before they
 * fail: make the directories of branches that get old.  In a transaction.
 */
extern void ab_firstuse_prepare_old(void);

/* The same for branches that pg_cron, in the control database, has active jobs in. */
extern void ab_firstuse_prepare_jobs(void);

#endif							/* AB_FIRSTUSE_H */
