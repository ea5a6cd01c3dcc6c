/*
 * ab_imagefile.c
 *	  Files of the store of before-images: names, descriptors, raw access.
 *
 * Any process that reads or writes images, in critical sections too: no memory is
 * allocated, nothing is raised, except by the listing of a directory.
 *
 * Descriptors are cached for each process and checked when image_generation has moved:
 * one of a file that has no longer its name is closed, and that an index did not exist is
 * forgotten.  Whoever makes an index file moves it before the file has an entry.
 *
 * A crash leaves files as they are; ab_imagerebuild.c judges them.
 */
#include "ab_imagefile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_iovec.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "utils/wait_event.h"

#include "ab_file.h"
#include "ab_shmem.h"

/*
 * Descriptors that a process keeps: a branch of an old snapshot reads pages from as
 * many files as there are later snapshots.  A name belongs into one set.
 */
#define OPEN_SETS 256			/* a power of 2 */
#define OPEN_WAYS 8
#define IN_HAND 16				/* the last so many that were asked for */

typedef struct FileName
{
	Oid			db;
	AbForkKey	key;			/* of an index; else zeros */
	AbSnapId	epoch;			/* of an .images file; else zeros */
} FileName;

typedef struct OpenFile
{
	FileName	name;			/* db 0: this place is free */
	int			fd;				/* -1: there is no such file */
	uint32		generation;		/* when that was found out */
	uint64		used;
} OpenFile;

static OpenFile open_files[OPEN_SETS][OPEN_WAYS];
static OpenFile *last_found = &open_files[0][0];
static int	next_victim = 0;	/* place to look at when descriptors run out */
static uint64 use_counter = 0;

/* ---- names ---- */

void
ab_images_dir_path(char path[MAXPGPATH], Oid db)
{
	snprintf(path, MAXPGPATH, AB_IMAGE_DIR "/%u", db);
}

