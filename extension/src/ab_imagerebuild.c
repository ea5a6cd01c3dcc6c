/*
 * ab_imagerebuild.c
 *	  The store of before-images at server start: its index is made anew.
 *
 * In the postmaster, before any other process of the server; no locks.  What counts is
 * what the .images files say: the valid entries of a block, by epoch, of two of
 * the same epoch the later one.  Links that say otherwise are corrected.  A crash on
 * the way leaves nothing that the next start does not do again.
 *
 * An entry that a sync covered is believed.  What was written after the last sync may be
 * there in part: an entry whose page is not what it says is disowned, and what
 * is kept is synced, since from now on it counts.  What should be there and is
 * damaged is not passed over in silence: a page is left to fail when it is read, an
 * entry poisons every snapshot that may have needed it.
 */
#include "ab_images.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/memutils.h"

#include "ab_imagechain.h"
#include "ab_shmem.h"

#define SLOT_LIVE	0x01		/* in its block's chain */
#define SLOT_MOVED	0x02		/* its links were corrected */

typedef struct EpochFile
{
	AbSnapId	epoch;
	uint32		nslots;
	uint8	   *state;			/* of each slot; NULL: not read yet */
} EpochFile;

typedef struct Rebuild
{
	Oid			db;
	bool		backup;
	XLogRecPtr	redo;			/* where replay begins */
	int			nfiles;
	EpochFile  *files;
	EpochFile  *file;			/* being read */
	uint32		covered;		/* slots that its size covers */
	bool		unsynced;		/* it has entries that were not synced, or changed */
	bool		damaged;		/* entries of it are missing, nobody knows which */
	bool		failed;			/* what is to go could not be removed */
} Rebuild;

/* ---- messages ---- */

static void
file_problem(Rebuild *r, AbSnapId epoch, const char *what)
{
	char		path[MAXPGPATH];
	int			save_errno = errno;

	ab_images_path(path, r->db, epoch);
	errno = save_errno;
	if (errno != 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not %s file \"%s\": %m", what, path)));
	else
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not %s file \"%s\": it is damaged", what, path)));
}

/* ---- directory ---- */

static bool
remove_named(Oid db, const char *name)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_IMAGE_DIR "/%u/%s", db, name);
	if (ab_imagefile_remove(path) >= 0)
		return true;
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not remove file \"%s\": %m", path)));
	return false;
}

/* False: an old index is in the way. */
static bool
remove_index(Oid db)
{
	char		path[MAXPGPATH];
	DIR		   *dir;
	struct dirent *de;
	bool		ok = true;

	ab_images_dir_path(path, db);
	dir = AllocateDir(path);
	while ((de = ReadDirExtended(dir, path, LOG)) != NULL)
	{
		if (strncmp(de->d_name, AB_INDEX_PREFIX, strlen(AB_INDEX_PREFIX)) == 0)
			ok = remove_named(db, de->d_name) && ok;
		else if (strncmp(de->d_name, AB_TMP_PREFIX, strlen(AB_TMP_PREFIX)) == 0)
			(void) remove_named(db, de->d_name);
	}
	if (dir == NULL)
		return false;
	FreeDir(dir);
	return ok;
}

/* What was forgotten must not come back: replay makes other files of those names. */
static bool
sync_directory(Oid db)
{
	char		path[MAXPGPATH];
	int			fd;
	bool		ok;

	ab_images_dir_path(path, db);
	do
		fd = BasicOpenFile(path, O_RDONLY);
	while (fd < 0 && errno == EINTR);
	ok = fd >= 0 && pg_fsync(fd) == 0;
	if (!ok)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not fsync directory \"%s\": %m", path)));
	if (fd >= 0)
		(void) close(fd);
	return ok;
}

/*
 * Files of a backup that replay brings again, and files that whoever made them did not
 * come to finish: replay makes them.
 */
static bool
is_to_go(Rebuild *r, AbSnapId epoch)
{
	return epoch.lsn > r->redo &&
		(r->backup || ab_imagefile_is_unmade(r->db, epoch));
}

static void
list_files(Rebuild *r)
{
	int			n;
	AbSnapId   *epochs = ab_imagefile_list(r->db, &n);
	bool		removed = false;

	r->files = palloc0(sizeof(EpochFile) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		if (is_to_go(r, epochs[i]))
		{
			char		path[MAXPGPATH];

			ab_images_path(path, r->db, epochs[i]);
			if (ab_imagefile_remove(path) < 0)
			{
				file_problem(r, epochs[i], "remove");
				r->failed = true;
			}
			removed = true;
		}
		else
			r->files[r->nfiles++].epoch = epochs[i];
	}
	if (removed && !sync_directory(r->db))
		r->failed = true;
	pfree(epochs);
}

