/*
 * ab_epoch.c
 *	  The newest living before-image snapshot of each database.
 *
 * Any process.  The table of parents is shared memory and made from the table of
 * snapshots.  An entry's snapshot changes under the guard of its database only;
 * snap_lock protects taking and freeing entries, which belong to different guards.
 *
 * What the live snapshot contains is read from its manifest, which every process maps
 * by itself: raw system calls and static memory, for this is asked in critical
 * sections and by the checkpointer, and must not fail there.
 */
#include "ab_epoch.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "ab_file.h"
#include "ab_image.h"
#include "ab_images.h"
#include "ab_manifestfile.h"
#include "ab_poisonmark.h"
#include "ab_snaptable.h"
#include "ab_wal.h"

/* ---- the guard ---- */

void
ab_guard_enter(Oid db)
{
	LWLockAcquire(ab_guard_lock(db), LW_SHARED);
}

void
ab_guard_leave(Oid db)
{
	LWLockRelease(ab_guard_lock(db));
}

void
ab_guard_close(Oid db)
{
	LWLockAcquire(ab_guard_lock(db), LW_EXCLUSIVE);
}

bool
ab_guard_try_close(Oid db, TimestampTz deadline)
{
	while (!LWLockConditionalAcquire(ab_guard_lock(db), LW_EXCLUSIVE))
	{
		CHECK_FOR_INTERRUPTS();
		if (GetCurrentTimestamp() >= deadline)
			return false;
		pg_usleep(100);
	}
	return true;
}

void
ab_guard_open(Oid db)
{
	LWLockRelease(ab_guard_lock(db));
}

/* ---- the table ---- */

/* Our own entry cannot come or go while the guard is held. */
AbParent *
ab_epoch_parent(Oid db)
{
	typedef struct Known
	{
		Oid			db;
		uint32		generation;
		AbParent   *parent;
	} Known;
	static Known known[1024];
	Known	   *k = &known[db % lengthof(known)];
	uint32		generation = ab_generation(db);

	if (k->db == db && k->generation == generation)
		return k->parent;
	k->parent = NULL;
	for (int i = 0; i < ab_shared->nsnapslots; i++)
	{
		if (ab_shared->parents[i].db == db)
		{
			k->parent = &ab_shared->parents[i];
			break;
		}
	}
	k->db = db;
	k->generation = generation;
	return k->parent;
}

static AbParent *
new_parent(Oid db)
{
	AbParent   *p = NULL;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ab_shared->nsnapslots && p == NULL; i++)
		if (ab_shared->parents[i].db == InvalidOid)
			p = &ab_shared->parents[i];
	if (p != NULL)
		p->db = db;
	LWLockRelease(ab_shared->snap_lock);
	return p;
}

bool
ab_epoch_live(Oid db, AbSnapId *id)
{
	const AbParent *p = ab_epoch_parent(db);

	if (likely(p == NULL) || p->all_poisoned)
		return false;
	*id = p->live;
	return true;
}

void
ab_epoch_begin(Oid db, AbSnapId id)
{
	AbParent   *p = ab_epoch_parent(db);

	if (p == NULL)
		p = new_parent(db);
	if (p == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases with snapshots"),
				 errhint("Raise agent_branch.max_snapshots and restart the server.")));
	p->live = id;
	p->all_poisoned = false;
	ab_generation_bump(db);
}

/* Can no image help any living snapshot of db?  snap_lock is held. */
static bool
all_are_poisoned(Oid db)
{
	for (int i = 0; i < ab_shared->nsnapslots; i++)
	{
		const AbSnapSlot *slot = &ab_shared->snap[i];

		if (AbSnapIdIsValid(slot->id) && slot->live && !slot->ahead &&
			slot->source_db == db && !slot->poisoned)
			return false;
	}
	return true;
}

/*
 * snap_lock is held, but perhaps not the guard (ab_latesync.c): the entry may have been given to
 * another database since it was looked up.
 */
static void
set_all_poisoned(AbParent *p, Oid db)
{
	if (p != NULL && p->db == db)
		p->all_poisoned = all_are_poisoned(db);
}

void
ab_epoch_recompute(Oid db)
{
	AbParent   *p = ab_epoch_parent(db);
	AbSnapId	id;
	bool		found;
	bool		all_poisoned;

	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	found = ab_snaptable_newest_live(db, PG_UINT64_MAX, &id);
	all_poisoned = all_are_poisoned(db);
	if (!found && p != NULL)
		memset(p, 0, sizeof(*p));
	LWLockRelease(ab_shared->snap_lock);
	if (found)
	{
		ab_epoch_begin(db, id);
		ab_epoch_parent(db)->all_poisoned = all_poisoned;
	}
	ab_generation_bump(db);
}

