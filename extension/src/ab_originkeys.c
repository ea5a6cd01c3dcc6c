/*
 * ab_originkeys.c
 *	  The databases whose origins are gathered, once more (format: ab_format.h).
 *
 * Looked at when the file of gathered origins is missing, damaged, or cannot be read: it
 * says then which databases may be in there, so that none of them passes for a plain one, and
 * that no other fails because of them (B2, G8).
 *
 * Any process reads it, without a lock and raising nothing: under its name it is whole, and it
 * never changes there.  Who writes it anew holds gather_lock.  A crash leaves it as it was before
 * or after, and perhaps a tmp.* file, which server start removes.
 */
#include "ab_originkeys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "ab_caught.h"
#include "ab_failpoint.h"
#include "ab_file.h"

static size_t
length_with(int n)
{
	return sizeof(AbKeysHeader) + n * sizeof(Oid);
}

static bool
is_sound(const char *file, size_t length)
{
	const AbKeysHeader *h = (const AbKeysHeader *) file;

	return length >= sizeof(*h) && h->magic == AB_KEYS_MAGIC &&
		h->version == AB_KEYS_VERSION && length == length_with(h->n) &&
		h->crc == ab_crc_without(file, length, offsetof(AbKeysHeader, crc));
}

/* Whole and sound, palloc'd, or NULL. */
static char *
read_file(void)
{
	int			fd = BasicOpenFile(AB_KEYS_FILE, O_RDONLY | PG_BINARY);
	char	   *file = NULL;
	struct stat st;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0)
	{
		file = palloc_extended(st.st_size + 1, MCXT_ALLOC_HUGE);
		if (pg_pread(fd, file, st.st_size, 0) != st.st_size ||
			!is_sound(file, st.st_size))
		{
			pfree(file);
			file = NULL;
		}
	}
	close(fd);
	return file;
}

static int
compare_keys(const void *a, const void *b)
{
	Oid			x = *(const Oid *) a;
	Oid			y = *(const Oid *) b;

	return x < y ? -1 : x > y;
}

int
ab_originkeys_place(Oid db, const Oid *keys, int n)
{
	const Oid  *found = bsearch(&db, keys, n, sizeof(Oid), compare_keys);

	return found != NULL ? found - keys : -1;
}

AbKeysAnswer
ab_originkeys_ask(Oid db)
{
	char	   *file = read_file();
	bool		have;

	if (file == NULL)
		return AB_KEYS_UNKNOWN;
	have = ab_originkeys_place(db, (Oid *) (file + sizeof(AbKeysHeader)),
							   ((AbKeysHeader *) file)->n) >= 0;
	pfree(file);
	return have ? AB_KEYS_HAVE : AB_KEYS_HAVE_NOT;
}

Oid *
ab_originkeys_read(int *n)
{
	char	   *file = read_file();
	Oid		   *keys;

	*n = 0;
	if (file == NULL)
		return NULL;
	*n = ((AbKeysHeader *) file)->n;
	keys = palloc_extended(Max(*n, 1) * sizeof(Oid), MCXT_ALLOC_HUGE);
	memcpy(keys, file + sizeof(AbKeysHeader), *n * sizeof(Oid));
	pfree(file);
	return keys;
}

bool
ab_originkeys_any(void)
{
	char	   *file = read_file();
	bool		any = file != NULL && ((AbKeysHeader *) file)->n > 0;

	if (file != NULL)
		pfree(file);
	return any;
}

void
ab_originkeys_write(const Oid *keys, int n)
{
	size_t		length = length_with(n);
	char	   *file = palloc_extended(length, MCXT_ALLOC_HUGE);
	AbKeysHeader *h = (AbKeysHeader *) file;

	h->magic = AB_KEYS_MAGIC;
	h->version = AB_KEYS_VERSION;
	h->n = n;
	memcpy(file + sizeof(*h), keys, n * sizeof(Oid));
	h->crc = ab_crc_without(file, length, offsetof(AbKeysHeader, crc));
	ab_file_write_via(AB_KEYS_TMP, AB_KEYS_FILE, file, length, true);
	ab_file_sync_parent(AB_KEYS_FILE);
	pfree(file);
	AB_FAILPOINT_NO_ERROR("gather-keys-written");
}

void
ab_originkeys_drop(void)
{
	(void) ab_file_remove(AB_KEYS_FILE);
}

static void
write_without(Oid db, const Oid *keys, int n)
{
	Oid		   *others = palloc_extended(n * sizeof(Oid), MCXT_ALLOC_HUGE);
	int			nothers = 0;

	for (int i = 0; i < n; i++)
		if (keys[i] != db)
			others[nothers++] = keys[i];
	ab_originkeys_write(others, nothers);
	pfree(others);
}

bool
ab_originkeys_remove(Oid db)
{
	AbBeforeTry before = ab_before_try();
	int			n;
	Oid		   *keys = ab_originkeys_read(&n);
	volatile bool done = keys == NULL || ab_originkeys_place(db, keys, n) < 0;

	PG_TRY();
	{
		if (!done)
			write_without(db, keys, n);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *e = ab_caught(&before);

		ereport(WARNING, (errcode(e->sqlerrcode), errmsg_internal("%s", e->message)));
		FreeErrorData(e);
	}
	PG_END_TRY();
	if (keys != NULL)
		pfree(keys);
	return done;
}
