/*
 * ab_origin.c
 *	  Which databases are branches, as each process sees it: a cache over the
 *	  origin files (format: ab_format.h; writing them: ab_originslots.c).
 *
 * Any process, the startup process and auxiliary processes included.  What is
 * cached about a database is valid while its generation stands still (I9).  The
 * generation is read before the file, so a change in between is noticed at the
 * next look.  In a critical section nothing is loaded: the entry that the call
 * outside of it left is used as it is.
 *
 * A branch whose origin, manifest or snapshot is damaged answers its own sessions
 * with that error.  To every other process (the startup process, the checkpointer,
 * a backend of another database that needs the buffer) it is no branch but broken:
 * they must go on (B2), so what they have for it is dropped.  The first time, a durable
 * mark says so: should the damage be mended, the branch must not pass for sound.
 *
 * In recovery, though, the files may be from a later time than replay has come to: a
 * branch may lack its snapshot because it is deleted or detached further on in WAL.  Until
 * recovery is consistent its changes are replayed as those of a plain database, which
 * they can be (I4); if it is detached, that is all there will be of it.  If it has its
 * snapshot, but a page it inherits is gone, that page is zeros until then.  Both give it
 * the mark, which is looked at when recovery is consistent.
 */
#include "ab_origin.h"

#include "access/xlog.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "ab_caught.h"
#include "ab_epoch.h"
#include "ab_file.h"
#include "ab_originfile.h"
#include "ab_recovery.h"
#include "ab_shmem.h"
#include "ab_snaptable.h"

/* More branches than this in one process (checkpointer): start over. */
#define MAX_CACHED_BRANCHES 1024

struct AbBranch
{
	Oid			db;				/* hash key */
	uint32		generation;
	bool		is_branch;
	bool		broken;			/* it is one, but its files are damaged */
	bool		as_plain;		/* and for the time being it passes for none */
	bool		given_up;		/* and its mark of lost changes is there */
	AbSnapId	broken_incarnation; /* if it could be read */
	AbSnapId	broken_snapshot;
	/* the rest only if is_branch */
	AbOriginHeader header;
	AbManifest *manifest;
	MemoryContext cxt;			/* forks and slots */
	HTAB	   *forks;
	AbFork	  **recent;			/* some of them, by ab_recent_place() */
	AbLimitSlot *slots;			/* used ones only */
	int			nslots;
	int			nfree;
	uint32		readings;		/* of the slots; a fork knows which it was worked out from */
};

static HTAB *branches = NULL;
static int	cached_branches = 0;
static AbBranch *last = NULL;
AbBranchAnswer ab_branch_answer = {InvalidOid};

static void
forget(AbBranch *b)
{
	if (!b->is_branch)
		return;
	b->is_branch = false;
	if (ab_branch_answer.branch == b)
		memset(&ab_branch_answer, 0, sizeof(ab_branch_answer));
	ab_manifest_release(b->manifest);
	MemoryContextDelete(b->cxt);
	cached_branches--;
}

static void
forget_all(void)
{
	HASH_SEQ_STATUS scan;
	AbBranch   *b;

	hash_seq_init(&scan, branches);
	while ((b = hash_seq_search(&scan)) != NULL)
	{
		forget(b);
		hash_search(branches, &b->db, HASH_REMOVE, NULL);
	}
	last = NULL;
	ab_branch_answer.db = InvalidOid;
}

/* Work out limit and tombstone of a fork from manifest and slots. */
static void
apply_slots(const AbBranch *b, AbFork *f)
{
	f->dropped = false;
	f->limit = f->entry ? f->entry->nblocks : 0;
	for (int i = 0; i < b->nslots; i++)
	{
		const AbLimitSlot *s = &b->slots[i];

		if (s->rel != f->key.rel || s->spc != f->key.spc)
			continue;
		if (s->fork == AB_ALL_FORKS)
			f->dropped = true;
		else if (s->fork == f->key.fork)
			f->limit = Min(f->limit, s->limit);
	}
	if (f->dropped)
		f->limit = 0;
}