void
ab_epoch_load(void)
{
	for (int i = 0; i < ab_shared->nsnapslots; i++)
	{
		const AbSnapSlot *slot = &ab_shared->snap[i];

		if (AbSnapIdIsValid(slot->id) && slot->live)
			ab_epoch_recompute(slot->source_db);
	}
}

/* ---- what the live snapshot contains ---- */

/* One mapping for each parent this process has written for, oldest replaced. */
#define MAX_VIEWS 8

typedef struct View
{
	AbSnapId	id;				/* invalid: unused */
	AbManifest	m;
	uint32		last_use;
} View;

static View views[MAX_VIEWS];
static uint32 view_clock = 0;

/* Names of a manifest: it may be renamed between the first look and the second. */
static const char *const suffixes[] = {".manifest", ".pending", ".manifest"};

static void
drop_view(View *v)
{
	if (AbSnapIdIsValid(v->id))
		(void) munmap(v->m.mapping, v->m.mapped);
	memset(v, 0, sizeof(*v));
}

/* Map the file, which is complete since before the snapshot was live. */
static bool
map_view(View *v, AbSnapId id, const char *suffix)
{
	char		path[MAXPGPATH];
	char		text[AB_SNAPID_TEXT_LEN + 1];
	struct stat st;
	void	   *mapping;
	int			fd;

	ab_snapid_format(id, text);
	snprintf(path, sizeof(path), "%s/%s%s", AB_SNAPSHOT_DIR, text, suffix);
	fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
		return false;
	if (fstat(fd, &st) < 0 || st.st_size < (off_t) sizeof(AbManifestHeader))
	{
		(void) close(fd);
		errno = EIO;
		return false;
	}
	mapping = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	(void) close(fd);
	if (mapping == MAP_FAILED)
		return false;
	if (!ab_manifest_layout(mapping, st.st_size, &v->m) ||
		!AbSnapIdEquals(v->m.h->id, id))
	{
		(void) munmap(mapping, st.st_size);
		errno = EIO;
		return false;
	}
	v->m.mapping = mapping;
	v->m.mapped = st.st_size;
	v->id = id;
	return true;
}

const AbManifest *
ab_epoch_view(AbSnapId id)
{
	View	   *victim = &views[0];

	for (int i = 0; i < MAX_VIEWS; i++)
	{
		if (AbSnapIdIsValid(views[i].id) && AbSnapIdEquals(views[i].id, id))
		{
			views[i].last_use = ++view_clock;
			return &views[i].m;
		}
		if (!AbSnapIdIsValid(views[i].id) ||
			(AbSnapIdIsValid(victim->id) &&
			 (int32) (views[i].last_use - victim->last_use) < 0))
			victim = &views[i];
	}
	drop_view(victim);
	for (int i = 0; i < lengthof(suffixes); i++)
	{
		if (map_view(victim, id, suffixes[i]))
		{
			victim->last_use = ++view_clock;
			return &victim->m;
		}
		if (errno == ENOMEM)
			break;
	}
	return NULL;
}

/*
 * Where it is read from: the mapping; or the file, by a process that may have no more
 * memory for one.
 */
typedef struct Source
{
	const AbManifest *m;		/* NULL: the file */
	AbManifestFile file;
} Source;

static bool
open_source(AbSnapId id, Source *s)
{
	s->m = ab_epoch_view(id);
	if (s->m != NULL)
		return true;
	if (errno != ENOMEM)
		return false;
	for (int i = 0; i < lengthof(suffixes); i++)
		if (ab_manifestfile_open(id, suffixes[i], &s->file))
			return true;
	return false;
}

static void
close_source(Source *s)
{
	int			save_errno = errno;

	if (s->m == NULL)
		ab_manifestfile_close(&s->file);
	errno = save_errno;
}

static bool
find_fork(const Source *s, AbForkKey key, AbForkEntry *e, bool *found)
{
	const AbForkEntry *mapped;

	if (s->m == NULL)
		return ab_manifestfile_find(&s->file, key, e, found);
	mapped = ab_manifest_find(s->m, key);
	*found = mapped != NULL;
	if (*found)
		*e = *mapped;
	return true;
}

