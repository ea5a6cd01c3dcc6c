/*
 * ab_originfile.c
 *	  Origins (format: ab_format.h): reading, creating, removing them, and writing
 *	  their limit slots in place.  Each has a file, or has been gathered with others
 *	  (ab_originpack.c); a file of its own counts before that.
 *
 * Any process.  Slots are written under the database's origin lock (exclusive);
 * readers need none: a slot is one sector's worth of bytes with its own checksum,
 * and whoever acts on a new limit learns of it through the generation, bumped
 * after the slot is durable.  A crash leaves a slot old or new, as sectors are.
 * One that fails its checksum is damage, except to replay before files are
 * consistent: a base backup may have copied it while it was written, and then
 * the record of it is still to come.
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
#include "ab_originpack.h"
#include "ab_recovery.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"

/* The descriptor this process keeps for writing slots. */
static int	held_fd = -1;
static Oid	held_db = InvalidOid;
static AbSnapId held_incarnation;
static bool held_is_spare;		/* unless somebody has given it its name since */
uint32		ab_originfile_held_moment = 1;

#define SLOTS_OF_NEW_FILE ((AB_ORIGIN_BLOCK - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot))

static bool
slot_is_used(const AbLimitSlot *s)
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

	return !slot_is_used(s) && memcmp(s, &none, sizeof(none)) != 0;
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

/*
 * The same of all that is in the file.  Replay that has not come to where files are consistent
 * will write the limits that it finds in part.
 */
static char *
check_file(Oid db, const char *file, size_t len)
{
	char	   *reason = check_header(db, file, len);
	int			damaged;

	if (reason != NULL || ab_recovery_files_are_ahead())
		return reason;
	damaged = find_damaged_slot((const AbLimitSlot *) (file + AB_ORIGIN_HEADER),
								(len - AB_ORIGIN_HEADER) / sizeof(AbLimitSlot));
	return damaged < 0 ? NULL :
		psprintf("limit slot %d fails its checksum", damaged);
}

static bool
load_gathered(Oid db, AbOriginImage *image)
{
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
		if (slot_is_used(&slots[i]))
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

/* ---- slots ---- */

static void
drop_held(void)
{
	if (held_fd >= 0)
		close(held_fd);
	held_fd = -1;
	held_db = InvalidOid;
	ab_originfile_held_moment++;
}

/* Open for writing without allocating; -1 with errno on failure. */
static int
open_origin(Oid db)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", db);
	return BasicOpenFile(path, O_RDWR | PG_BINARY);
}

static void
block_of_header(char block[AB_ORIGIN_BLOCK], const AbOriginHeader *header)
{
	AbOriginHeader *h = (AbOriginHeader *) block;

	memset(block, 0, AB_ORIGIN_BLOCK);
	*h = *header;
	h->magic = AB_ORIGIN_MAGIC;
	h->version = AB_ORIGIN_VERSION;
	h->pad = 0;
	h->crc = ab_crc_without(h, sizeof(*h), offsetof(AbOriginHeader, crc));
}

/*
 * G5: what an origin that has been gathered writes its slots into.  It gets the origin's name
 * when there is one in it.  Allocates nothing; the caller holds the origin lock, exclusively.
 */
static int
open_spare(Oid db, AbSnapId incarnation)
{
	AbOriginHeader header;
	char		path[MAXPGPATH];
	char		block[AB_ORIGIN_BLOCK];
	char		there[AB_ORIGIN_BLOCK];
	int			fd;

	errno = ENOENT;
	if (ab_originpack_find(db, &header) != AB_PACK_FOUND ||
		!AbSnapIdEquals(header.incarnation, incarnation))
		return -1;
	block_of_header(block, &header);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u" AB_SPARE_SUFFIX, db);
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
		return -1;
	/* a crash may have left one in part, or of a database that had this number */
	if ((pg_pread(fd, there, sizeof(there), 0) != sizeof(there) ||
		 memcmp(there, block, sizeof(header)) != 0) &&
		(ftruncate(fd, 0) < 0 ||
		 pg_pwrite(fd, block, sizeof(block), 0) != sizeof(block)))
	{
		close(fd);
		return -1;
	}
	return fd;
}