void
ab_images_path(char path[MAXPGPATH], Oid db, AbSnapId epoch)
{
	char		id[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(epoch, id);
	snprintf(path, MAXPGPATH, AB_IMAGE_DIR "/%u/%s" AB_IMAGES_SUFFIX, db, id);
}

void
ab_images_index_path(char path[MAXPGPATH], Oid db, AbForkKey key)
{
	snprintf(path, MAXPGPATH, AB_IMAGE_DIR "/%u/" AB_INDEX_PREFIX "%u.%u.%d",
			 db, key.spc, key.rel, key.fork);
}

static int
compare_epochs(const void *a, const void *b)
{
	const AbSnapId *x = a;
	const AbSnapId *y = b;

	if (x->lsn != y->lsn)
		return x->lsn < y->lsn ? -1 : 1;
	if (x->tli != y->tli)
		return x->tli < y->tli ? -1 : 1;
	return 0;
}

static bool
parse_name(const char *name, AbSnapId *epoch)
{
	char		id[AB_SNAPID_TEXT_LEN + 1];

	if (strlen(name) != AB_SNAPID_TEXT_LEN + strlen(AB_IMAGES_SUFFIX) ||
		strcmp(name + AB_SNAPID_TEXT_LEN, AB_IMAGES_SUFFIX) != 0)
		return false;
	strlcpy(id, name, sizeof(id));
	return ab_snapid_parse(id, epoch);
}

AbSnapId *
ab_imagefile_list(Oid db, int *n)
{
	char		path[MAXPGPATH];
	AbSnapId   *list;
	int			max = 64;
	DIR		   *dir;
	struct dirent *de;

	*n = 0;
	list = palloc(sizeof(AbSnapId) * max);
	ab_images_dir_path(path, db);
	dir = AllocateDir(path);
	if (dir == NULL && errno == ENOENT)
		return list;
	while ((de = ReadDir(dir, path)) != NULL)
	{
		if (*n == max)
			list = repalloc_huge(list, sizeof(AbSnapId) * (max *= 2));
		if (parse_name(de->d_name, &list[*n]))
			(*n)++;
	}
	FreeDir(dir);
	qsort(list, *n, sizeof(AbSnapId), compare_epochs);
	return list;
}

/* ---- descriptors ---- */

static void
forget(OpenFile *f)
{
	if (f->name.db != InvalidOid && f->fd >= 0)
	{
		(void) close(f->fd);
		ReleaseExternalFD();
	}
	f->name.db = InvalidOid;
}

void
ab_imagefile_close_all(void)
{
	for (int set = 0; set < OPEN_SETS; set++)
		for (int way = 0; way < OPEN_WAYS; way++)
			forget(&open_files[set][way]);
}

static bool
same_name(const FileName *a, const FileName *b)
{
	return a->db == b->db && a->key.rel == b->key.rel && a->key.fork == b->key.fork &&
		a->key.spc == b->key.spc && AbSnapIdEquals(a->epoch, b->epoch);
}

static OpenFile *
set_of(const FileName *name)
{
	uint32		hash = murmurhash32(name->db);

	hash = hash_combine(hash, murmurhash32(name->key.rel + name->key.fork));
	hash = hash_combine(hash, murmurhash32((uint32) name->epoch.lsn));
	hash = hash_combine(hash, murmurhash32((uint32) (name->epoch.lsn >> 32)));
	return open_files[hash & (OPEN_SETS - 1)];
}

static OpenFile *
find_open(const FileName *name)
{
	OpenFile   *set;

	if (same_name(&last_found->name, name))
		return last_found;
	set = set_of(name);
	for (int way = 0; way < OPEN_WAYS; way++)
		if (same_name(&set[way].name, name))
			return last_found = &set[way];
	return NULL;
}

/* A place for the name: a free one, or else the one that was not used for longest. */
static OpenFile *
free_place(const FileName *name)
{
	OpenFile   *set = set_of(name);
	OpenFile   *chosen = &set[0];

	for (int way = 0; way < OPEN_WAYS && chosen->name.db != InvalidOid; way++)
		if (set[way].name.db == InvalidOid || set[way].used < chosen->used)
			chosen = &set[way];
	forget(chosen);
	return chosen;
}

/*
 * Close the next descriptor, but none that a caller may still have in hand; false if
 * there is no other.
 */
static bool
close_one(void)
{
	for (int i = 0; i < OPEN_SETS * OPEN_WAYS; i++)
	{
		OpenFile   *f = &open_files[next_victim / OPEN_WAYS][next_victim % OPEN_WAYS];

		next_victim = (next_victim + 1) % (OPEN_SETS * OPEN_WAYS);
		if (f->name.db != InvalidOid && f->fd >= 0 &&
			f->used + IN_HAND < use_counter)
		{
			forget(f);
			return true;
		}
	}
	return false;
}

static int
open_path(const char *path, int flags)
{
	int			fd;

	for (;;)
	{
		fd = BasicOpenFile(path, flags | PG_BINARY);
		if (fd >= 0 || errno == EINTR)
		{
			if (fd >= 0)
				return fd;
		}
		else if ((errno != EMFILE && errno != ENFILE) || !close_one())
			return -1;
	}
}

static void
name_to_path(const FileName *name, char path[MAXPGPATH])
{
	if (AbSnapIdIsValid(name->epoch))
		ab_images_path(path, name->db, name->epoch);
	else
		ab_images_index_path(path, name->db, name->key);
}

/*
 * Count one more descriptor: at most a third of the process's, as the server has it
 * for such uses.  The postmaster has few yet and gives them all back soon.
 */
static void
count_descriptor(void)
{
	while (MyProc == NULL || !AcquireExternalFD())
		if (MyProc == NULL || !close_one())
		{
			ReserveExternalFD();
			return;
		}
}

/*
 * Is what is remembered still so, after somebody moved the generation?  A file of a store
 * that was set aside has a link until it is removed, but the name leads to another one.
 */
static bool
still_true(const OpenFile *f)
{
	char		path[MAXPGPATH];

	if (f->fd < 0)
		return false;
	name_to_path(&f->name, path);
	return ab_file_has_name(f->fd, path);
}

/*
 * Nothing is found in a store that is not there, because a file system is not mounted: that an
 * index is missing does not say then that no image was saved.  (A snapshot's store is there from
 * before it is live; in recovery, and at server start, when it is replayed.)
 */
static bool
store_is_away(Oid db)
{
	char		path[MAXPGPATH];

	if (RecoveryInProgress())
		return false;
	ab_images_dir_path(path, db);
	if (ab_file_exists(path))
	{
		errno = ENOENT;
		return false;
	}
	errno = EIO;
	return true;
}

static int
open_named(const FileName *name, bool create)
{
	char		path[MAXPGPATH];
	uint32		generation;
	OpenFile   *f;
	int			fd;

	/* what the caller read before has been read: a "no" is about a later time */
	pg_memory_barrier();
	generation = pg_atomic_read_u32(&ab_shared->image_generation);
	f = find_open(name);
	if (f && ((f->fd < 0 && create) ||
			  (f->generation != generation && !still_true(f))))
	{
		forget(f);
		f = NULL;
	}
	if (f)
	{
		f->generation = generation;
		f->used = ++use_counter;
		errno = f->fd < 0 ? ENOENT : 0;
		return f->fd;
	}

	name_to_path(name, path);
	fd = open_path(path, O_RDWR);
	if (fd < 0 && errno == ENOENT && create)
	{
		fd = open_path(path, O_RDWR | O_CREAT);
		if (fd >= 0)
			pg_atomic_fetch_add_u32(&ab_shared->image_generation, 1);
	}

	/* only of an index: .images files come without a new generation */
	if (fd < 0 && (errno != ENOENT || AbSnapIdIsValid(name->epoch) || store_is_away(name->db)))
		return -1;
	if (fd >= 0)
		count_descriptor();
	f = free_place(name);
	f->name = *name;
	f->fd = fd;
	f->generation = generation;
	f->used = ++use_counter;

	/* what is made of the file says why it fails; not what became of making room here */
	errno = fd < 0 ? ENOENT : 0;
	return fd;
}

int
ab_imagefile_epoch(Oid db, AbSnapId epoch)
{
	FileName	name = {.db = db, .epoch = epoch};

	return open_named(&name, false);
}

int
ab_imagefile_index(Oid db, AbForkKey key, bool create)
{
	FileName	name = {.db = db, .key = key};

	return open_named(&name, create);
}

int64
ab_imagefile_remove(const char *path)
{
	struct stat st;
	int			fd = open_path(path, O_RDWR);
	int			save_errno;

	if (fd < 0)
		return errno == ENOENT ? 0 : -1;
	if (fstat(fd, &st) < 0 || unlink(path) < 0)
	{
		save_errno = errno;
		(void) close(fd);
		errno = save_errno;
		return -1;
	}
	pg_atomic_fetch_add_u32(&ab_shared->image_generation, 1);
	if (ftruncate(fd, 0) < 0)
		st.st_blocks = 0;		/* it goes with the last descriptor */
	(void) close(fd);
	return (int64) st.st_blocks * 512;
}

/* ---- input and output ---- */

/* Bytes read until the end of the file, -1 on error. */
static ssize_t
read_some(int fd, char *data, size_t len, off_t offset)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = pg_pread(fd, data + done, len - done, offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		done += n;
	}
	return done;
}