/* The entry of a fork of which branches see pages. */
static bool
entry_of(const Source *s, AbForkKey key, AbForkEntry *e, bool *found)
{
	if (!find_fork(s, key, e, found))
		return false;
	/* an unlogged relation is made anew in a branch, from its init fork */
	if (*found && (e->flags & AB_FORK_UNLOGGED) && key.fork != INIT_FORKNUM)
		*found = false;
	return true;
}

static bool
run_of(const Source *s, const AbForkEntry *e, BlockNumber block, AbRun *run, bool *found)
{
	const AbRun *mapped;

	if (s->m == NULL)
		return ab_manifestfile_run(&s->file, e, block, run, found);
	mapped = ab_manifest_run(s->m, e, block);
	*found = mapped != NULL;
	if (*found)
		*run = *mapped;
	return true;
}

bool
ab_epoch_nblocks(AbSnapId id, AbForkKey key, BlockNumber *nblocks)
{
	Source		s;
	AbForkEntry e;
	bool		found;
	bool		ok;

	if (!open_source(id, &s))
		return false;
	ok = entry_of(&s, key, &e, &found);
	close_source(&s);
	if (ok)
		*nblocks = found ? e.nblocks : 0;
	return ok;
}

bool
ab_epoch_sees(AbSnapId id, AbForkKey key, BlockNumber block, bool *sees)
{
	Source		s;
	AbForkEntry e;
	AbRun		run;
	bool		found;
	bool		ok;

	if (!open_source(id, &s))
		return false;
	ok = entry_of(&s, key, &e, &found);
	if (ok && found)
	{
		found = block < e.nblocks;
		if (found)
			ok = run_of(&s, &e, block, &run, &found);
	}
	close_source(&s);
	if (ok)
		*sees = found && run.layer == 0;
	return ok;
}

bool
ab_epoch_is_of_branch(AbSnapId id)
{
	Source		s;
	bool		of_branch;

	if (!open_source(id, &s))
		return false;
	of_branch = s.m != NULL ? s.m->layers[0].of_branch : s.file.own.of_branch;
	close_source(&s);
	return of_branch;
}

bool
ab_epoch_has_relation(AbSnapId id, Oid spc, Oid rel, bool *known)
{
	Source		s;
	bool		found = false;

	*known = open_source(id, &s);
	if (!*known)
		return false;
	for (int fork = 0; fork <= MAX_FORKNUM && *known && !found; fork++)
	{
		AbForkKey	key = {spc, rel, fork};
		AbForkEntry e;

		*known = find_fork(&s, key, &e, &found);
	}
	close_source(&s);
	return *known && found;
}

/* ---- poison ---- */

/* Whoever knows of branches of a snapshot that was poisoned looks again. */
static void
forget_branches(void)
{
	for (int i = 0; i < AB_GENERATIONS; i++)
		pg_atomic_fetch_add_u32(&ab_shared->generation[i], 1);
}

/*
 * For base backups that have the store as it was before, and the page that is overwritten as
 * it will be.
 */
static void
log_loss(Oid db, AbSnapId live, XLogRecPtr newest_image)
{
	static PGAlignedBlock page;
	AbForkKey	key = {InvalidOid, InvalidOid, MAIN_FORKNUM};

	if (!XLogIsNeeded() || !ab_image_allowed())
		return;
	memcpy(page.data, &newest_image, sizeof(newest_image));
	(void) ab_wal_before_image(live, db, key, 0, AB_IMAGE_LOST, page.data);
}

/* Is it sound so far, and would it need a page without an image after newest_image? */
static bool
loses_page(const AbSnapSlot *slot, Oid db, AbSnapId live, XLogRecPtr newest_image)
{
	return AbSnapIdIsValid(slot->id) && slot->live && slot->source_db == db &&
		!slot->poisoned && slot->id.lsn > newest_image && slot->id.lsn <= live.lsn;
}

static bool
any_loses_page(Oid db, AbSnapId live, XLogRecPtr newest_image)
{
	bool		any = false;

	LWLockAcquire(ab_shared->snap_lock, LW_SHARED);
	for (int i = 0; i < ab_shared->nsnapslots && !any; i++)
		any = loses_page(&ab_shared->snap[i], db, live, newest_image);
	LWLockRelease(ab_shared->snap_lock);
	return any;
}