/* The caller holds the origin lock, exclusively. */
static void
hold_locked(Oid db, AbSnapId incarnation)
{
	drop_held();
	held_fd = open_origin(db);
	held_is_spare = held_fd < 0 && errno == ENOENT;
	if (held_is_spare)
		held_fd = open_spare(db, incarnation);
	if (held_fd < 0)
		return;					/* whoever needs it will report */
	held_db = db;
	held_incarnation = incarnation;
	AB_FAILPOINT_NO_ERROR("origin-held");
}

bool
ab_originfile_hold(Oid db, AbSnapId incarnation)
{
	LWLock	   *lock = ab_origin_lock(db);
	int			save_errno;

	if (held_db == db && AbSnapIdEquals(held_incarnation, incarnation))
		return true;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	hold_locked(db, incarnation);
	save_errno = errno;
	LWLockRelease(lock);
	errno = save_errno;
	return held_fd >= 0;
}

/* Was it gathered since it was opened?  (Then no slot was written into it.) */
static bool
held_is_gone(void)
{
	struct stat st;

	return held_fd >= 0 && fstat(held_fd, &st) == 0 && st.st_nlink == 0;
}

static bool
sync_names(void)
{
	int			fd = BasicOpenFile(AB_BRANCH_DIR, O_RDONLY | PG_BINARY);
	bool		done = fd >= 0 && pg_fsync(fd) == 0;
	int			save_errno = errno;

	if (fd >= 0)
		close(fd);
	errno = save_errno;
	return done;
}

