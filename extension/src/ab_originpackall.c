/*
 * ab_originpackall.c
 *	  The file of gathered origins (format: ab_format.h) as a whole: reading all of it, and
 *	  writing it anew.
 *
 * Any process.  Who writes holds gather_lock (ab_gather.c); who reads needs none, since the
 * file is whole under its name.  A crash leaves the file as it was before or after, and perhaps
 * a tmp.* file, which server start removes.
 */
#include "ab_originpack.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_originkeys.h"
#include "ab_packlayout.h"

#define CHUNK 128				/* entries read at once */

/* ---- reading ---- */

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

	return ab_pack_entry_is_sound(e) && e->dead == 0 &&
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
	return ab_pack_entry_is_sound(e) ? e->origin.db : InvalidOid;
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

/* The keys that are in the file itself. */
static void
read_keys(AbPack *pack, const char *file, size_t length)
{
	size_t		size = pack->n * sizeof(Oid);
	pg_crc32c	crc;

	if (length != ab_pack_length(pack->n))
		return;
	memcpy(&crc, file + ab_pack_place(pack->n) + size, sizeof(crc));
	if (crc != ab_pack_crc_of_keys((const Oid *) (file + ab_pack_place(pack->n)), pack->n))
		return;
	pack->keys = palloc_extended(Max(size, sizeof(Oid)), MCXT_ALLOC_HUGE);
	memcpy(pack->keys, file + ab_pack_place(pack->n), size);
}

/*
 * Put the entries that can be read where the other list of keys has them; of the others it says
 * that they are missing.  One that is dead may be in neither.
 */
static void
take_other_keys(AbPack *pack)
{
	AbPackEntry *entries;
	Oid		   *keys;
	int			n;

	keys = ab_originkeys_read(&n);
	if (keys == NULL)
		return;
	entries = palloc_extended(Max(n, 1) * sizeof(AbPackEntry),
							  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < pack->n; i++)
	{
		const AbPackEntry *e = &pack->entries[i];
		int			at;

		if (!ab_pack_entry_is_sound(e))
			continue;
		at = ab_originkeys_place(e->origin.db, keys, n);
		if (at >= 0)
			entries[at] = *e;
		else if (e->dead != AB_PACK_DEAD)
		{
			/* it is not of this file */
			pfree(entries);
			pfree(keys);
			return;
		}
	}
	if (pack->entries != NULL)
		pfree(pack->entries);
	pack->entries = entries;
	pack->keys = keys;
	pack->n = n;
}

/* Is whatever is not there to be read dead, or in a file of its own? */
static bool
is_complete(const AbPack *pack)
{
	for (int i = 0; i < pack->n && pack->keys != NULL; i++)
	{
		char	   *path;
		bool		there;

		if (pack->entries[i].dead == AB_PACK_DEAD || ab_originpack_is_sound(pack, i))
			continue;
		path = ab_origin_path(pack->keys[i]);
		there = ab_file_exists(path);
		pfree(path);
		if (!there)
			return false;
	}
	return pack->keys != NULL;
}

static void
read_from(AbPack *pack, const char *file, size_t length)
{
	AbPackHeader h;
	int			there;

	memset(&h, 0, sizeof(h));
	memcpy(&h, file, Min(length, sizeof(h)));
	if (!ab_pack_is_whole(&h, length))
		note(pack, pstrdup("its header is damaged, or it has not its length"));
	pack->n = ab_pack_entries(&h, length);
	there = Min(pack->n, ab_pack_room(length));
	read_keys(pack, file, length);
	if (pack->keys == NULL)
	{
		note(pack, pstrdup("its list of keys is damaged"));
		pack->n = there;
	}
	pack->entries = palloc_extended(Max(there, 1) * sizeof(AbPackEntry), MCXT_ALLOC_HUGE);
	memcpy(pack->entries, file + Min(length, AB_PACK_HEADER), there * sizeof(AbPackEntry));
}

/* Without a file nobody is in it; or it is gone, and who was is only in the other list. */
void
ab_originpack_read(AbPack *pack)
{
	size_t		length;
	char	   *file = ab_file_read(AB_PACK_FILE, &length);

	memset(pack, 0, sizeof(*pack));
	if (file != NULL)
		read_from(pack, file, length);
	if (pack->keys == NULL)
		take_other_keys(pack);
	if (file != NULL)
	{
		pfree(file);
		check_entries(pack);
	}
	else if (pack->n > 0 && is_complete(pack))
		pack->n = 0;			/* they were to be gathered, and have files of their own */
	else if (pack->n > 0)
		note(pack, pstrdup("it is missing"));
	pack->complete = pack->problem == NULL || is_complete(pack);
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
	AbPackHeader h;
	off_t		at = AB_PACK_HEADER;
	off_t		end;
	bool		found;
	struct stat st;
	ssize_t		got = 0;

	if (fd < 0)
		return errno != ENOENT || ab_originkeys_any();
	found = fstat(fd, &st) < 0 || pg_pread(fd, &h, sizeof(h), 0) != sizeof(h) ||
		!ab_pack_is_whole(&h, st.st_size);
	end = found ? 0 : ab_pack_place(h.n);
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

/* ---- writing ---- */

static char *
image_of(const AbOriginHeader *headers, int n)
{
	char	   *image = palloc_extended(ab_pack_length(n), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	AbPackHeader *h = (AbPackHeader *) image;
	AbPackEntry *entries = (AbPackEntry *) (image + AB_PACK_HEADER);
	Oid		   *keys = (Oid *) (image + ab_pack_place(n));
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
	crc = ab_pack_crc_of_keys(keys, n);
	memcpy(keys + n, &crc, sizeof(crc));
	return image;
}

static void
write_keys(const AbOriginHeader *headers, int n)
{
	Oid		   *keys = palloc_extended(n * sizeof(Oid), MCXT_ALLOC_HUGE);

	for (int i = 0; i < n; i++)
		keys[i] = headers[i].db;
	ab_originkeys_write(keys, n);
	pfree(keys);
}

/*
 * G8: the other list of keys first.  A name that is not durable is no ERROR: entries of the new
 * file will be marked dead.
 */
void
ab_originpack_write(const AbOriginHeader *headers, int n)
{
	if (n > 0)
	{
		char	   *image = image_of(headers, n);

		write_keys(headers, n);
		ab_file_write_via(AB_PACK_TMP, AB_PACK_FILE, image, ab_pack_length(n), true);
		pfree(image);
	}
	else
	{
		ab_originkeys_drop();
		(void) ab_file_remove(AB_PACK_FILE);
	}
	AB_FAILPOINT_NO_ERROR("gather-renamed");
	fsync_fname(AB_DIR, true);
}
