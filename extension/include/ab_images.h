/*
 * ab_images.h
 *	  The store of before-images: old contents of pages of plain databases, kept
 *	  for snapshots (extension/README.before_images has the design).
 *
 * agent_branch/images/<dboid>/
 *	  <id>.images				 pages saved while snapshot <id> was the newest one
 *	  index.<spc>.<rel>.<fork>	 for each block its newest image; a cache, made anew
 *								 from the .images files when it may be wrong
 *
 * An image of epoch e (the LSN of the snapshot that was the newest living one then)
 * is what every snapshot s <= e sees of the block, unless there is an image of an
 * epoch e' with s <= e' < e.  Within a database epochs are ordered by their LSN.
 *
 * NOFAIL: may run in a critical section and in any process; allocates nothing,
 * raises nothing, uses raw system calls on cached descriptors only, and leaves
 * errno when it says false.
 */
#ifndef AB_IMAGES_H
#define AB_IMAGES_H

#include "ab_format.h"

#include "nodes/pg_list.h"

/* Pages that one call can save: as many share one sync. */
#define AB_IMAGE_BATCH 128

typedef struct AbImagePage
{
	AbForkKey	key;
	BlockNumber block;
	const char *page;			/* BLCKSZ */
} AbImagePage;

typedef enum AbImageAnswer
{
	AB_IMAGE_NONE,				/* not overwritten since: the database's own file
								 * has the page */
	AB_IMAGE_FOUND,
	AB_IMAGE_FAILED				/* it should be there and cannot be read, or its
								 * checksum does not match; errno, 0 if damaged */
} AbImageAnswer;

/* ---- saving (the caller holds capture_lock of db exclusively) ---- */

/*
 * Epoch LSN of the newest image of a block, 0 if it has none.  False: it cannot be
 * said (I/O error).  Takes image_lock shared; capture_lock is not needed.  NOFAIL.
 */
extern bool ab_images_newest(Oid db, AbForkKey key, BlockNumber block, XLogRecPtr *epoch);

/*
 * The copy in WAL.  Called when the pages are durable and before anybody can find them
 * in the index: whoever sees a block covered overwrites it, and a base backup that
 * then has the block needs the record.
 */
typedef void (*AbImagesLog) (Oid db, AbSnapId epoch, int n, const AbImagePage *pages);

/*
 * Append n <= AB_IMAGE_BATCH pages to the file of an epoch, sync it once, then put
 * them into the index.  All blocks differ.  False: nothing of it is in the index, what
 * reached the file is garbage, and errno is ENOENT only if the epoch has no file.
 * (An image that superseded another stays, and so does what cannot be taken back from
 * the index: they are durable and right, only nobody counts on them.)  NOFAIL.
 *
 * replace: an image of the same block and epoch that is there already is superseded,
 * and images of later epochs stay later (replay of BEFORE_IMAGE, window images).
 * Without it every block's newest image is older than the epoch.
 */
extern bool ab_images_put(Oid db, AbSnapId epoch, int n, const AbImagePage *pages,
						  bool replace, AbImagesLog log);

/* Has the block an image of exactly this epoch, with this checksum over the page?  NOFAIL. */
extern bool ab_images_has(Oid db, AbSnapId epoch, AbForkKey key, BlockNumber block,
						  pg_crc32c crc);

/* ---- reading ---- */

/*
 * Has no block of the fork an image?  If so, ab_images_still_none(*when) tells, later on,
 * that nobody has had one since; it may also be that it cannot tell (false).  NOFAIL.
 */
extern bool ab_images_none(Oid db, AbForkKey key, uint32 *when);
extern bool ab_images_still_none(uint32 when);

/* The image that snapshot "from" sees, copied to page.  Takes image_lock shared.  NOFAIL. */
extern AbImageAnswer ab_images_read(Oid db, XLogRecPtr from, AbForkKey key,
									BlockNumber block, char *page);

/* ---- poison ---- */

/*
 * Snapshots of db from LSN "from" to "epoch" cannot be read any more: durable in the
 * epoch's file, in space that was set aside when it was made.  NOFAIL.
 */
extern bool ab_images_poison(Oid db, AbSnapId epoch, XLogRecPtr from);

/* Is snapshot id inside a poisoned range?  Reads the files; may raise. */
extern bool ab_images_is_poisoned(Oid db, AbSnapId id);

/* ---- life ---- */

/*
 * Make the directory, durably, and the epoch's file, unless it is there.  If not durable:
 * what is saved in it makes it so, and whoever needs an empty one syncs it.
 */
extern void ab_images_begin(Oid db, AbSnapId epoch, bool durable);

/* Is the epoch's file there? */
extern bool ab_images_exists(Oid db, AbSnapId epoch);

/*
 * In the postmaster before any other process: throw the index away and make it from
 * the .images files.  Images that no sync is known to have covered are checked by
 * their CRC; all of them in a backup.  Of epochs after redo, where replay begins, it
 * removes those that replay brings back: in a backup all, else those whose file was not
 * finished.  Tolerates damaged files (LOG);
 * snapshots that may have needed what is lost are poisoned.  False: not even that could
 * be done; then no snapshot of db may be read.
 */
extern bool ab_images_rebuild(Oid db, bool backup, XLogRecPtr redo);

/* OIDs of databases that have a directory here, palloc'd. */
extern Oid *ab_images_databases(int *n);

/*
 * Give back what none of the living snapshots (sorted ascending) needs: punch holes,
 * unlink files.  Files of epochs after the horizon are let alone: their snapshots
 * began after the list was made.  With no living snapshot the whole directory goes;
 * the caller sees to it that none begins meanwhile, and that one process at a time
 * comes here for a database.  Returns bytes freed.  Takes capture_lock exclusively for
 * short times.  dry_run: only count.
 */
extern int64 ab_images_collect(Oid db, const AbSnapId *living, int nliving,
							   XLogRecPtr horizon, bool dry_run);

/*
 * The same for a database without living snapshots, in two steps: give its directory
 * another name, at once, so that a snapshot that begins now finds none; then remove
 * that.  What a crash leaves is removed at server start.  False: there is none.
 */
extern bool ab_images_set_aside(Oid db, char aside[MAXPGPATH]);
extern int64 ab_images_remove_aside(const char *aside);

/*
 * For each living snapshot: bytes of images that it needs (shared with others or
 * not) and of those that only it needs.  Arrays of nliving.
 */
extern void ab_images_usage(Oid db, const AbSnapId *living, int nliving,
							int64 *needed, int64 *alone);

/*
 * Violations of the store's own rules (bad entry or page checksums, index entries
 * that lead nowhere or are not the newest, chains out of order): a list of palloc'd text.
 */
extern List *ab_images_check(Oid db);

#endif							/* AB_IMAGES_H */
