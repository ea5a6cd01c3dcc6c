/*
 * ab_imagefile.h
 *	  Files of the store of before-images (ab_images.h): their names, the form of
 *	  .images files, and raw access through a cache of descriptors.
 *
 * An .images file is a block for the file's header, then groups of 128 blocks: one
 * with the head of the group and 127 entries, then up to 127 pages.  Slot n of the file
 * is entry and page n % 127 of group n / 127.  The file only grows: an append starts
 * behind everything that its size covers, so what a failed append left is passed over
 * and never used again.
 *
 * An index file has a reference to the newest image of each block, 16 bytes for each;
 * it is sparse, and never synced.
 *
 * Everything here is NOFAIL (ab_images.h) unless it says otherwise.  A descriptor
 * is good until the next call that returns one.
 */
#ifndef AB_IMAGEFILE_H
#define AB_IMAGEFILE_H

#include "ab_format.h"

#include "storage/lwlock.h"

#define AB_IMAGES_MAGIC		0x41424949	/* "ABII" */
#define AB_IMAGES_VERSION	1
#define AB_IMAGES_SUFFIX	".images"
#define AB_INDEX_PREFIX		"index."

#define AB_GROUP_SLOTS		127
#define AB_GROUP_BLOCKS		(AB_GROUP_SLOTS + 1)

/* Where an image is.  Never used twice for different images. */
typedef struct AbImageRef
{
	XLogRecPtr	lsn;			/* the epoch; 0: no image */
	TimeLineID	tli;
	uint32		slot;			/* in that epoch's file */
} AbImageRef;

#define AbImageRefIsValid(ref) ((ref).lsn != InvalidXLogRecPtr)

/* ---- the header: sectors of the first block ---- */

typedef struct AbImagesHeader
{
	uint32		magic;
	uint32		version;
	AbSnapId	epoch;
	Oid			db;
	pg_crc32c	crc;			/* of this struct, this field taken as 0 */
} AbImagesHeader;

/* Far from each other, so that writing one cannot tear another. */
#define AB_SWEPT_OFFSET		2048
#define AB_POISON_OFFSET	4096
#define AB_POISON_SECTOR	512

typedef struct AbImagesPoison
{
	XLogRecPtr	from;			/* snapshots from here to the epoch; 0: none */
	uint32		pad;
	pg_crc32c	crc;			/* as above */
} AbImagesPoison;

/*
 * For which living snapshots the file was last looked through for what can be given
 * back; as long as it is the same ones, nothing can.  Set to 0 by whoever leaves
 * something.
 */
typedef struct AbImagesSwept
{
	uint64		living;			/* hash of those up to the epoch; 0: never */
	uint32		pad;
	pg_crc32c	crc;			/* as above */
} AbImagesSwept;

/* ---- groups ---- */

/*
 * The first "synced" slots of a group are known to be on disk.  Written without a
 * sync after one, so it may lag behind.
 */
typedef struct AbGroupHead
{
	uint32		magic;
	uint32		synced;
	uint32		pad[13];
	pg_crc32c	crc;			/* as above */
} AbGroupHead;

#define AB_IMAGE_DEAD		0x0001	/* in no chain: failed, superseded, not needed */
#define AB_IMAGE_GONE	0x0002	/* nobody needs the page, and it may be a hole */

/*
 * One image.  All that is changed later, the links and the flags, is changed in place,
 * without a sync: rebuilding mends it.
 */
typedef struct AbImageEntry
{
	Oid			spc;
	Oid			rel;
	int16		fork;
	uint16		flags;
	BlockNumber block;
	AbImageRef	prev;			/* the next older image of the block */
	AbImageRef	jump;			/* an older one further down, or none */
	uint32		depth;			/* these two decide where jumps go to */
	uint32		jump_depth;
	pg_crc32c	page_crc;
	pg_crc32c	crc;			/* of epoch, slot and the fields above */
} AbImageEntry;

typedef struct AbImageGroup
{
	AbGroupHead head;
	AbImageEntry entry[AB_GROUP_SLOTS];
} AbImageGroup;

