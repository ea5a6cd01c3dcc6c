/*
 * ab_originpack.c
 *	  The file of gathered origins (format: ab_format.h): looking one up, reading all,
 *	  writing the file anew, and marking entries dead in place.
 *
 * Any process.  Writers hold gather_lock (ab_gather.c, ab_originlife.c); readers need
 * none: under its name the file is always whole, and all that ever changes in it is the
 * word that says that an entry is dead.  A crash leaves the file as it was before or
 * after, and perhaps a tmp.* file, which server start removes; the word is on disk
 * before whoever writes it goes on.
 *
 * If part of the file is destroyed the sound entries are found all the same, one by
 * one, and the list of keys at its end says whose the others are.
 */
#include "ab_originpack.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_shmem.h"

#define CHUNK 128				/* entries read at once */

/* ---- layout ---- */

static off_t
place_of(int i)
{
	return AB_PACK_HEADER + (off_t) i * sizeof(AbPackEntry);
}

static size_t
length_with(int n)
{
	return AB_PACK_HEADER + n * (sizeof(AbPackEntry) + sizeof(Oid)) + sizeof(pg_crc32c);
}

/*
 * How many entries a file of that length has, whatever its header says.  If it is no length
 * that such a file can have, it was cut: as many as there is room for.
 */
static int
entries_in(off_t length)
{
	off_t		n = (length - (off_t) length_with(0)) /
		(off_t) (sizeof(AbPackEntry) + sizeof(Oid));

	if (length < (off_t) length_with(0))
		return 0;
	return (off_t) length_with(n) == length ? n :
		(length - AB_PACK_HEADER) / sizeof(AbPackEntry);
}

static bool
header_is_sound(const AbPackHeader *h, off_t length)
{
	return h->magic == AB_PACK_MAGIC && h->version == AB_PACK_VERSION &&
		h->crc == ab_crc_without(h, sizeof(*h), offsetof(AbPackHeader, crc)) &&
		length == (off_t) length_with(h->n);
}

static bool
entry_is_sound(const AbPackEntry *e)
{
	return e->origin.magic == AB_ORIGIN_MAGIC && e->origin.version == AB_ORIGIN_VERSION &&
		e->origin.crc == ab_crc_without(&e->origin, sizeof(e->origin),
										offsetof(AbOriginHeader, crc));
}

static pg_crc32c
crc_of_keys(const Oid *keys, int n)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, keys, n * sizeof(Oid));
	FIN_CRC32C(crc);
	return crc;
}

/* ---- one of them ---- */

/* -1 if there is no file. */
static int
open_pack(int flags)
{
	int			fd = BasicOpenFile(AB_PACK_FILE, flags | PG_BINARY);

	if (fd < 0 && errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", AB_PACK_FILE)));
	return fd;
}

/* Whole; false with errno, 0 if the file is shorter. */
static bool
read_at(int fd, off_t at, void *data, size_t len)
{
	errno = 0;
	return pg_pread(fd, data, len, at) == (ssize_t) len;
}

static bool
read_entry(int fd, int i, AbPackEntry *e)
{
	return read_at(fd, place_of(i), e, sizeof(*e));
}

static AbPackAnswer
answer_of(const AbPackEntry *e)
{
	return e->dead == 0 ? AB_PACK_FOUND :
		e->dead == AB_PACK_DEAD ? AB_PACK_NONE : AB_PACK_DAMAGED;
}

/*
 * The usual way: by halves.  False if something on the way is damaged.  *at: where the entry
 * is, -1: there is none.
 */
static bool
find_quickly(int fd, off_t length, Oid db, int *at, AbPackEntry *e)
{
	AbPackHeader h;
	int			low = 0;
	int			high;

	*at = -1;
	if (!read_at(fd, 0, &h, sizeof(h)) || !header_is_sound(&h, length))
		return false;
	high = h.n;

	/* that of a new branch is asked for most, and is higher than all */
	if (high > 0 && (!read_entry(fd, high - 1, e) || !entry_is_sound(e)))
		return false;
	if (high > 0 && e->origin.db < db)
		return true;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (!read_entry(fd, middle, e) || !entry_is_sound(e))
			return false;
		if (e->origin.db == db)
		{
			*at = middle;
			return true;
		}
		if (e->origin.db < db)
			low = middle + 1;
		else
			high = middle;
	}
	return true;
}

