/*
 * ab_snaptable.h
 *	  The table of snapshots in shared memory (slots: ab_shmem.h).
 *
 * Rebuilt from agent_branch/snapshots and agent_branch/branches when shared
 * memory is created, kept up to date by the functions below afterwards.
 */
#ifndef AB_SNAPTABLE_H
#define AB_SNAPTABLE_H

#include "ab_shmem.h"

/*
 * Called in the postmaster from the shared memory hook.  redo: where recovery would
 * begin; before-image snapshots after it are "ahead" until it comes to their records.
 */
extern void ab_snaptable_load(XLogRecPtr redo);

/* Are hardly any slots left? */
extern bool ab_snaptable_is_scarce(void);

/* Raises 53400 when agent_branch.max_snapshots slots are taken: ask before working. */
extern void ab_snaptable_check_room(void);

/*
 * Raises the same; in recovery, where an error would stop the server, it warns.
 * An id that is there already stays as it is, but that what its manifest did not say
 * is filled in.
 */
extern void ab_snaptable_add(AbSnapId id, Oid source_db, bool confirmed, bool live);
extern void ab_snaptable_confirm(AbSnapId id);

/* Recovery has come to the snapshot's record: it exists from now on, unconfirmed. */
extern void ab_snaptable_reached(AbSnapId id, bool poisoned);
extern void ab_snaptable_remove(AbSnapId id);

/* +1 when an origin file appears, -1 when it goes; unknown ids are ignored. */
extern void ab_snaptable_ref(AbSnapId id, int delta);

/* A branch that hangs on it is a child of parent_db. */
extern void ab_snaptable_lend(AbSnapId id, Oid parent_db);

/* Newest confirmed, sound snapshot of a database; false if none. */
extern bool ab_snaptable_newest(Oid source_db, AbSnapSlot *out);
extern bool ab_snaptable_get(AbSnapId id, AbSnapSlot *out);

/* Must its pages not be read any more? */
extern bool ab_snaptable_is_poisoned(AbSnapId id);

/* Does db have before-image snapshots, living or to come in recovery? */
extern bool ab_snaptable_has_live(Oid db);

/*
 * The newest before-image snapshot of db that is sound and begins before a position
 * (PG_UINT64_MAX: of all).  The caller holds snap_lock; allocates and raises nothing.
 */
extern bool ab_snaptable_newest_live(Oid db, XLogRecPtr before, AbSnapId *id);

/* Advance clean_upto (never moves back). */
extern void ab_snaptable_clean(AbSnapId id, XLogRecPtr upto);

/* Its source is not what it was any more, or nobody knows: for good. */
extern void ab_snaptable_outdated(AbSnapId id);

/* A palloc'd copy of all used slots. */
extern AbSnapSlot *ab_snaptable_all(int *n);

#endif							/* AB_SNAPTABLE_H */
