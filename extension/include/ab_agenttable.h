/*
 * ab_agenttable.h
 *	  What agents need inside their branches: table agent_data, and rights.
 *
 * Both are made in the parent, once, by a transaction of its own, so that all agents'
 * branches share their pages; in a branch only if that has been made otherwise.  Table
 * public.agent_data is there in any case.  Where agents have roles of their own
 * (ab_agentrole.h), it is owned by their group, the database's owner has all rights on
 * it, and the group has on every schema, table, view and sequence what the database's
 * owner has and PUBLIC has not, and no more.
 */
#ifndef AB_AGENTTABLE_H
#define AB_AGENTTABLE_H

#include "ab_types.h"

/* Have all of it in a database, which the caller has locked; 55P03 if that cannot be. */
extern void ab_agenttable_prepare(Oid db, const char *name, bool roles);

/*
 * A snapshot of the parent, locked by ab_lock_parent(), that has all of it; this
 * transaction holds it as by ab_snapshot_get().
 */
extern AbSnapId ab_agenttable_snapshot(Oid parent, const char *name, bool roles);

#endif							/* AB_AGENTTABLE_H */