/* Make durable what was written into the file that is held, and its name. */
static bool
sync_held(void)
{
	char		spare[MAXPGPATH];
	char		path[MAXPGPATH];

	if (!held_is_spare)
		return pg_fdatasync(held_fd) == 0;
	if (pg_fsync(held_fd) != 0)
		return false;
	AB_FAILPOINT_NO_ERROR("origin-spare-synced");
	snprintf(spare, sizeof(spare), AB_BRANCH_DIR "/%u" AB_SPARE_SUFFIX, held_db);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", held_db);

	/* another process may have given this very file its name */
	if (rename(spare, path) < 0 && errno != ENOENT)
		return false;
	held_is_spare = false;
	AB_FAILPOINT_NO_ERROR("origin-apart");
	return sync_names();
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

/* Of one that is written in part nothing remains: it would be taken for a damaged one. */
static bool
write_slot(int fd, const AbLimitSlot *slot, off_t at)
{
	AbLimitSlot before;
	int			save_errno;

	if (pg_pread(fd, &before, sizeof(before), at) != sizeof(before))
		memset(&before, 0, sizeof(before)); /* at the end of the file */
	errno = 0;
	if (pg_pwrite(fd, slot, sizeof(*slot), at) == sizeof(*slot))
		return true;
	save_errno = errno != 0 ? errno : ENOSPC;
	if (pg_pwrite(fd, &before, sizeof(before), at) != sizeof(before))
		ereport(LOG,
				(errmsg("could not take back what was written in part into the origin file of relation %u: %m",
						slot->rel)));
	errno = save_errno;
	return false;
}

void
ab_originfile_put_slot(Oid db, AbSnapId incarnation, AbLimitSlot *slot, int elevel)
{
	LWLock	   *lock = ab_origin_lock(db);
	bool		ok = false;
	off_t		at;
	int			save_errno = 0;

	slot->crc = ab_crc_without(slot, sizeof(*slot), offsetof(AbLimitSlot, crc));
	(void) ab_originfile_hold(db, incarnation);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (held_is_gone())
		hold_locked(db, incarnation);
	if (held_fd >= 0)
	{
		at = find_slot(held_fd, slot);
		if (at < 0)
			at = end_of_slots(held_fd);
		ok = at >= 0 && write_slot(held_fd, slot, at) && sync_held();
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

/* A file beside the origin's. */
static void
remove_beside(Oid db, const char *suffix)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u%s", db, suffix);
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
	char	   *path = ab_origin_path(header->db);
	char	   *mark = psprintf("%s" AB_MARK_SUFFIX, path);

	block_of_header(block, header);
	remove_beside(header->db, AB_LOST_SUFFIX);

	/* the mark of unfinished creation becomes the origin */
	ab_file_write_via(mark, path, block, sizeof(block), durably);
	AB_FAILPOINT_NO_ERROR("origin-written");
	if (durably)
		ab_file_sync_parent(path);
	pg_atomic_fetch_add_u32(&ab_shared->ungathered, 1);
	ab_generation_bump(header->db);
	pfree(mark);
	pfree(path);
}

bool
ab_origin_remove(Oid db)
{
	char		path[MAXPGPATH];
	bool		existed;
	bool		unlinked;

	if (held_db == db)
		drop_held();
	remove_beside(db, AB_LOST_SUFFIX);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", db);

	/* G3: both under the lock, the file last */
	LWLockAcquire(ab_shared->gather_lock, LW_EXCLUSIVE);
	existed = ab_originpack_kill(db);
	AB_FAILPOINT_NO_ERROR("origin-dead");
	remove_beside(db, AB_SPARE_SUFFIX);
	unlinked = unlink(path) == 0;
	if (!unlinked && errno != ENOENT)
	{
		existed = true;
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
	}
	LWLockRelease(ab_shared->gather_lock);
	if (unlinked && enableFsync)
		(void) fsync_fname_ext(AB_BRANCH_DIR, true, true, LOG);
	existed |= unlinked;
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

/* Those with files of their own. */
static Oid *
list_files(int *n)
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

static void
add_origin(AbOrigins *o, Oid db, const AbOriginHeader *gathered)
{
	o->dbs[o->n] = db;
	o->gathered[o->n++] = gathered;
}

/* The files are listed first: one that goes meanwhile is gathered by then. */
AbOrigins *
ab_origin_all(void)
{
	AbOrigins  *o = palloc0(sizeof(AbOrigins));
	int			nfiles;
	Oid		   *files = list_files(&nfiles);
	int			next = 0;
	Size		room;

	ab_originpack_read(&o->pack);
	room = Max(nfiles + o->pack.n, 1);
	o->nfiles = nfiles;
	o->dbs = palloc_extended(room * sizeof(Oid), MCXT_ALLOC_HUGE);
	o->gathered = palloc_extended(room * sizeof(AbOriginHeader *), MCXT_ALLOC_HUGE);
	for (int i = 0; i < o->pack.n; i++)
	{
		Oid			db = ab_originpack_living(&o->pack, i);

		if (!OidIsValid(db))
			continue;
		while (next < nfiles && files[next] < db)
			add_origin(o, files[next++], NULL);
		if (next < nfiles && files[next] == db)
			continue;
		add_origin(o, db, ab_originpack_is_sound(&o->pack, i) ?
				   &o->pack.entries[i].origin : NULL);
	}
	while (next < nfiles)
		add_origin(o, files[next++], NULL);
	pfree(files);
	return o;
}

bool
ab_origins_read(const AbOrigins *o, int i, AbOriginHeader *header)
{
	if (o->gathered[i] == NULL)
		return ab_origin_read(o->dbs[i], header);
	*header = *o->gathered[i];
	return true;
}

void
ab_origins_free(AbOrigins *o)
{
	ab_originpack_free(&o->pack);
	pfree(o->dbs);
	pfree(o->gathered);
	pfree(o);
}

Oid *
ab_origin_list(int *n)
{
	AbOrigins  *o = ab_origin_all();
	Oid		   *dbs = o->dbs;

	*n = o->n;
	o->dbs = palloc(sizeof(Oid));
	ab_origins_free(o);
	return dbs;
}

/* ---- what can be gathered ---- */

bool
ab_originfile_is_bare(Oid db, AbOriginHeader *header)
{
	char	   *path = ab_origin_path(db);
	size_t		len;
	char	   *file = ab_file_read(path, &len);
	char	   *reason = file != NULL ? check_header(db, file, len) : NULL;
	bool		bare = file != NULL && reason == NULL && len == AB_ORIGIN_BLOCK;

	for (size_t i = sizeof(AbOriginHeader); bare && i < len; i++)
		bare = file[i] == '\0';
	if (bare)
		memcpy(header, file, sizeof(*header));
	bare = bare && !ab_storage_dir_exists(db, header->spc);
	if (reason != NULL)
		pfree(reason);
	if (file != NULL)
		pfree(file);
	pfree(path);
	return bare;
}

bool
ab_originfile_unlink_bare(const AbOriginHeader *header)
{
	LWLock	   *lock = ab_origin_lock(header->db);
	AbOriginHeader now;
	char		path[MAXPGPATH];
	bool		gone;

	if (held_db == header->db)
		drop_held();
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", header->db);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	gone = ab_originfile_is_bare(header->db, &now) &&
		memcmp(&now, header, sizeof(now)) == 0 && unlink(path) == 0;
	LWLockRelease(lock);
	return gone;
}

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
