/*
 * ab_originfile.c
 *	  Origin files (format: ab_format.h): reading, creating, removing them, and
 *	  writing their limit slots in place.
 *
 * Any process.  Slots are written under the database's origin lock (exclusive);
 * readers need none: a slot is one sector's worth of bytes with its own checksum,
 * and whoever acts on a new limit learns of it through the generation, bumped
 * after the slot is durable.  A crash leaves a slot old or new; one that fails
 * its checksum is treated as free, which can only be the one being written when
 * the power went, before anybody relied on it.
 */
#include "ab_originfile.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_recovery.h"
#include "ab_shmem.h"

/* The descriptor this process keeps for writing slots. */
static int	held_fd = -1;
static Oid	held_db = InvalidOid;
static AbSnapId held_incarnation;

static bool
slot_is_used(const AbLimitSlot *s)
{
	return s->rel != InvalidOid &&
		s->crc == ab_crc_without(s, sizeof(*s), offsetof(AbLimitSlot, crc));
}

/* NULL if sound, else a palloc'd reason. */
static char *
check_header(Oid db, const char *file, size_t len)
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
ab_originfile_load(Oid db, AbOriginImage *image)
{
	char	   *path = ab_origin_path(db);
	char	   *reason;
	AbLimitSlot *slots;
	size_t		len;
	int			total;

	image->file = ab_file_read(path, &len);
	if (image->file == NULL)
	{
		pfree(path);
		return false;
	}
	reason = check_header(db, image->file, len);
	if (reason)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("origin file \"%s\" is damaged", path),
				 errdetail("%s.", reason)));
	pfree(path);

	memcpy(&image->header, image->file, sizeof(AbOriginHeader));
	slots = (AbLimitSlot *) (image->file + AB_ORIGIN_HEADER);
	total = (len - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot);
	image->slots = slots;
	image->nslots = 0;
	for (int i = 0; i < total; i++)
		if (slot_is_used(&slots[i]))
			slots[image->nslots++] = slots[i];
	image->nfree = total - image->nslots;
	return true;
}

void
ab_originfile_free(AbOriginImage *image)
{
	pfree(image->file);
}

/* ---- slots ---- */

static void
drop_held(void)
{
	if (held_fd >= 0)
		close(held_fd);
	held_fd = -1;
	held_db = InvalidOid;
}

/* Open for writing without allocating; -1 with errno on failure. */
static int
open_origin(Oid db)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", db);
	return BasicOpenFile(path, O_RDWR | PG_BINARY);
}

void
ab_originfile_hold(Oid db, AbSnapId incarnation)
{
	if (held_db == db && AbSnapIdEquals(held_incarnation, incarnation))
		return;
	drop_held();
	held_fd = open_origin(db);
	if (held_fd < 0)
		return;					/* whoever needs it will report */
	held_db = db;
	held_incarnation = incarnation;
}

/*
 * Offset of the slot for the same fork, else of the first free one, else -1.
 * Reads through a buffer on the stack.
 */
static off_t
find_slot(int fd, const AbLimitSlot *wanted)
{
	AbLimitSlot chunk[128];
	off_t		offset = AB_ORIGIN_HEADER;
	off_t		first_free = -1;
	ssize_t		n;

	while ((n = pg_pread(fd, chunk, sizeof(chunk), offset)) >= (ssize_t) sizeof(AbLimitSlot))
	{
		for (int i = 0; i < n / (ssize_t) sizeof(AbLimitSlot); i++)
		{
			off_t		at = offset + i * sizeof(AbLimitSlot);

			if (!slot_is_used(&chunk[i]))
			{
				if (first_free < 0)
					first_free = at;
			}
			else if (chunk[i].rel == wanted->rel && chunk[i].spc == wanted->spc &&
					 chunk[i].fork == wanted->fork)
				return at;
		}
		offset += (n / sizeof(AbLimitSlot)) * sizeof(AbLimitSlot);
	}
	return first_free;
}

/* Where the next slot goes when none is free: only _extend is to get there. */
static off_t
end_of_slots(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -1;
	return st.st_size;
}

void
ab_originfile_put_slot(Oid db, AbSnapId incarnation, AbLimitSlot *slot, int elevel)
{
	LWLock	   *lock = ab_origin_lock(db);
	bool		ok = false;
	off_t		at;
	int			save_errno = 0;

	slot->crc = ab_crc_without(slot, sizeof(*slot), offsetof(AbLimitSlot, crc));
	ab_originfile_hold(db, incarnation);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (held_fd >= 0)
	{
		at = find_slot(held_fd, slot);
		if (at < 0)
			at = end_of_slots(held_fd);
		ok = at >= 0 &&
			pg_pwrite(held_fd, slot, sizeof(*slot), at) == sizeof(*slot) &&
			pg_fdatasync(held_fd) == 0;
		save_errno = errno;
	}
	else
		save_errno = errno;
	if (ok)
		ab_generation_bump(db);
	LWLockRelease(lock);

	if (!ok)
	{
		errno = save_errno;
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not record in \"" AB_BRANCH_DIR "/%u\" how far relation %u is inherited: %m",
						db, slot->rel)));
	}
}