bool
ab_imagefile_read(int fd, void *data, size_t len, off_t offset)
{
	ssize_t		n = read_some(fd, data, len, offset);

	if (n == (ssize_t) len)
		return true;
	if (n >= 0)
		errno = 0;
	return false;
}

bool
ab_imagefile_read_padded(int fd, void *data, size_t len, off_t offset)
{
	ssize_t		n = read_some(fd, data, len, offset);

	if (n < 0)
		return false;
	memset((char *) data + n, 0, len - n);
	return true;
}

bool
ab_imagefile_write(int fd, const void *data, size_t len, off_t offset)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = pg_pwrite(fd, (const char *) data + done, len - done,
								  offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = ENOSPC;
			return false;
		}
		done += n;
	}
	return true;
}

bool
ab_imagefile_write_pages(int fd, const char *const *pages, int n, off_t offset)
{
	struct iovec iov[PG_IOV_MAX];

	for (int done = 0; done < n;)
	{
		int			count = Min(n - done, PG_IOV_MAX);
		ssize_t		written;

		for (int i = 0; i < count; i++)
		{
			iov[i].iov_base = (void *) pages[done + i];
			iov[i].iov_len = BLCKSZ;
		}
		written = pg_pwritev(fd, iov, count, offset + (off_t) done * BLCKSZ);
		if (written < 0 && errno != EINTR)
			return false;

		/* of a page that was written in part, write all */
		if (written < BLCKSZ)
		{
			if (!ab_imagefile_write(fd, pages[done], BLCKSZ,
									offset + (off_t) done * BLCKSZ))
				return false;
			written = BLCKSZ;
		}
		done += written / BLCKSZ;
	}
	return true;
}