/* Same incarnation, new generation: keep what is still known. */
static void
refresh_fork(const AbBranch *b, AbFork *f)
{
	apply_slots(b, f);
	if (!f->own_exists || f->dropped)
	{
		f->own_known = false;
		f->own_writable = false;
	}
	f->reading = b->readings;
}

/*
 * Each fork when it is next looked up: who drops many relations comes here for each, and knows
 * all forks of those that he has dropped.
 */
static void
outdate_forks(AbBranch *b)
{
	b->readings++;
	MemSet(b->recent, 0, sizeof(AbFork *) * AB_RECENT_FORKS);
}

static void
start_entry(AbBranch *b, const AbOriginHeader *header)
{
	AbManifest *manifest = ab_manifest_acquire(header->snapshot);
	HASHCTL		ctl;

	b->header = *header;
	b->manifest = manifest;
	b->cxt = AllocSetContextCreate(TopMemoryContext, "agent_branch branch",
								   ALLOCSET_SMALL_SIZES);
	ctl.keysize = sizeof(AbForkKey);
	ctl.entrysize = sizeof(AbFork);
	ctl.hcxt = b->cxt;
	b->forks = hash_create("agent_branch forks", 64, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	b->recent = MemoryContextAllocZero(b->cxt, sizeof(AbFork *) * AB_RECENT_FORKS);
	b->slots = NULL;
	b->nslots = 0;
	b->readings = 0;
	b->is_branch = true;
	cached_branches++;
}

/* Read the files and make the entry say what they say. */
static void
load_files(AbBranch *b)
{
	AbOriginImage image;

	memset(&b->broken_incarnation, 0, sizeof(AbSnapId));
	memset(&b->broken_snapshot, 0, sizeof(AbSnapId));
	if (!ab_originfile_load(b->db, &image))
	{
		forget(b);
		return;
	}
	b->broken_incarnation = image.header.incarnation;
	b->broken_snapshot = image.header.snapshot;
	if (!ab_recovery_files_are_ahead() &&
		ab_originfile_is_lost(b->db, image.header.incarnation))
	{
		b->given_up = true;
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("branch database %u has lost changes", b->db),
				 errdetail("Its files were damaged for a while, and what was written to it meanwhile was dropped."),
				 errhint("Delete the branch, or reset it to its parent.")));
	}

	if (b->is_branch &&
		!AbSnapIdEquals(b->header.incarnation, image.header.incarnation))
		forget(b);
	if (!b->is_branch)
		start_entry(b, &image.header);
	ab_epoch_require_sound_layers(b->manifest);

	if (b->slots)
		pfree(b->slots);
	b->slots = NULL;
	b->nslots = 0;
	if (image.nslots > 0)
	{
		b->slots = MemoryContextAlloc(b->cxt, image.nslots * sizeof(AbLimitSlot));
		memcpy(b->slots, image.slots, image.nslots * sizeof(AbLimitSlot));
	}
	b->nslots = image.nslots;
	b->nfree = image.nfree;
	ab_originfile_free(&image);
	outdate_forks(b);
}

/* Has a snapshot, or one of those whose layers it names, been removed? */
static bool
snapshot_is_gone(AbSnapId id)
{
	char	   *path = ab_snapshot_path(id, ".manifest");
	size_t		len;
	char	   *image = ab_file_read(path, &len);
	AbManifest	m;
	bool		gone = image == NULL;

	if (image != NULL && ab_manifest_layout(image, len, &m))
	{
		for (uint32 i = 0; i < m.h->nlayers && !gone; i++)
		{
			AbSnapSlot	slot;

			if (OidIsValid(m.layers[i].live_db))
				gone = !ab_snaptable_get(m.layers[i].id, &slot);
			else
			{
				pfree(path);
				path = ab_snapshot_path(m.layers[i].id, ".pages");
				gone = !ab_file_exists(path);
			}
		}
	}
	if (image != NULL)
		pfree(image);
	pfree(path);
	return gone;
}

/* Is it a branch that will have been deleted or detached when recovery is consistent? */
static bool
passes_for_plain(const AbBranch *b)
{
	if (ab_recovery_files_are_mixed())
		return true;
	return ab_recovery_files_are_ahead() && AbSnapIdIsValid(b->broken_snapshot) &&
		snapshot_is_gone(b->broken_snapshot);
}