/* ---- entries ---- */

static uint8 *
state_of(Rebuild *r, AbImageRef ref)
{
	int			low = 0;
	int			high = r->file - r->files;

	while (low <= high)
	{
		int			mid = (low + high) / 2;
		EpochFile  *f = &r->files[mid];

		if (f->epoch.lsn == ref.lsn && f->epoch.tli == ref.tli)
			return f->state && ref.slot < f->nslots ? &f->state[ref.slot] : NULL;
		if (f->epoch.lsn < ref.lsn ||
			(f->epoch.lsn == ref.lsn && f->epoch.tli < ref.tli))
			low = mid + 1;
		else
			high = mid - 1;
	}
	return NULL;
}

static bool
is_live(Rebuild *r, AbImageRef ref)
{
	uint8	   *state = state_of(r, ref);

	return state && (*state & SLOT_LIVE);
}

/* Are the links of an entry on top of prev as they should be? */
static bool
links_are_right(Rebuild *r, AbImageRef prev, const AbImageEntry *e)
{
	if (!ab_image_ref_equals(e->prev, prev))
		return false;
	if (!AbImageRefIsValid(prev))
		return !AbImageRefIsValid(e->jump);

	/* who stands on something that was moved is moved as well, so jumps do not cross */
	if (*state_of(r, prev) & SLOT_MOVED)
		return false;
	return !AbImageRefIsValid(e->jump) ||
		(e->jump.lsn <= prev.lsn && is_live(r, e->jump));
}

static bool
write_entry(Rebuild *r, AbImageRef at, AbImageEntry *e)
{
	r->unsynced = true;
	return ab_image_entry_write(r->db, at, e);
}

/* Out of its chain, for good. */
static bool
disown(Rebuild *r, AbImageRef at, AbImageEntry *e)
{
	uint8	   *state = state_of(r, at);

	if (state)
		*state = 0;
	e->flags |= AB_IMAGE_DEAD;
	ab_imagefile_set_swept(r->db, ab_image_epoch(at), 0);
	return write_entry(r, at, e);
}

/* Put an entry on top of its block's chain.  False: I/O error. */
static bool
add_entry(Rebuild *r, AbImageRef at, AbImageEntry *e)
{
	AbForkKey	key = {e->spc, e->rel, e->fork};
	AbImageRef	prev;

	if (!ab_image_heads_read(r->db, key, e->block, 1, &prev))
		return false;
	if (prev.lsn == at.lsn)
	{
		AbImageEntry old;

		if (!ab_image_entry_read(r->db, prev, &old))
			return false;
		if (!disown(r, prev, &old))
			return false;
		prev = old.prev;
	}
	if (!links_are_right(r, prev, e))
	{
		ab_image_link(r->db, prev, e);
		if (!write_entry(r, at, e))
			return false;
		*state_of(r, at) |= SLOT_MOVED;
	}
	*state_of(r, at) |= SLOT_LIVE;
	return ab_image_heads_write(r->db, key, e->block, 1, &at);
}

/* ---- one file ---- */

/*
 * Judge an entry that no sync is known to have covered.  What is kept, and what is
 * not, is written again: after a sync that failed the system may take pages
 * for written that are not.
 */
static bool
judge_unsynced(Rebuild *r, AbImageRef at, AbImageEntry *e, bool *keep)
{
	static PGAlignedBlock page;
	int			fd;

	*keep = false;
	if (e->flags & AB_IMAGE_DEAD)
		return write_entry(r, at, e);
	if (!(e->flags & AB_IMAGE_GONE))
	{
		if (!ab_image_page_read(r->db, at, e, page.data))
			return errno == 0 && disown(r, at, e);
		fd = ab_imagefile_epoch(r->db, ab_image_epoch(at));
		if (fd < 0 ||
			!ab_imagefile_write(fd, page.data, BLCKSZ, ab_slot_page_offset(at.slot)))
			return false;
	}
	*keep = true;
	return write_entry(r, at, e);
}

/* Nothing is lost by that yet: who reads the page is told. */
static void
report_page(Rebuild *r, AbImageRef at, const AbImageEntry *e)
{
	static PGAlignedBlock page;

	if (!(e->flags & AB_IMAGE_GONE) && !ab_image_page_read(r->db, at, e, page.data))
		file_problem(r, r->file->epoch, "read");
}

