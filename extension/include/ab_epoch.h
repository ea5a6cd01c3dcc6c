/*
 * ab_epoch.h
 *	  Which before-image snapshot of a database is the newest living one
 *	  ("live"), and the guard under which that may be asked or changed
 *	  (README.before_images; invariants E3, E5).
 */
#ifndef AB_EPOCH_H
#define AB_EPOCH_H

#include "ab_manifest.h"
#include "ab_shmem.h"

/*
 * The guard of a database (rule 24).  Shared: around every change of a file of
 * it, from the question whether a snapshot needs the old content to the end of the
 * change.  Exclusive: to make a snapshot live or to end one.  Nothing that is done
 * under it waits for the checkpointer, a barrier or a heavyweight lock.
 */
extern void ab_guard_enter(Oid db);
extern void ab_guard_leave(Oid db);
extern void ab_guard_close(Oid db);
extern void ab_guard_open(Oid db);

/* Close it, letting cancel requests through; false: past the deadline. */
extern bool ab_guard_try_close(Oid db, TimestampTz deadline);

/* ---- with the guard held; NOFAIL as in ab_images.h ---- */

/* The newest living snapshot; false if there is none that an image could help. */
extern bool ab_epoch_live(Oid db, AbSnapId *id);

/* What is known of it in shared memory; NULL: it has no living snapshot. */
extern AbParent *ab_epoch_parent(Oid db);

/*
 * A snapshot's manifest as this process has mapped it, complete or pending, poisoned or not:
 * good until it has asked for those of seven others.  NULL: errno.
 */
extern const AbManifest *ab_epoch_view(AbSnapId id);

/* Blocks that a snapshot has of a fork (0: none).  False: it cannot be said. */
extern bool ab_epoch_nblocks(AbSnapId id, AbForkKey key, BlockNumber *nblocks);

/*
 * Does a snapshot see this block in its database's own file?  (In that of a branch it
 * sees the branch's own pages only.)  False: it cannot be said.
 */
extern bool ab_epoch_sees(AbSnapId id, AbForkKey key, BlockNumber block, bool *sees);

/* Is it of a branch, in whose files pages may be missing?  False also if that is not known. */
extern bool ab_epoch_is_of_branch(AbSnapId id);

/* Has a snapshot any fork of a relation?  *known false: it cannot be said. */
extern bool ab_epoch_has_relation(AbSnapId id, Oid spc, Oid rel, bool *known);

/*
 * Snapshots of db newer than the image a block has already (0: none) would need the
 * image that could not be saved: they cannot be read any more.  Durable on return,
 * unless even that failed; then it holds until the server stops.
 */
extern void ab_epoch_poison(Oid db, AbSnapId live, XLogRecPtr newest_image, int error);

/*
 * Poison one snapshot, whatever it sees, for an I/O error with that errno.  False: it
 * could not be marked durably.  Under no lock of the store.
 */
extern bool ab_epoch_poison_one(AbSnapId id, int error);

/* ---- with the guard held exclusively ---- */

/* A new snapshot is the newest one; its files are there.  Raises 53400. */
extern void ab_epoch_begin(Oid db, AbSnapId id);

/* A snapshot has come or gone in the table: find the newest one again. */
extern void ab_epoch_recompute(Oid db);

/* ---- any time ---- */

/* Raise XX001 if the snapshot is poisoned.  Cheap; asked after each read. */
extern void ab_epoch_require_sound(AbSnapId id);

/* The same for every live layer of a manifest. */
extern void ab_epoch_require_sound_layers(const AbManifest *m);

/* In the postmaster, after the table was loaded. */
extern void ab_epoch_load(void);

#endif							/* AB_EPOCH_H */