#define KEYS_ARE_DAMAGED (-2)

/* In the list of keys; -1 if it is not there.  errno: that could not be read. */
static int
find_key(int fd, int n, Oid db)
{
	Size		size = n * sizeof(Oid) + sizeof(pg_crc32c);
	char	   *tail = palloc_extended(size, MCXT_ALLOC_HUGE);
	const Oid  *keys = (const Oid *) tail;
	int			at = KEYS_ARE_DAMAGED;
	pg_crc32c	crc;

	if (read_at(fd, place_of(n), tail, size))
	{
		memcpy(&crc, tail + n * sizeof(Oid), sizeof(crc));
		if (crc == crc_of_keys(keys, n))
			at = -1;
		for (int i = 0; at == -1 && i < n; i++)
			if (keys[i] == db)
				at = i;
	}
	pfree(tail);
	return at;
}

/*
 * Of a damaged file: all that can be read is looked at.  If even the list of keys is damaged,
 * what cannot be read between two entries may be of any database that belongs there.
 */
static bool
find_anyway(int fd, off_t length, Oid db, int *at, AbPackEntry *e, AbPackAnswer *answer)
{
	int			n = entries_in(length);
	Oid			below = InvalidOid;
	bool		damage = false; /* since that entry */
	bool		may_be = false;

	for (int i = 0; i < n; i++)
	{
		bool		there = read_entry(fd, i, e);

		if (!there && errno != 0)
			return false;
		if (!there || !entry_is_sound(e))
		{
			damage |= !there || e->dead != AB_PACK_DEAD;
			continue;
		}
		if (e->origin.db == db)
		{
			*at = i;
			*answer = answer_of(e);
			return true;
		}
		may_be |= damage && OidIsValid(below) && below < db && db < e->origin.db;
		below = e->origin.db;
		damage = false;
	}
	*at = find_key(fd, n, db);
	if (*at == KEYS_ARE_DAMAGED && errno != 0)
		return false;
	if (*at >= 0)
		may_be = !(read_entry(fd, *at, e) && e->dead == AB_PACK_DEAD);
	else if (*at == -1)
		may_be = false;
	*answer = may_be ? AB_PACK_DAMAGED : AB_PACK_NONE;
	return true;
}

/*
 * *at: where it is, negative: that cannot be told, or it is not there.  *sure: no damage was
 * met on the way.  False, with errno, if the file could not be read.
 */
static bool
find_in(int fd, Oid db, int *at, AbPackEntry *e, bool *sure, AbPackAnswer *answer)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	*sure = find_quickly(fd, st.st_size, db, at, e);
	if (!*sure)
		return errno == 0 && find_anyway(fd, st.st_size, db, at, e, answer);
	*answer = *at < 0 ? AB_PACK_NONE : answer_of(e);
	return true;
}

/* ---- those that are not in it (G7) ---- */

static uint64
note_of(Oid db, uint32 count)
{
	return (uint64) db << 32 | count;
}

static uint32
count_of(Oid db)
{
	return ab_shared == NULL ? 0 :
		pg_atomic_read_u32(&ab_shared->gathered[ab_generation_place(db)]);
}

static bool
is_known_not_gathered(Oid db)
{
	return ab_shared != NULL &&
		pg_atomic_read_u64(&ab_shared->not_gathered[ab_generation_place(db)]) ==
		note_of(db, count_of(db));
}

static void
note_not_gathered(Oid db, uint32 count)
{
	if (ab_shared != NULL)
		pg_atomic_write_u64(&ab_shared->not_gathered[ab_generation_place(db)],
							note_of(db, count));
}

void
ab_originpack_note_new(Oid db)
{
	pg_atomic_fetch_add_u32(&ab_shared->gathered[ab_generation_place(db)], 1);
}