/* Judge one slot and take it in.  False: I/O error. */
static bool
read_slot(Rebuild *r, AbImageRef at, AbImageEntry *e, bool synced)
{
	bool		keep = true;

	if (!ab_image_entry_is_valid(at, e))
	{
		if (synced)
			r->damaged = true;
		if (synced || (ab_image_entry_is_empty(e) && at.slot >= r->covered))
			return true;
		memset(e, 0, sizeof(*e));
		return disown(r, at, e);
	}
	if (!synced && !judge_unsynced(r, at, e, &keep))
		return false;
	if (!keep || (e->flags & AB_IMAGE_DEAD))
		return true;
	if (synced && r->backup)
		report_page(r, at, e);
	return add_entry(r, at, e);
}

static bool
read_groups(Rebuild *r, uint32 ngroups, uint32 *used)
{
	EpochFile  *f = r->file;
	AbImageGroup *g = palloc(sizeof(AbImageGroup));
	bool		ok = true;

	*used = 0;
	for (uint32 group = 0; group < ngroups && ok; group++)
	{
		uint32		synced = 0;

		ok = ab_image_group_read(r->db, f->epoch, group, g);
		if (ok && ab_image_head_is_valid(&g->head))
			synced = g->head.synced;
		for (uint32 i = 0; i < AB_GROUP_SLOTS && ok; i++)
		{
			AbImageRef	at = ab_image_ref(f->epoch, group * AB_GROUP_SLOTS + i);

			ok = read_slot(r, at, &g->entry[i], i < synced);
			if (i < synced)
				*used = at.slot + 1;
		}
	}
	pfree(g);
	return ok;
}

/* All of it is on disk now: say so in the heads. */
static void
note_all_synced(Rebuild *r)
{
	for (uint32 slot = 0; slot < r->covered; slot += AB_GROUP_SLOTS)
		ab_image_group_head_write(r->db, r->file->epoch, slot / AB_GROUP_SLOTS,
								  Min(r->covered - slot, AB_GROUP_SLOTS));
}

/* False: I/O error. */
static bool
read_file(Rebuild *r)
{
	EpochFile  *f = r->file;
	int			fd = ab_imagefile_epoch(r->db, f->epoch);
	struct stat st;
	uint32		used;
	uint32		ngroups;

	if (fd < 0 || fstat(fd, &st) < 0 || !ab_imagefile_slots(fd, &r->covered))
		return false;
	ngroups = st.st_size <= BLCKSZ ? 0 :
		(st.st_size - 1 - BLCKSZ) / ((off_t) AB_GROUP_BLOCKS * BLCKSZ) + 1;
	f->nslots = ngroups * AB_GROUP_SLOTS;
	f->state = palloc_extended(Max(f->nslots, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	r->unsynced = false;
	if (!read_groups(r, ngroups, &used))
		return false;

	fd = ab_imagefile_epoch(r->db, f->epoch);
	if (fd < 0)
		return false;

	/* a copy that ends too early: no append may take slots that were in use */
	if (used > r->covered)
	{
		if (ftruncate(fd, ab_slot_page_offset(used - 1) + BLCKSZ) < 0)
			return false;
		r->covered = used;
		r->unsynced = true;
	}
	/* space that a crash has brought back */
	if (ab_imagefile_swept(r->db, f->epoch) != 0)
		ab_imagefile_set_swept(r->db, f->epoch, 0);
	if (r->unsynced)
	{
		if (!ab_imagefile_sync(fd))
			return false;
		note_all_synced(r);
	}
	return true;
}

/* ---- all of them ---- */

/* Snapshots up to this epoch cannot be read any more. */
static bool
poison_file(Rebuild *r, AbSnapId epoch)
{
	if (ab_images_poison(r->db, epoch, 1))
		return true;
	file_problem(r, epoch, "write");
	return false;
}

static bool
rebuild(Rebuild *r)
{
	bool		ok = true;

	list_files(r);
	if (!remove_index(r->db))
		r->failed = true;
	for (int i = 0; i < r->nfiles && !r->failed; i++)
	{
		r->file = &r->files[i];
		r->damaged = false;
		errno = 0;
		if (!read_file(r))
			r->damaged = true;
		else
			errno = 0;
		if (r->damaged)
		{
			/* later snapshots do not need it */
			file_problem(r, r->file->epoch, "take in all of");
			ok = poison_file(r, r->file->epoch) && ok;
		}
	}
	for (int i = 0; i < r->nfiles && r->failed; i++)
		ok = poison_file(r, r->files[i].epoch) && ok;
	return ok;
}

bool
ab_images_rebuild(Oid db, bool backup, XLogRecPtr redo)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "agent_branch image rebuild",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Rebuild		r = {.db = db, .backup = backup, .redo = redo};
	bool		ok;

	ab_images_forget_poison();
	ok = rebuild(&r);

	/* processes that are forked from here open their own */
	ab_imagefile_close_all();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return ok;
}
