/*
 * ab_originfile.c
 *	  What an origin says (format: ab_format.h): reading and checking it.  Each has a
 *	  file, or has been gathered with others (ab_originpack.c); a file of its own counts
 *	  before that.  Its slots are written by ab_originslots.c, the file by ab_originlife.c.
 *
 * Any process.  Readers need no lock: a slot is one sector's worth of bytes with its own
 * checksum, and whoever acts on a new limit learns of it through the generation, bumped
 * after the slot is durable.  A crash leaves a slot old or new, as sectors are.
 * One that fails its checksum is damage, except to replay before files are
 * consistent: a base backup may have copied it while it was written, and then
 * the record of it is still to come.
 */
#include "ab_originfile.h"

#include "ab_file.h"
#include "ab_origin.h"
#include "ab_originpack.h"
#include "ab_recovery.h"
#include "ab_shmem.h"

#define SLOTS_OF_NEW_FILE ((AB_ORIGIN_BLOCK - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot))

/* ---- is it sound? ---- */

bool
ab_originfile_slot_is_used(const AbLimitSlot *s)
{
	return s->rel != InvalidOid &&
		s->crc == ab_crc_without(s, sizeof(*s), offsetof(AbLimitSlot, crc));
}

/*
 * A limit that cannot be read says neither what is inherited nor that all is: who went on
 * without it would see what the branch has cut off.
 */
static bool
slot_is_damaged(const AbLimitSlot *s)
{
	static const AbLimitSlot none = {0};

	return !ab_originfile_slot_is_used(s) && memcmp(s, &none, sizeof(none)) != 0;
}

/* The first of them, or -1. */
static int
find_damaged_slot(const AbLimitSlot *slots, int n)
{
	for (int i = 0; i < n; i++)
		if (slot_is_damaged(&slots[i]))
			return i;
	return -1;
}

/* NULL if sound, else a palloc'd reason. */
char *
ab_originfile_check_header(Oid db, const char *file, size_t len)
{
	const AbOriginHeader *h = (const AbOriginHeader *) file;

	if (len < AB_ORIGIN_BLOCK)
		return psprintf("only %zu bytes long", len);
	if (h->magic != AB_ORIGIN_MAGIC || h->version != AB_ORIGIN_VERSION)
		return psprintf("not an origin file of version %d", AB_ORIGIN_VERSION);
	if (h->crc != ab_crc_without(h, sizeof(*h), offsetof(AbOriginHeader, crc)))
		return pstrdup("checksum mismatch");
	if (h->db != db)
		return psprintf("it belongs to database %u", h->db);
	return NULL;
}

bool
ab_originfile_length_is_sound(const AbOriginLength *l)
{
	return (l->length == 0 && l->crc == 0) ||
		l->crc == ab_crc_without(l, sizeof(*l), offsetof(AbOriginLength, crc));
}

/* Slots that were cut off say nothing of themselves. */
static char *
check_length(const char *file, size_t len)
{
	const AbOriginLength *l = (const AbOriginLength *) (file + AB_ORIGIN_LENGTH_AT);

	if (!ab_originfile_length_is_sound(l))
		return pstrdup("its length fails its checksum");
	if (len < l->length)
		return psprintf("only %zu of %u bytes are left", len, l->length);
	return NULL;
}

/*
 * The same of all that is in the file.  Replay that has not come to where files are consistent
 * will write the limits that it finds in part, and those that a base backup came too early for.
 */
static char *
check_file(Oid db, const char *file, size_t len)
{
	char	   *reason = ab_originfile_check_header(db, file, len);
	int			damaged;

	if (reason == NULL && !ab_recovery_files_are_mixed())
		reason = check_length(file, len);
	if (reason != NULL || ab_recovery_files_are_ahead())
		return reason;
	damaged = find_damaged_slot((const AbLimitSlot *) (file + AB_ORIGIN_HEADER),
								(len - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot));
	return damaged < 0 ? NULL :
		psprintf("limit slot %d fails its checksum", damaged);
}

/* ---- reading ---- */

/*
 * No file is found where the file system is not mounted, either.  Who took a branch for a plain
 * database then would read zeros where it inherits, and write over that.  No UNDEFINED_FILE,
 * which would be damage of this one: whatever a process has of it must not be dropped.
 */
static void
require_directory(void)
{
	if (!ab_file_exists(AB_BRANCH_DIR))
		ereport(ERROR,
				(errcode(ERRCODE_IO_ERROR),
				 errmsg("directory \"%s\" is missing", AB_BRANCH_DIR),
				 errdetail("Without it nobody knows which databases are branches."),
				 errhint("Check that \"%s\" is mounted.", AB_DIR)));
}

static bool
load_gathered(Oid db, AbOriginImage *image)
{
	require_directory();
	memset(image, 0, sizeof(*image));
	image->nfree = SLOTS_OF_NEW_FILE;
	switch (ab_originpack_find(db, &image->header))
	{
		case AB_PACK_NONE:
			return false;
		case AB_PACK_FOUND:
			return true;
		case AB_PACK_DAMAGED:
			break;
	}
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("origin of database %u in file \"%s\" is damaged", db, AB_PACK_FILE)));
}