AbPackAnswer
ab_originpack_find(Oid db, AbOriginHeader *header)
{
	AbPackEntry e;
	AbPackAnswer answer = AB_PACK_NONE;
	bool		sure = true;
	uint32		count;
	int			fd;
	int			at;

	/* whoever calls has seen that it has no file: that came before */
	pg_read_barrier();
	if (is_known_not_gathered(db))
		return AB_PACK_NONE;
	count = count_of(db);
	pg_memory_barrier();
	fd = open_pack(O_RDONLY);
	if (fd >= 0)
	{
		bool		read = find_in(fd, db, &at, &e, &sure, &answer);
		int			save_errno = errno;

		close(fd);
		errno = save_errno;
		if (!read)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", AB_PACK_FILE)));
	}
	if (answer == AB_PACK_FOUND)
		*header = e.origin;
	else if (answer == AB_PACK_NONE && sure)
		note_not_gathered(db, count);
	return answer;
}

/* ---- all of them ---- */

static void
note(AbPack *pack, char *problem)
{
	if (pack->problem == NULL)
		pack->problem = problem;
}

bool
ab_originpack_is_sound(const AbPack *pack, int i)
{
	const AbPackEntry *e = &pack->entries[i];

	return entry_is_sound(e) && e->dead == 0 &&
		(pack->keys == NULL || pack->keys[i] == e->origin.db);
}

Oid
ab_originpack_living(const AbPack *pack, int i)
{
	const AbPackEntry *e = &pack->entries[i];

	if (e->dead == AB_PACK_DEAD)
		return InvalidOid;
	if (pack->keys != NULL)
		return pack->keys[i];
	return entry_is_sound(e) ? e->origin.db : InvalidOid;
}

static void
check_entries(AbPack *pack)
{
	Oid			last = InvalidOid;

	for (int i = 0; i < pack->n && pack->problem == NULL; i++)
	{
		const AbPackEntry *e = &pack->entries[i];

		if (e->dead == AB_PACK_DEAD && pack->keys != NULL)
			continue;
		if (!ab_originpack_is_sound(pack, i))
			note(pack, psprintf("entry %d, of database %u, is damaged", i,
								pack->keys ? pack->keys[i] : InvalidOid));
		else if (e->origin.db <= last)
			note(pack, psprintf("entry %d is out of order", i));
		last = e->origin.db;
	}
}

void
ab_originpack_read(AbPack *pack)
{
	size_t		len;
	char	   *file = ab_file_read(AB_PACK_FILE, &len);
	Size		keys_size;
	pg_crc32c	crc;

	memset(pack, 0, sizeof(*pack));
	if (file == NULL)
		return;
	if (len < length_with(0) || !header_is_sound((AbPackHeader *) file, len))
		note(pack, pstrdup("its header is damaged, or it has not its length"));
	pack->n = entries_in(len);
	pack->entries = palloc_extended(Max(pack->n, 1) * sizeof(AbPackEntry), MCXT_ALLOC_HUGE);
	memcpy(pack->entries, file + Min(len, AB_PACK_HEADER), pack->n * sizeof(AbPackEntry));

	keys_size = pack->n * sizeof(Oid);
	if (len == length_with(pack->n))
	{
		pack->keys = palloc_extended(Max(keys_size, sizeof(Oid)), MCXT_ALLOC_HUGE);
		memcpy(pack->keys, file + place_of(pack->n), keys_size);
		memcpy(&crc, file + place_of(pack->n) + keys_size, sizeof(crc));
		if (crc != crc_of_keys(pack->keys, pack->n))
		{
			pfree(pack->keys);
			pack->keys = NULL;
		}
	}
	if (pack->keys == NULL)
		note(pack, pstrdup("its list of keys is damaged"));
	pfree(file);
	check_entries(pack);
}

void
ab_originpack_free(AbPack *pack)
{
	if (pack->entries)
		pfree(pack->entries);
	if (pack->keys)
		pfree(pack->keys);
	if (pack->problem)
		pfree(pack->problem);
}

bool
ab_originpack_any(void)
{
	int			fd = BasicOpenFile(AB_PACK_FILE, O_RDONLY | PG_BINARY);
	AbPackEntry chunk[CHUNK];
	off_t		at = AB_PACK_HEADER;
	off_t		end;
	bool		found = false;
	struct stat st;
	ssize_t		got = 0;

	if (fd < 0)
		return errno != ENOENT;
	end = fstat(fd, &st) == 0 ? place_of(entries_in(st.st_size)) : 0;
	while (!found && at < end &&
		   (got = pg_pread(fd, chunk, Min(sizeof(chunk), end - at), at)) > 0)
	{
		for (int i = 0; i < got / (ssize_t) sizeof(AbPackEntry) && !found; i++)
			found = chunk[i].dead != AB_PACK_DEAD;
		at += got;
	}
	close(fd);
	return found || got < 0;
}