StaticAssertDecl(sizeof(AbImageRef) == 16, "references fill an index evenly");
StaticAssertDecl(sizeof(AbGroupHead) == 64, "group head");
StaticAssertDecl(sizeof(AbImageEntry) == 64, "entries must not cross a sector");
StaticAssertDecl(sizeof(AbImageGroup) == BLCKSZ, "group header block");

static inline off_t
ab_group_offset(uint32 group)
{
	return ((off_t) group * AB_GROUP_BLOCKS + 1) * BLCKSZ;
}

static inline off_t
ab_slot_entry_offset(uint32 slot)
{
	return ab_group_offset(slot / AB_GROUP_SLOTS) + sizeof(AbGroupHead) +
		(slot % AB_GROUP_SLOTS) * sizeof(AbImageEntry);
}

static inline off_t
ab_slot_page_offset(uint32 slot)
{
	return ab_group_offset(slot / AB_GROUP_SLOTS) +
		(off_t) (1 + slot % AB_GROUP_SLOTS) * BLCKSZ;
}

/* ---- names ---- */

extern void ab_images_dir_path(char path[MAXPGPATH], Oid db);
extern void ab_images_path(char path[MAXPGPATH], Oid db, AbSnapId epoch);
extern void ab_images_index_path(char path[MAXPGPATH], Oid db, AbForkKey key);

/* Epochs of the .images files of db by age, palloc'd; may raise. */
extern AbSnapId *ab_imagefile_list(Oid db, int *n);

/* ---- descriptors; -1 and errno if there is no such file ---- */

extern int	ab_imagefile_epoch(Oid db, AbSnapId epoch);
extern int	ab_imagefile_index(Oid db, AbForkKey key, bool create);
extern void ab_imagefile_close_all(void);

/*
 * Unlink, and give the space back although other processes may have it open.  Returns
 * the bytes it had, -1 on error.  Its descriptors here and elsewhere are not used any
 * more.
 */
extern int64 ab_imagefile_remove(const char *path);

/* ---- input and output ---- */

/* All of it; errno is 0 if the file ends before. */
extern bool ab_imagefile_read(int fd, void *data, size_t len, off_t offset);

/* As far as the file goes, then zeros. */
extern bool ab_imagefile_read_padded(int fd, void *data, size_t len, off_t offset);
extern bool ab_imagefile_write(int fd, const void *data, size_t len, off_t offset);
extern bool ab_imagefile_write_pages(int fd, const char *const *pages, int n, off_t offset);
extern bool ab_imagefile_sync(int fd);

/* Sync the directory that has the names of a database's files. */
extern bool ab_imagefile_sync_names(Oid db);

/* Slots that the file's size covers: the next append starts there. */
extern bool ab_imagefile_slots(int fd, uint32 *nslots);

/* ---- the header ---- */

extern void ab_imagefile_format(char block[BLCKSZ], Oid db, AbSnapId epoch);

extern bool ab_imagefile_header_is_valid(Oid db, AbSnapId epoch);

/* 0 if it is not known. */
extern uint64 ab_imagefile_swept(Oid db, AbSnapId epoch);
extern void ab_imagefile_set_swept(Oid db, AbSnapId epoch, uint64 living);

/*
 * Has the file of an epoch no images and no whole first block, as after a crash of who
 * made it?
 */
extern bool ab_imagefile_is_unmade(Oid db, AbSnapId epoch);

/* False: I/O error.  A header or mark that is damaged counts as poisoned from the start. */
extern bool ab_imagefile_poisoned_from(Oid db, AbSnapId epoch, XLogRecPtr *from);
extern bool ab_imagefile_poison(Oid db, AbSnapId epoch, XLogRecPtr from);

/* ab_imagelife.c: what ab_images_is_poisoned() remembers may be wrong now. */
extern void ab_images_forget_poison(void);

/* ---- locks ---- */

/* image_lock of db.  The postmaster has no other process beside it when it comes here. */
extern void ab_imagefile_lock(Oid db, LWLockMode mode);
extern void ab_imagefile_unlock(Oid db);

#endif							/* AB_IMAGEFILE_H */
