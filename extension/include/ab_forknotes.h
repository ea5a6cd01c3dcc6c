/*
 * ab_forknotes.h
 *	  Which forks of a plain database have changed their length since its files were
 *	  last listed, so that a new snapshot need not look at all of them
 *	  (README.before_images, L1 to L4).
 */
#ifndef AB_FORKNOTES_H
#define AB_FORKNOTES_H

#include "ab_types.h"

/*
 * A fork is about to be extended or cut (fork InvalidForkNumber: a file to come or go); the
 * second function after that, with what the first has returned.  The guard of the database
 * is held, shared, from before the first to after the second.  Any process, also in
 * critical sections: they raise and allocate nothing.  Of a database without a
 * snapshot nothing is noted.
 */
extern uint64 ab_forknotes_before(RelFileNode rnode, ForkNumber fork);
extern void ab_forknotes_after(RelFileNode rnode, ForkNumber fork, uint64 moment);

/*
 * The list of a database's files is about to be made, by the one backend that takes a
 * snapshot of it.  Returns the moment, 0 if nothing is noted of the database yet.  If
 * *usable is set, the snapshot *since has listed everything but the n forks *keys (palloc'd),
 * which have to be looked at; stamp is what identifies the state of its directories.
 */
extern uint64 ab_forknotes_listing(Oid db, uint64 stamp, bool *usable, AbSnapId *since,
								   AbForkKey **keys, int *n);

/*
 * The list made at that moment is in the manifest of a snapshot, which is live.  The guard
 * is held, exclusive.
 */
extern void ab_forknotes_listed(Oid db, uint64 moment, uint64 stamp, AbSnapId id);

#endif							/* AB_FORKNOTES_H */