bool
ab_originfile_extend(Oid db, bool lenient)
{
	static const char zeros[AB_ORIGIN_BLOCK] = {0};
	LWLock	   *lock = ab_origin_lock(db);
	bool		done = false;
	struct stat st;
	int			save_errno = 0;

	if (held_db != db || held_fd < 0)
		return false;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (fstat(held_fd, &st) == 0)
	{
		/* whole blocks only: a slot appended in need may have ended elsewhere */
		off_t		at = TYPEALIGN(AB_ORIGIN_BLOCK, st.st_size);

		done = pg_pwrite(held_fd, zeros, sizeof(zeros), at) == sizeof(zeros) &&
			pg_fdatasync(held_fd) == 0;
	}
	save_errno = errno;
	if (done)
		ab_generation_bump(db);
	LWLockRelease(lock);
	if (!done && !lenient)
	{
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not extend file \"" AB_BRANCH_DIR "/%u\": %m", db)));
	}
	return done;
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

static void
remove_lost_mark(Oid db)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u" AB_LOST_SUFFIX, db);
	if (unlink(path) < 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}

/* ---- life of the file ---- */

void
ab_origin_create(const AbOriginHeader *header, bool durably)
{
	char		block[AB_ORIGIN_BLOCK];
	AbOriginHeader *h = (AbOriginHeader *) block;
	char	   *path = ab_origin_path(header->db);
	char	   *mark = psprintf("%s" AB_MARK_SUFFIX, path);

	memset(block, 0, sizeof(block));
	*h = *header;
	h->magic = AB_ORIGIN_MAGIC;
	h->version = AB_ORIGIN_VERSION;
	h->pad = 0;
	h->crc = ab_crc_without(h, sizeof(*h), offsetof(AbOriginHeader, crc));
	remove_lost_mark(header->db);

	/* the mark of unfinished creation becomes the origin */
	ab_file_write_via(mark, path, block, sizeof(block), durably);
	AB_FAILPOINT_NO_ERROR("origin-written");
	if (durably)
		ab_file_sync_parent(path);
	ab_generation_bump(header->db);
	pfree(mark);
	pfree(path);
}

bool
ab_origin_remove(Oid db)
{
	char		path[MAXPGPATH];
	bool		existed = true;

	if (held_db == db)
		drop_held();
	remove_lost_mark(db);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", db);
	if (unlink(path) < 0)
	{
		existed = errno != ENOENT;
		if (existed)
			ereport(WARNING,
					(errcode_for_file_access(),
					 errmsg("could not remove file \"%s\": %m", path)));
	}
	else if (enableFsync)
		(void) fsync_fname_ext(AB_BRANCH_DIR, true, true, LOG);
	ab_generation_bump(db);
	return existed;
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

static int
compare_oid(const void *a, const void *b)
{
	Oid			x = *(const Oid *) a;
	Oid			y = *(const Oid *) b;

	return x < y ? -1 : x > y;
}

Oid *
ab_origin_list(int *n)
{
	int			max = 1024;
	Oid		   *list = palloc(sizeof(Oid) * max);
	DIR		   *dir = AllocateDir(AB_BRANCH_DIR);
	struct dirent *de;

	*n = 0;
	while ((de = ReadDir(dir, AB_BRANCH_DIR)) != NULL)
	{
		if (strspn(de->d_name, "0123456789") != strlen(de->d_name))
			continue;
		if (*n == max)
		{
			max *= 2;
			list = repalloc(list, sizeof(Oid) * max);
		}
		list[(*n)++] = (Oid) strtoul(de->d_name, NULL, 10);
	}
	FreeDir(dir);
	qsort(list, *n, sizeof(Oid), compare_oid);
	return list;
}

char *
ab_origin_check(Oid db)
{
	char	   *path = ab_origin_path(db);
	char	   *file;
	char	   *reason;
	AbLimitSlot *slots;
	size_t		len;

	file = ab_file_read(path, &len);
	if (file == NULL)
		return pstrdup("there is no origin file");
	reason = check_header(db, file, len);
	if (reason)
		return reason;
	if (ab_originfile_is_lost(db, ((AbOriginHeader *) file)->incarnation))
		return pstrdup("changes were dropped while it was damaged");
	slots = (AbLimitSlot *) (file + AB_ORIGIN_HEADER);
	for (int i = 0; i < (len - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot); i++)
		if (slots[i].rel != InvalidOid && !slot_is_used(&slots[i]))
			return psprintf("limit slot %d fails its checksum", i);
	pfree(file);
	return NULL;
}