/* For a process that is not a session of the branch: note the damage, go on. */
static void
load_or_tolerate(AbBranch *b)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext cxt = AllocSetContextCreate(old, "agent_branch load",
											  ALLOCSET_SMALL_SIZES);
	AbBeforeTry before;

	MemoryContextSwitchTo(cxt);
	before = ab_before_try();
	PG_TRY();
	{
		load_files(b);
	}
	PG_CATCH();
	{
		ErrorData  *e = ab_caught_damage(&before);

		forget(b);
		b->broken = true;
		b->as_plain = passes_for_plain(b);
		ereport(b->as_plain ? DEBUG1 : LOG,
				(errcode(e->sqlerrcode),
				 errmsg("branch database %u cannot be used: %s", b->db, e->message)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}

static void
load(AbBranch *b)
{
	uint32		generation = ab_generation(b->db);

	pg_read_barrier();
	b->broken = false;
	b->given_up = false;
	if (MyDatabaseId == b->db)
		load_files(b);
	else
		load_or_tolerate(b);
	b->generation = generation;
}

static AbBranch *
answer(AbBranch *b)
{
	last = b;
	ab_branch_answer.db = b->db;
	ab_branch_answer.generation = b->generation;
	ab_branch_answer.counter = ab_generation_counter(b->db);
	ab_branch_answer.branch = b->is_branch ? b : NULL;
	ab_branch_answer.recent = b->is_branch ? b->recent : NULL;
	ab_branch_answer.reserved = 0;
	return ab_branch_answer.branch;
}

/* Look whether what is known is the newest; before that, for the first time. */
static AbBranch *
lookup_again(Oid db)
{
	AbBranch   *b;
	bool		found;

	if (branches == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(AbBranch);
		ctl.hcxt = TopMemoryContext;
		branches = hash_create("agent_branch branches", 16, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	b = hash_search(branches, &db, HASH_FIND, NULL);
	if (b == NULL)
	{
		if (CritSectionCount == 0 &&
			(cached_branches >= MAX_CACHED_BRANCHES ||
			 hash_get_num_entries(branches) >= 16 * MAX_CACHED_BRANCHES))
			forget_all();
		b = hash_search(branches, &db, HASH_ENTER, &found);
		b->is_branch = false;
		b->broken = false;
		b->generation = ab_generation(db) - 1;	/* nothing known yet */
	}
	if (b->generation != ab_generation(db))
		load(b);
	return answer(b);
}

AbBranch *
ab_branch_lookup_slow(Oid db)
{
	if (db == InvalidOid || ab_shared == NULL)
		return NULL;
	if (CritSectionCount > 0 && last != NULL && last->db == db)
		return last->is_branch ? last : NULL;
	if (CritSectionCount > 0 && branches != NULL)
	{
		AbBranch   *b = hash_search(branches, &db, HASH_FIND, NULL);

		if (b != NULL)
			return b->is_branch ? b : NULL;
	}
	return lookup_again(db);
}

static AbBranch *
broken_entry(Oid db)
{
	AbBranch   *b = last;

	if (branches == NULL)
		return NULL;
	if (b == NULL || b->db != db)
		b = hash_search(branches, &db, HASH_FIND, NULL);
	return b != NULL && b->broken ? b : NULL;
}

bool
ab_branch_is_broken(Oid db)
{
	AbBranch   *b = broken_entry(db);

	return b != NULL && !b->as_plain;
}

bool
ab_branch_passes_for_plain(Oid db)
{
	AbBranch   *b = broken_entry(db);

	return b != NULL && b->as_plain;
}

void
ab_branch_give_up(Oid db)
{
	AbBranch   *b = broken_entry(db);

	if (b == NULL || b->given_up)
		return;
	ab_originfile_mark_lost(db, b->broken_incarnation);
	b->given_up = true;
}

void
ab_branch_require_sound(Oid db, const char *name)
{
	if (ab_branch_lookup(db) == NULL && ab_branch_is_broken(db))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("branch \"%s\" is damaged", name),
				 errdetail("Its origin file or the snapshot it hangs on cannot be read; the server log says why."),
				 errhint("Delete the branch, or reset it to its parent.")));
}

void
ab_branch_refuse_to_read(Oid db)
{
	if (RecoveryInProgress())
		return;

	/* a CREATE DATABASE that fails looks for tablespaces, before this would be done */
	AbortBufferIO();
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("branch database %u is damaged", db),
			 errdetail("Its origin file or the snapshot it hangs on cannot be read; the server log says why."),
			 errhint("Delete the branch, or reset it to its parent.")));
}