bool
ab_imagefile_sync(int fd)
{
	int			rc;

	pgstat_report_wait_start(WAIT_EVENT_DATA_FILE_SYNC);
	do
		rc = pg_fdatasync(fd);
	while (rc != 0 && errno == EINTR);
	pgstat_report_wait_end();
	return rc == 0;
}

bool
ab_imagefile_sync_names(Oid db)
{
	char		path[MAXPGPATH];
	int			fd;
	int			save_errno;
	bool		ok;

	ab_images_dir_path(path, db);
	fd = open_path(path, O_RDONLY);
	if (fd < 0)
		return false;
	ok = pg_fsync(fd) == 0;
	save_errno = errno;
	(void) close(fd);
	errno = save_errno;
	return ok;
}

bool
ab_imagefile_slots(int fd, uint32 *nslots)
{
	struct stat st;
	off_t		blocks;

	if (fstat(fd, &st) < 0)
		return false;
	blocks = (st.st_size + BLCKSZ - 1) / BLCKSZ - 1;
	if (blocks <= 0)
		*nslots = 0;
	else
		*nslots = blocks / AB_GROUP_BLOCKS * AB_GROUP_SLOTS +
			Max(blocks % AB_GROUP_BLOCKS - 1, 0);
	return true;
}

/* ---- the header ---- */

#define CRC_OF(s) ab_crc_without((s), sizeof(*(s)), offsetof(typeof(*(s)), crc))

void
ab_imagefile_format(char block[BLCKSZ], Oid db, AbSnapId epoch)
{
	AbImagesHeader h = {.magic = AB_IMAGES_MAGIC, .version = AB_IMAGES_VERSION,
	.epoch = epoch, .db = db};
	AbImagesSwept s = {0};
	AbImagesPoison p = {0};

	h.crc = CRC_OF(&h);
	s.crc = CRC_OF(&s);
	p.crc = CRC_OF(&p);
	memset(block, 0, BLCKSZ);
	memcpy(block, &h, sizeof(h));
	memcpy(block + AB_SWEPT_OFFSET, &s, sizeof(s));
	memcpy(block + AB_POISON_OFFSET, &p, sizeof(p));
}

static bool
header_is_valid(const AbImagesHeader *h, Oid db, AbSnapId epoch)
{
	return h->magic == AB_IMAGES_MAGIC && h->version == AB_IMAGES_VERSION &&
		h->crc == CRC_OF(h) && AbSnapIdEquals(h->epoch, epoch) && h->db == db;
}

bool
ab_imagefile_header_is_valid(Oid db, AbSnapId epoch)
{
	int			fd = ab_imagefile_epoch(db, epoch);
	AbImagesHeader h;

	return fd >= 0 && ab_imagefile_read_padded(fd, &h, sizeof(h), 0) &&
		header_is_valid(&h, db, epoch);
}

