/*
 * ab_imagechain.h
 *	  Entries of .images files, the index, and the chains that they make.
 *
 * The images of a block are chained, newest to oldest by epoch; the index has the
 * newest.  "prev" alone makes the chain.  "jump" leads further down (the skew-binary
 * jump pointers of Myers), so that a search visits about 2 log n of n images; one that
 * leads nowhere any more is passed over.
 *
 * An entry is read under image_lock, shared, or under capture_lock; it is changed in
 * place under both, exclusively.  Everything here is NOFAIL (ab_images.h).
 */
#ifndef AB_IMAGECHAIN_H
#define AB_IMAGECHAIN_H

#include "ab_imagefile.h"

static inline bool
ab_image_ref_equals(AbImageRef a, AbImageRef b)
{
	return a.lsn == b.lsn && a.tli == b.tli && a.slot == b.slot;
}

static inline AbSnapId
ab_image_epoch(AbImageRef ref)
{
	return ab_snapid_make(ref.tli, ref.lsn);
}

static inline AbImageRef
ab_image_ref(AbSnapId epoch, uint32 slot)
{
	AbImageRef	ref = {epoch.lsn, epoch.tli, slot};

	return ref;
}

extern pg_crc32c ab_image_page_crc(const char *page);

/* ---- entries ---- */

/* Is it what was written at this place, and not zeros or a torn write? */
extern bool ab_image_entry_is_valid(AbImageRef at, const AbImageEntry *e);
extern bool ab_image_entry_is_empty(const AbImageEntry *e);	/* never written */
extern void ab_image_entry_seal(AbImageRef at, AbImageEntry *e);
extern bool ab_image_entry_is(const AbImageEntry *e, AbForkKey key, BlockNumber block);

/* False: I/O error, or (errno 0) not valid. */
extern bool ab_image_entry_read(Oid db, AbImageRef at, AbImageEntry *e);
extern bool ab_image_entry_write(Oid db, AbImageRef at, AbImageEntry *e);

/* False: I/O error, or (errno 0) not the page that the entry is about. */
extern bool ab_image_page_read(Oid db, AbImageRef at, const AbImageEntry *e, char *page);

/* The header block of a group; zeros where there is none. */
extern bool ab_image_group_read(Oid db, AbSnapId epoch, uint32 group, AbImageGroup *g);
extern bool ab_image_head_is_valid(const AbGroupHead *h);

/* ---- appending ---- */

/*
 * Append n <= AB_IMAGE_BATCH images in the order given and sync; entries are sealed
 * here.  False: what was written counts for nothing.
 */
extern bool ab_image_append(Oid db, AbSnapId epoch, int n, AbImageEntry *entries,
							const char *const *pages, uint32 *first);

/* Note in the group heads that these were synced; only helps a later start. */
extern void ab_image_note_synced(Oid db, AbSnapId epoch, uint32 first, int n);

/* Rewrite them as belonging to no chain, as far as that is possible. */
extern void ab_image_disown(Oid db, AbSnapId epoch, uint32 first, int n,
							AbImageEntry *entries);
extern void ab_image_group_head_write(Oid db, AbSnapId epoch, uint32 group, uint32 synced);

/* ---- the index ---- */

/* Newest images of n consecutive blocks. */
extern bool ab_image_heads_read(Oid db, AbForkKey key, BlockNumber block, int n,
								AbImageRef *heads);
extern bool ab_image_heads_write(Oid db, AbForkKey key, BlockNumber block, int n,
								 const AbImageRef *heads);

/* ---- chains ---- */

/* Links for an entry that is to go on top of prev. */
extern void ab_image_link(Oid db, AbImageRef prev, AbImageEntry *e);

/* Where a search is. */
typedef struct AbImageCursor
{
	Oid			db;
	AbForkKey	key;
	BlockNumber block;
	AbImageRef	at;
	AbImageEntry entry;
} AbImageCursor;

typedef enum AbImageStep
{
	AB_STEP_MOVED,
	AB_STEP_END,				/* there is nothing further on this way */
	AB_STEP_FAILED				/* I/O error, or (errno 0) damage */
} AbImageStep;

/* Go to the newest image of a block, if its epoch is not older than "from". */
extern AbImageStep ab_image_first(AbImageCursor *c, Oid db, AbForkKey key,
								  BlockNumber block, XLogRecPtr from);

/* Go on towards the oldest image that is not older than "from". */
extern AbImageStep ab_image_step(AbImageCursor *c, XLogRecPtr from);

/* Go there at once: the image that snapshot "from" sees. */
extern AbImageStep ab_image_find(AbImageCursor *c, Oid db, AbForkKey key,
								 BlockNumber block, XLogRecPtr from);

/* ---- changes of a chain; image_lock is held exclusively ---- */

/*
 * Put a new image of the same epoch in the place of one.  False: I/O error or damage; the
 * chain has the old one as before, or, if even that could not be written, none that
 * can be read.
 */
extern bool ab_image_replace(Oid db, AbForkKey key, BlockNumber block, AbImageRef old,
							 AbImageRef new);

/* Take an image out, if it is in its chain.  False: it may still be there. */
extern bool ab_image_detach(Oid db, AbForkKey key, BlockNumber block, AbImageRef at,
							const AbImageEntry *e);

#endif							/* AB_IMAGECHAIN_H */
