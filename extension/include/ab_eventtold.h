/*
 * ab_eventtold.h
 *	  Branches whose creation may not have been told: what there is to tell of it, and
 *	  of which it has been.
 */
#ifndef AB_EVENTTOLD_H
#define AB_EVENTTOLD_H

#include "ab_eventnotes.h"

#include "utils/hsearch.h"
#include "utils/rel.h"

/* Events by which a database becomes a living branch. */
#define AB_EVENTS_APPEARS "('created', 'reset', 'restored', 'recovered')"

extern bool ab_eventtold_appears(const char *event);

/*
 * Event "created" as the branch itself tells it; the caller keeps the branch as it is.
 * False: it is none, or one that is deleted.
 */
extern bool ab_eventtold_creation(AbNote *note, Oid db, const char *name, Oid owner);

/* A set of OIDs of databases. */
extern HTAB *ab_eventtold_set(void);
extern void ab_eventtold_add(HTAB *set, Oid db);
extern bool ab_eventtold_in(HTAB *set, Oid db);

/*
 * Those of the databases in question that have appeared, by what is in branch.event_log
 * at this moment, whatever the transaction's snapshot is.  Reads all of the table.
 */
extern HTAB *ab_eventtold_read(Relation log, HTAB *in_question);

#endif							/* AB_EVENTTOLD_H */
