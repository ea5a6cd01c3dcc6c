/*
 * ab_originpack.c
 *	  The file of gathered origins (format: ab_format.h): looking one up, and marking
 *	  entries dead in place.  (Reading all, and writing: ab_originpackall.c.)
 *
 * Any process.  Writers hold gather_lock (ab_gather.c, ab_originlife.c); readers need
 * none: under its name the file is always whole, and all that ever changes in it is the
 * word that says that an entry is dead.  A crash leaves the file as it was before or
 * after, and perhaps a tmp.* file, which server start removes; the word is on disk
 * before whoever writes it goes on.
 *
 * If part of the file is destroyed the sound entries are found all the same, one by
 * one, and the list of keys at its end says whose the others are; or, if that is destroyed
 * too or cut off, or if there is no file any more, the other list of them (ab_originkeys.c).
 */
#include "ab_originpack.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_originkeys.h"
#include "ab_packlayout.h"
#include "ab_shmem.h"

/* ---- looking for one ---- */

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
	return read_at(fd, ab_pack_place(i), e, sizeof(*e));
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
	if (!read_at(fd, 0, &h, sizeof(h)) || !ab_pack_is_whole(&h, length))
		return false;
	high = h.n;

	/* that of a new branch is asked for most, and is higher than all */
	if (high > 0 && (!read_entry(fd, high - 1, e) || !ab_pack_entry_is_sound(e)))
		return false;
	if (high > 0 && e->origin.db < db)
		return true;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (!read_entry(fd, middle, e) || !ab_pack_entry_is_sound(e))
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

	if (read_at(fd, ab_pack_place(n), tail, size))
	{
		memcpy(&crc, tail + n * sizeof(Oid), sizeof(crc));
		if (crc == ab_pack_crc_of_keys(keys, n))
			at = -1;
		for (int i = 0; at == -1 && i < n; i++)
			if (keys[i] == db)
				at = i;
	}
	pfree(tail);
	return at;
}

/*
 * Neither among what can be read nor in the list of keys, which is damaged.  Without the other
 * list it may be one whose entry is lost: before the first, between two others, or behind the
 * last one; but no branch has a number that the server gives to its own.
 */
static AbPackAnswer
answer_of_lost(Oid db, bool may_be)
{
	switch (ab_originkeys_ask(db))
	{
		case AB_KEYS_HAVE:
			return AB_PACK_DAMAGED;
		case AB_KEYS_HAVE_NOT:
			return AB_PACK_NONE;
		case AB_KEYS_UNKNOWN:
			break;
	}
	return may_be && db >= FirstNormalObjectId ? AB_PACK_DAMAGED : AB_PACK_NONE;
}

/*
 * Of a damaged file: all that can be read is looked at.
 */
static bool
find_anyway(int fd, off_t length, Oid db, int *at, AbPackEntry *e, AbPackAnswer *answer)
{
	AbPackHeader h;
	Oid			below = InvalidOid;
	bool		damage = false; /* since that entry */
	bool		may_be = false;
	int			there;
	int			n;

	memset(&h, 0, sizeof(h));
	if (!read_at(fd, 0, &h, sizeof(h)) && errno != 0)
		return false;
	n = ab_pack_entries(&h, length);
	there = Min(n, ab_pack_room(length));
	for (int i = 0; i < there; i++)
	{
		bool		is_read = read_entry(fd, i, e);

		if (!is_read && errno != 0)
			return false;
		if (!is_read || !ab_pack_entry_is_sound(e))
		{
			damage |= !is_read || e->dead != AB_PACK_DEAD;
			continue;
		}
		if (e->origin.db == db)
		{
			*at = i;
			*answer = answer_of(e);
			return true;
		}
		may_be |= damage && below < db && db < e->origin.db;
		below = e->origin.db;
		damage = false;
	}
	damage |= there < n || !ab_pack_header_is_sound(&h);
	may_be |= damage && below < db;
	*at = find_key(fd, n, db);
	if (*at == KEYS_ARE_DAMAGED)
	{
		if (errno != 0)
			return false;
		*answer = answer_of_lost(db, may_be);
	}
	else
		*answer = *at < 0 || (read_entry(fd, *at, e) && e->dead == AB_PACK_DEAD) ?
			AB_PACK_NONE : AB_PACK_DAMAGED;
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

/*
 * The file cannot be opened or read (errno): who cannot be in it goes on (B2).  For others an
 * ERROR, or a WARNING and false.
 */
static bool
goes_on_without(Oid db, const char *verb, int elevel)
{
	int			save_errno = errno;

	if (ab_originkeys_ask(db) == AB_KEYS_HAVE_NOT)
		return true;
	errno = save_errno;
	ereport(elevel,
			(errcode_for_file_access(),
			 errmsg("could not %s file \"%s\": %m", verb, AB_PACK_FILE)));
	return false;
}

/* There is no file: nobody is in it.  Or it is gone. */
static AbPackAnswer
answer_without_file(Oid db)
{
	return ab_originkeys_ask(db) == AB_KEYS_HAVE ? AB_PACK_DAMAGED : AB_PACK_NONE;
}

static AbPackAnswer
find_in_file(Oid db, AbOriginHeader *header, bool *sure)
{
	int			fd = BasicOpenFile(AB_PACK_FILE, O_RDONLY | PG_BINARY);
	AbPackAnswer answer = AB_PACK_NONE;
	AbPackEntry e;
	bool		is_read;
	int			save_errno;
	int			at;

	*sure = fd < 0;
	if (fd < 0 && errno == ENOENT)
		return answer_without_file(db);
	*sure = false;
	if (fd < 0)
	{
		(void) goes_on_without(db, "open", ERROR);
		return AB_PACK_NONE;
	}
	is_read = find_in(fd, db, &at, &e, sure, &answer);
	save_errno = errno;
	close(fd);
	errno = save_errno;
	if (!is_read)
	{
		(void) goes_on_without(db, "read", ERROR);
		return AB_PACK_NONE;
	}
	if (answer == AB_PACK_FOUND)
		*header = e.origin;
	return answer;
}

AbPackAnswer
ab_originpack_find(Oid db, AbOriginHeader *header)
{
	AbPackAnswer answer;
	bool		sure;
	uint32		count;

	/* whoever calls has seen that it has no file: that came before */
	pg_read_barrier();
	if (is_known_not_gathered(db))
		return AB_PACK_NONE;
	count = count_of(db);
	pg_memory_barrier();
	answer = find_in_file(db, header, &sure);
	if (answer == AB_PACK_NONE && sure)
		note_not_gathered(db, count);
	return answer;
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

/* ---- marking one dead ---- */

/* Overwriting a word of a file needs no space. */
static bool
mark_dead(int fd, int at)
{
	uint32		dead = AB_PACK_DEAD;

	if (pg_pwrite(fd, &dead, sizeof(dead), ab_pack_place(at) + offsetof(AbPackEntry, dead)) !=
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

/* Of one that cannot be told from others nothing can be marked. */
static bool
kill_in(int fd, Oid db, bool *there)
{
	AbPackEntry e;
	AbPackAnswer answer;
	bool		sure;
	int			at;

	if (!find_in(fd, db, &at, &e, &sure, &answer))
		return goes_on_without(db, "read", WARNING);
	*there = answer != AB_PACK_NONE;
	if (!*there)
		return true;
	return at >= 0 ? mark_dead(fd, at) : ab_originkeys_remove(db);
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
	if (fd < 0)
		return errno == ENOENT ? ab_originkeys_remove(db) : goes_on_without(db, "open", WARNING);
	done = kill_in(fd, db, there);
	close(fd);
	return done;
}