/* ---- with those in files of their own ---- */

bool
ab_origin_any(void)
{
	DIR		   *dir = opendir(AB_BRANCH_DIR);
	struct dirent *de;
	bool		found = false;

	if (dir == NULL)
		return false;
	while (!found && (de = readdir(dir)) != NULL)
		found = de->d_name[0] >= '0' && de->d_name[0] <= '9';
	closedir(dir);
	return found || ab_originpack_any();
}

/* In this order: whoever gathers an origin removes its file last. */
bool
ab_origin_exists(Oid db)
{
	char	   *path = ab_origin_path(db);
	bool		there = ab_file_exists(path);
	AbOriginHeader header;

	pfree(path);
	return there || ab_originpack_find(db, &header) != AB_PACK_NONE;
}

/* ---- writing ---- */

static char *
image_of(const AbOriginHeader *headers, int n)
{
	char	   *image = palloc_extended(length_with(n), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	AbPackHeader *h = (AbPackHeader *) image;
	AbPackEntry *entries = (AbPackEntry *) (image + AB_PACK_HEADER);
	Oid		   *keys = (Oid *) (image + place_of(n));
	pg_crc32c	crc;

	h->magic = AB_PACK_MAGIC;
	h->version = AB_PACK_VERSION;
	h->n = n;
	h->crc = ab_crc_without(h, sizeof(*h), offsetof(AbPackHeader, crc));
	for (int i = 0; i < n; i++)
	{
		entries[i].origin = headers[i];
		keys[i] = headers[i].db;
	}
	crc = crc_of_keys(keys, n);
	memcpy(keys + n, &crc, sizeof(crc));
	return image;
}

/* A name that is not durable is no ERROR: entries of the new file will be marked dead. */
void
ab_originpack_write(const AbOriginHeader *headers, int n)
{
	if (n > 0)
	{
		char	   *image = image_of(headers, n);

		ab_file_write_via(AB_PACK_TMP, AB_PACK_FILE, image, length_with(n), true);
		pfree(image);
	}
	else if (unlink(AB_PACK_FILE) < 0 && errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", AB_PACK_FILE)));
	AB_FAILPOINT_NO_ERROR("gather-renamed");
	fsync_fname(AB_DIR, true);
}

/* Overwriting a word of a file needs no space. */
static bool
mark_dead(int fd, int at)
{
	uint32		dead = AB_PACK_DEAD;

	if (pg_pwrite(fd, &dead, sizeof(dead), place_of(at) + offsetof(AbPackEntry, dead)) !=
		sizeof(dead))
	{
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", AB_PACK_FILE)));
		return false;
	}
	if (pg_fdatasync(fd) != 0)
	{
		ereport(data_sync_elevel(WARNING),
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", AB_PACK_FILE)));
		return false;
	}
	return true;
}

/* Of one that is damaged, and cannot be told from others, nothing can be marked. */
static bool
kill_in(int fd, Oid db, bool *there)
{
	AbPackEntry e;
	AbPackAnswer answer;
	bool		sure;
	int			at;

	if (!find_in(fd, db, &at, &e, &sure, &answer))
	{
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", AB_PACK_FILE)));
		return false;
	}
	*there = answer != AB_PACK_NONE;
	return !*there || at < 0 || mark_dead(fd, at);
}

bool
ab_originpack_kill(Oid db, bool *there)
{
	int			fd;
	bool		done;

	*there = false;
	if (is_known_not_gathered(db))
		return true;
	fd = BasicOpenFile(AB_PACK_FILE, O_RDWR | PG_BINARY);
	if (fd < 0 && errno == ENOENT)
		return true;
	if (fd < 0)
	{
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", AB_PACK_FILE)));
		return false;
	}
	done = kill_in(fd, db, there);
	close(fd);
	return done;
}