const AbOriginHeader *
ab_branch_header(AbBranch *b)
{
	return &b->header;
}

const AbManifest *
ab_branch_manifest(AbBranch *b)
{
	return b->manifest;
}

bool
ab_branch_is_current(AbBranch *b)
{
	return b->generation == ab_generation(b->db);
}

static AbFork *
find_fork(AbBranch *b, const AbForkKey *key)
{
	bool		found;
	AbFork	   *f = hash_search(b->forks, key, HASH_ENTER, &found);

	if (!found)
	{
		f->entry = ab_manifest_find(b->manifest, *key);
		if (f->entry && (f->entry->flags & AB_FORK_UNLOGGED))
			f->entry = NULL;
		f->own_known = false;
		f->own_exists = false;
		f->own_writable = false;
	}
	if (!found || f->reading != b->readings)
		refresh_fork(b, f);
	return f;
}

AbFork *
ab_fork_lookup_slow(AbBranch *b, RelFileNode rnode, ForkNumber fork)
{
	AbForkKey	key;
	AbFork	   *f;

	key.spc = rnode.spcNode;
	key.rel = rnode.relNode;
	key.fork = fork;
	f = find_fork(b, &key);
	b->recent[ab_recent_place(rnode.relNode, fork)] = f;
	return f;
}

/* ---- limits ---- */

void
ab_limit_reserve_slow(AbBranch *b)
{
	bool		held;

	if (CritSectionCount > 0)
		return;

	/* one that has been gathered gets room now, or a truncation would be too late */
	held = ab_originslots_hold(b->db, b->header.incarnation);
	if (!held && errno != ENOENT && !InRecovery)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not make room for the limits of branch database %u: %m", b->db)));
	if (b->nfree < AB_SLOT_RESERVE)
	{
		/* a full disk matters only when nothing is left */
		if (ab_originslots_extend(b->db, b->nfree > 0))
			b->nfree += AB_ORIGIN_BLOCK / sizeof(AbLimitSlot);
	}
	if (held && b->nfree >= AB_SLOT_RESERVE && b == ab_branch_answer.branch)
		ab_branch_answer.reserved = ab_originslots_held_moment;
}

void
ab_limit_lower(AbBranch *b, RelFileNode rnode, ForkNumber fork,
			   BlockNumber limit)
{
	AbFork	   *f = ab_fork_lookup(b, rnode, fork);
	AbLimitSlot slot;

	if (f->entry == NULL || limit >= f->limit)
		return;
	memset(&slot, 0, sizeof(slot));
	slot.spc = rnode.spcNode;
	slot.rel = rnode.relNode;
	slot.fork = fork;
	slot.limit = limit;
	ab_originslots_put(b->db, b->header.incarnation, &slot, ERROR);
	f->limit = limit;
}

void
ab_limit_drop_relation(AbBranch *b, RelFileNode rnode)
{
	AbLimitSlot slot;
	bool		inherited = false;

	for (ForkNumber fork = 0; fork <= MAX_FORKNUM; fork++)
	{
		AbFork	   *f = ab_fork_lookup(b, rnode, fork);

		if (f->entry != NULL && !f->dropped)
			inherited = true;
	}
	if (!inherited)
		return;
	memset(&slot, 0, sizeof(slot));
	slot.spc = rnode.spcNode;
	slot.rel = rnode.relNode;
	slot.fork = AB_ALL_FORKS;
	ab_originslots_put(b->db, b->header.incarnation, &slot, WARNING);
}