void
ab_epoch_poison(Oid db, AbSnapId live, XLogRecPtr newest_image, int error)
{
	AbParent   *p = ab_epoch_parent(db);
	bool		durable = ab_images_poison(db, live, newest_image + 1);
	bool		news = false;

	/* before anybody knows: then pages are overwritten without asking */
	if (any_loses_page(db, live, newest_image))
		log_loss(db, live, newest_image);
	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ab_shared->nsnapslots; i++)
	{
		AbSnapSlot *slot = &ab_shared->snap[i];

		if (!loses_page(slot, db, live, newest_image))
			continue;
		if (!durable)
			(void) ab_poisonmark_make(slot->id);
		slot->poisoned = true;
		news = true;
	}
	set_all_poisoned(p, db);
	LWLockRelease(ab_shared->snap_lock);

	/* before the page is overwritten: see ab_epoch_require_sound() */
	pg_atomic_fetch_add_u32(&ab_shared->poison_generation, 1);
	if (news)
	{
		forget_branches();
		errno = error;
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("snapshots of database %u cannot be kept any longer", db),
				 errdetail("An old page could not be saved: %s.",
						   error ? strerror(error) : "the stored image is damaged"),
				 errhint("Their branches answer with an error; delete or reset them. The database itself is not affected.")));
	}
}

bool
ab_epoch_poison_one(AbSnapId id, int error)
{
	Oid			db = InvalidOid;
	AbSnapSlot	known;
	AbParent   *p;

	if (!ab_poisonmark_make(id))
		return false;

	/* of it alone; while images are still saved for it */
	if (ab_snaptable_get(id, &known))
		log_loss(known.source_db, id, id.lsn - 1);
	LWLockAcquire(ab_shared->snap_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ab_shared->nsnapslots; i++)
		if (AbSnapIdIsValid(ab_shared->snap[i].id) &&
			AbSnapIdEquals(ab_shared->snap[i].id, id))
		{
			ab_shared->snap[i].poisoned = true;
			db = ab_shared->snap[i].source_db;
		}
	p = OidIsValid(db) ? ab_epoch_parent(db) : NULL;
	set_all_poisoned(p, db);
	LWLockRelease(ab_shared->snap_lock);
	pg_atomic_fetch_add_u32(&ab_shared->poison_generation, 1);
	forget_branches();
	errno = error;
	ereport(LOG,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a snapshot of database %u cannot be kept any longer", db),
			 errdetail("Its manifest could not be made durable: %m."),
			 errhint("Its branches answer with an error; delete or reset them. The database itself is not affected.")));
	return true;
}

static void
raise_poisoned(AbSnapId id)
{
	size_t		len;
	char	   *why = ab_file_read(ab_snapshot_path(id, ".poisoned"), &len);

	if (why != NULL)
		why[len] = '\0';
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the snapshot this branch hangs on cannot be read any more"),
			 why != NULL && len > 0 ? errdetail("%s", why) :
			 errdetail("The old content of a page of its parent could not be saved before the parent overwrote it."),
			 errhint("Delete the branch, or reset it to its parent.")));
}

/*
 * Pages that this server never had, because it could not copy them when the primary did
 * (ab_snapshot_redo.c): replay must hear of it before it needs one.
 */
static void
require_copied(AbSnapId id)
{
	char	   *mark = ab_snapshot_path(id, ".poisoned");
	bool		lost = ab_file_exists(mark);

	pfree(mark);
	if (lost)
		raise_poisoned(id);
}

void
ab_epoch_require_sound_layers(const AbManifest *m)
{
	bool		in_recovery = RecoveryInProgress();

	for (uint32 i = 0; i < m->h->nlayers; i++)
		if (m->layers[i].live_db != InvalidOid)
			ab_epoch_require_sound(m->layers[i].id);
		else if (in_recovery)
			require_copied(m->layers[i].id);
}

void
ab_epoch_require_sound(AbSnapId id)
{
	static AbSnapId sound;		/* known to be, at this generation */
	static uint32 seen = 0;
	uint32		generation;
	AbSnapSlot	slot;

	pg_read_barrier();
	generation = pg_atomic_read_u32(&ab_shared->poison_generation);
	if (generation == seen && AbSnapIdEquals(sound, id))
		return;
	if (!ab_snaptable_get(id, &slot))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the snapshot this branch hangs on is not known to the server"),
				 errdetail("There was no room for it in the table of snapshots, so its pages are not kept."),
				 errhint("Delete the branch, or reset it to its parent.")));
	if (slot.poisoned)
		raise_poisoned(id);
	sound = id;
	seen = generation;
}