uint64
ab_imagefile_swept(Oid db, AbSnapId epoch)
{
	int			fd = ab_imagefile_epoch(db, epoch);
	AbImagesSwept s;

	if (fd < 0 || !ab_imagefile_read(fd, &s, sizeof(s), AB_SWEPT_OFFSET) ||
		s.crc != CRC_OF(&s))
		return 0;
	return s.living;
}

void
ab_imagefile_set_swept(Oid db, AbSnapId epoch, uint64 living)
{
	int			fd = ab_imagefile_epoch(db, epoch);
	AbImagesSwept s = {.living = living};

	s.crc = CRC_OF(&s);
	if (fd >= 0)
		(void) ab_imagefile_write(fd, &s, sizeof(s), AB_SWEPT_OFFSET);
}

static bool
read_poison(int fd, Oid db, AbSnapId epoch, XLogRecPtr *from)
{
	AbImagesHeader h;
	AbImagesPoison p;

	if (!ab_imagefile_read_padded(fd, &h, sizeof(h), 0) ||
		!ab_imagefile_read_padded(fd, &p, sizeof(p), AB_POISON_OFFSET))
		return false;
	*from = header_is_valid(&h, db, epoch) && p.crc == CRC_OF(&p) ? p.from : 1;
	return true;
}

/* Not through the cache either. */
bool
ab_imagefile_is_unmade(Oid db, AbSnapId epoch)
{
	char		path[MAXPGPATH];
	AbImagesHeader h;
	AbImagesPoison p;
	struct stat st;
	bool		unmade;
	int			fd;

	ab_images_path(path, db, epoch);
	fd = open_path(path, O_RDONLY);
	if (fd < 0)
		return false;
	unmade = fstat(fd, &st) == 0 && st.st_size <= BLCKSZ &&
		ab_imagefile_read_padded(fd, &h, sizeof(h), 0) &&
		ab_imagefile_read_padded(fd, &p, sizeof(p), AB_POISON_OFFSET) &&
		(!header_is_valid(&h, db, epoch) || p.crc != CRC_OF(&p));
	(void) close(fd);
	return unmade;
}

/* Not through the cache: this asks many files, each once. */
bool
ab_imagefile_poisoned_from(Oid db, AbSnapId epoch, XLogRecPtr *from)
{
	char		path[MAXPGPATH];
	int			fd;
	int			save_errno;
	bool		ok;

	ab_images_path(path, db, epoch);
	fd = open_path(path, O_RDONLY);
	if (fd < 0)
		return false;
	ok = read_poison(fd, db, epoch, from);
	save_errno = errno;
	(void) close(fd);
	errno = save_errno;
	return ok;
}

/* One sector over one that is there: needs no space. */
bool
ab_imagefile_poison(Oid db, AbSnapId epoch, XLogRecPtr from)
{
	union
	{
		AbImagesPoison p;
		char		sector[AB_POISON_SECTOR];
	}			u;
	XLogRecPtr	before;
	int			fd = ab_imagefile_epoch(db, epoch);

	if (fd >= 0 && read_poison(fd, db, epoch, &before) && before != 0 && before < from)
		from = before;
	memset(&u, 0, sizeof(u));
	u.p.from = from;
	u.p.crc = CRC_OF(&u.p);
	return fd >= 0 &&
		ab_imagefile_write(fd, u.sector, sizeof(u.sector), AB_POISON_OFFSET) &&
		ab_imagefile_sync(fd) && ab_imagefile_sync_names(db);
}

/* ---- locks ---- */

void
ab_imagefile_lock(Oid db, LWLockMode mode)
{
	if (MyProc != NULL)
		LWLockAcquire(ab_image_lock(db), mode);
}

void
ab_imagefile_unlock(Oid db)
{
	if (MyProc != NULL)
		LWLockRelease(ab_image_lock(db));
}
