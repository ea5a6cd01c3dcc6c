/*
 * ab_keptnotes.c
 *	  Files that list relations: those that are kept, and those that go.
 *
 * Records of fixed size, each with its checksum.  One is appended in raw system calls on
 * static memory, since that may be in a process that must not raise; what a failure has
 * left of one is passed over.
 */
#include "ab_keptnotes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/qunique.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"

#include "ab_file.h"
#include "ab_images.h"
#include "ab_shmem.h"

typedef struct Note
{
	Oid			spc;
	Oid			rel;
	uint32		pad;
	pg_crc32c	crc;			/* of the three above */
} Note;

static pg_crc32c
note_crc(const Note *n)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, n, offsetof(Note, crc));
	FIN_CRC32C(crc);
	return crc;
}

static Note
make_note(Oid spc, Oid rel)
{
	Note		n = {spc, rel, 0, 0};

	n.crc = note_crc(&n);
	return n;
}

static void
notes_path(char path[MAXPGPATH], Oid db)
{
	snprintf(path, MAXPGPATH, "%s/%u/dropped", AB_IMAGE_DIR, db);
}

static bool
sync_directory(Oid db)
{
	char		path[MAXPGPATH];
	bool		ok;
	int			fd;

	snprintf(path, sizeof(path), "%s/%u", AB_IMAGE_DIR, db);
	fd = BasicOpenFile(path, O_RDONLY);
	ok = fd >= 0 && pg_fsync(fd) == 0;
	if (fd >= 0)
		(void) close(fd);
	return ok;
}

bool
ab_keptnotes_add(Oid db, Oid spc, Oid rel)
{
	Note		n = make_note(spc, rel);
	char		path[MAXPGPATH];
	struct stat st;
	bool		ok;
	bool		has_size;
	bool		is_new;
	int			fd;
	int			save_errno;

	notes_path(path, db);
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
		return false;

	/* behind whatever a failure has left of a note */
	ok = has_size = fstat(fd, &st) == 0;
	is_new = ok && st.st_size == 0;
	ok = ok && pwrite(fd, &n, sizeof(n), (st.st_size + sizeof(n) - 1) / sizeof(n) *
					  sizeof(n)) == sizeof(n);
	ok = ok && pg_fdatasync(fd) == 0 && (!is_new || sync_directory(db));
	save_errno = errno;

	/* whole it would be believed: the files go now, and the number may be another's then */
	if (!ok && has_size && ftruncate(fd, st.st_size) < 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not truncate file \"%s\": %m", path)));
	(void) close(fd);
	errno = save_errno;
	return ok;
}

static int
compare(const void *a, const void *b)
{
	const AbKeptRelation *x = a;
	const AbKeptRelation *y = b;

	if (x->spc != y->spc)
		return x->spc < y->spc ? -1 : 1;
	return x->rel < y->rel ? -1 : x->rel > y->rel;
}

AbKeptRelation *
ab_keptnotes_read_file(const char *path, int *n)
{
	size_t		len;
	Note	   *notes = (Note *) ab_file_read(path, &len);
	AbKeptRelation *found;

	*n = 0;
	if (notes == NULL)
		return palloc(0);
	found = palloc(sizeof(AbKeptRelation) * (len / sizeof(Note) + 1));
	for (int i = 0; i < (int) (len / sizeof(Note)); i++)
		if (EQ_CRC32C(notes[i].crc, note_crc(&notes[i])))
			found[(*n)++] = (AbKeptRelation) {notes[i].spc, notes[i].rel};
	pfree(notes);
	qsort(found, *n, sizeof(AbKeptRelation), compare);
	*n = qunique(found, *n, sizeof(AbKeptRelation), compare);
	return found;
}

AbKeptRelation *
ab_keptnotes_read(Oid db, int *n)
{
	char		path[MAXPGPATH];

	notes_path(path, db);
	return ab_keptnotes_read_file(path, n);
}

void
ab_keptnotes_write(const char *path, const AbKeptRelation *relations, int n)
{
	Note	   *notes = palloc(sizeof(Note) * Max(n, 1));

	for (int i = 0; i < n; i++)
		notes[i] = make_note(relations[i].spc, relations[i].rel);
	ab_file_write_durably(path, notes, n * sizeof(Note));
	pfree(notes);
}

bool
ab_keptnotes_have(const AbKeptRelation *relations, int n, AbKeptRelation one)
{
	return n > 0 && bsearch(&one, relations, n, sizeof(AbKeptRelation), compare) != NULL;
}

void
ab_keptnotes_forget(Oid db, const AbKeptRelation *gone, int ngone)
{
	char		path[MAXPGPATH];
	AbKeptRelation *notes;
	int			n;
	int			left = 0;

	notes_path(path, db);
	LWLockAcquire(ab_capture_lock(db), LW_EXCLUSIVE);
	notes = ab_keptnotes_read(db, &n);
	for (int i = 0; i < n; i++)
		if (!ab_keptnotes_have(gone, ngone, notes[i]))
			notes[left++] = notes[i];
	if (left > 0)
		ab_keptnotes_write(path, notes, left);
	else
		(void) ab_file_remove_durably(path);
	LWLockRelease(ab_capture_lock(db));
}