/* NULL: there is none.  *reason: of damage, else NULL. */
static char *
read_file(Oid db, const char *path, size_t *len, char **reason)
{
	char	   *file = ab_file_read(path, len);

	*reason = file != NULL ? check_file(db, file, *len) : NULL;
	return file;
}

/* What looks damaged may be a slot that is being written. */
static void
wait_for_writer(Oid db)
{
	LWLock	   *lock = ab_origin_lock(db);

	if (LWLockHeldByMe(lock))
		return;
	LWLockAcquire(lock, LW_SHARED);
	LWLockRelease(lock);
}

bool
ab_originfile_load(Oid db, AbOriginImage *image)
{
	char	   *path = ab_origin_path(db);
	char	   *reason;
	AbLimitSlot *slots;
	size_t		len;
	int			total;

	image->file = read_file(db, path, &len, &reason);
	if (reason)
	{
		wait_for_writer(db);
		pfree(image->file);
		image->file = read_file(db, path, &len, &reason);
	}
	if (image->file == NULL)
	{
		pfree(path);
		return load_gathered(db, image);
	}
	if (reason)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("origin file \"%s\" is damaged", path),
				 errdetail("%s.", reason),
				 errhint("Delete the branch.")));
	pfree(path);

	memcpy(&image->header, image->file, sizeof(AbOriginHeader));
	slots = (AbLimitSlot *) (image->file + AB_ORIGIN_HEADER);
	total = (len - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot);
	image->slots = slots;
	image->nslots = 0;
	for (int i = 0; i < total; i++)
		if (ab_originfile_slot_is_used(&slots[i]))
			slots[image->nslots++] = slots[i];
	image->nfree = total - image->nslots;
	return true;
}

void
ab_originfile_free(AbOriginImage *image)
{
	if (image->file)
		pfree(image->file);
}

bool
ab_origin_read(Oid db, AbOriginHeader *header)
{
	AbOriginImage image;

	if (!ab_originfile_load(db, &image))
		return false;
	*header = image.header;
	ab_originfile_free(&image);
	return true;
}

/* ---- what a new file has ---- */

void
ab_originfile_fill_block(char block[AB_ORIGIN_BLOCK], const AbOriginHeader *header)
{
	AbOriginHeader *h = (AbOriginHeader *) block;

	memset(block, 0, AB_ORIGIN_BLOCK);
	*h = *header;
	h->magic = AB_ORIGIN_MAGIC;
	h->version = AB_ORIGIN_VERSION;
	h->pad = 0;
	h->crc = ab_crc_without(h, sizeof(*h), offsetof(AbOriginHeader, crc));
}

/* ---- lost changes ---- */

void
ab_originfile_mark_lost(Oid db, AbSnapId incarnation)
{
	char	   *path = psprintf(AB_BRANCH_DIR "/%u" AB_LOST_SUFFIX, db);

	ab_file_write_durably(path, &incarnation, sizeof(incarnation));
	ab_generation_bump(db);
	ereport(ab_recovery_files_are_ahead() ? DEBUG1 : LOG,
			(errmsg("changes of damaged branch database %u are dropped from now on", db),
			 errhint("Delete the branch, or reset it to its parent.")));
	pfree(path);
}

bool
ab_originfile_is_lost(Oid db, AbSnapId incarnation)
{
	char	   *path = psprintf(AB_BRANCH_DIR "/%u" AB_LOST_SUFFIX, db);
	size_t		len;
	char	   *mark = ab_file_read(path, &len);
	bool		lost = false;

	if (mark != NULL)
	{
		AbSnapId	id;

		memset(&id, 0, sizeof(id));
		memcpy(&id, mark, Min(len, sizeof(id)));
		lost = !AbSnapIdIsValid(id) || AbSnapIdEquals(id, incarnation);
		pfree(mark);
	}
	pfree(path);
	return lost;
}

/* ---- for branch.verify() ---- */

static char *
check_gathered(Oid db)
{
	AbOriginHeader header;

	switch (ab_originpack_find(db, &header))
	{
		case AB_PACK_NONE:
			break;
		case AB_PACK_DAMAGED:
			return pstrdup("its entry in \"" AB_PACK_FILE "\" is damaged");
		case AB_PACK_FOUND:
			return ab_originfile_is_lost(db, header.incarnation) ?
				pstrdup("changes were dropped while it was damaged") : NULL;
	}
	return pstrdup("there is no origin file");
}

char *
ab_origin_check(Oid db)
{
	char	   *path = ab_origin_path(db);
	char	   *file;
	char	   *reason;
	size_t		len;

	file = ab_file_read(path, &len);
	if (file == NULL)
		return check_gathered(db);
	reason = check_file(db, file, len);
	if (reason)
		return reason;
	if (ab_originfile_is_lost(db, ((AbOriginHeader *) file)->incarnation))
		return pstrdup("changes were dropped while it was damaged");
	pfree(file);
	return NULL;
}
