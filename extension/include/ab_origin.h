/*
 * ab_origin.h
 *	  Which databases are branches, and how far their forks still inherit.
 *
 * Every process keeps what it has read, validated by the database's generation
 * (ab_shmem.h).  An AbBranch or AbFork pointer is good until the next call of
 * ab_branch_lookup() in the same process.
 */
#ifndef AB_ORIGIN_H
#define AB_ORIGIN_H

#include "ab_format.h"
#include "ab_manifest.h"
#include "ab_originfile.h"
#include "ab_originpack.h"
#include "ab_originslots.h"

#include "port/atomics.h"

typedef struct AbBranch AbBranch;

typedef struct AbFork
{
	AbForkKey	key;			/* hash key */
	const AbForkEntry *entry;	/* NULL: the snapshot has no such fork, or it
								 * is not inherited (unlogged) */
	BlockNumber limit;			/* blocks below it are inherited while the own
								 * file has zeros or nothing there */
	bool		dropped;		/* tombstone: fork of a relation dropped here */
	bool		own_known;		/* own_exists is valid */
	bool		own_exists;		/* positive for good, negative for this
								 * generation only (rule 22) */
	bool		own_writable;	/* it exists, everybody knows or will see, and its
								 * name is durable */
	uint32		reading;		/* of the slots, that limit and dropped are of */
} AbFork;

/*
 * The branch, or NULL if db is a plain database (or 0, the shared relations).
 * Fast when nothing changed.  In a session of the branch, raises XX001 or 58P01 if
 * its files are damaged; elsewhere the answer is NULL then, too.
 */
static inline AbBranch *ab_branch_lookup(Oid db);

/*
 * After ab_branch_lookup() said NULL: because the branch is damaged, so that what there is
 * for it goes nowhere?
 */
extern bool ab_branch_is_broken(Oid db);

/* Because it will have been deleted or detached when recovery is consistent? */
extern bool ab_branch_passes_for_plain(Oid db);

/*
 * Before a change of a damaged branch is dropped: make it known for good, durably.
 * Raises if that is not possible; then nothing may be dropped.
 */
extern void ab_branch_give_up(Oid db);

/* Raise XX001 if db is a damaged branch. */
extern void ab_branch_require_sound(Oid db, const char *name);

/*
 * Of a damaged branch, in a process of another database, which copies it: raise XX001.  What it
 * inherits would be zeros.  Not in recovery, which passes over what changes it.
 */
extern void ab_branch_refuse_to_read(Oid db);
extern const AbOriginHeader *ab_branch_header(AbBranch *b);
extern const AbManifest *ab_branch_manifest(AbBranch *b);

/* Is what this process knows about the branch still the newest? */
extern bool ab_branch_is_current(AbBranch *b);

/* Never NULL. */
static inline AbFork *ab_fork_lookup(AbBranch *b, RelFileNode rnode, ForkNumber fork);

/*
 * Lower a fork's limit, durably, before returning; raising it is ignored.
 * Callable in a critical section when ab_limit_reserve() was called before by
 * this process outside of it: then it allocates nothing and needs no disk
 * space.  Failure raises an error (in a critical section: PANIC).
 */
extern void ab_limit_lower(AbBranch *b, RelFileNode rnode, ForkNumber fork,
						   BlockNumber limit);

/* Make sure free slots are at hand.  No-op in a critical section. */
static inline void ab_limit_reserve(AbBranch *b);

/* Tombstone for all forks of a relation.  Warns instead of failing (rule 16). */
extern void ab_limit_drop_relation(AbBranch *b, RelFileNode rnode);

/* ---- life of the file ---- */

/*
 * Write the origin file of a new branch and bump its generation.  durably: it is when
 * this returns; otherwise that is ab_latesync.h's.
 */
extern void ab_origin_create(const AbOriginHeader *header, bool durably);

/* Remove it durably and bump; false if there was none, or there still is (WARNING). */
extern bool ab_origin_remove(Oid db);

/* Read and check only the header; false if there is none. */
extern bool ab_origin_read(Oid db, AbOriginHeader *header);

/* OIDs of all branches that have an origin, sorted, palloc'd; *n of them. */
extern Oid *ab_origin_list(int *n);

/*
 * The same for who reads them all: what was gathered when they were listed has been read
 * with it.
 */
typedef struct AbOrigins
{
	int			n;
	Oid		   *dbs;
	const AbOriginHeader **gathered;	/* NULL: it has a file, or is damaged */
	int			nfiles;			/* of their own */
	AbPack		pack;
} AbOrigins;

extern AbOrigins *ab_origin_all(void);
extern bool ab_origins_read(const AbOrigins *o, int i, AbOriginHeader *header);
extern void ab_origins_free(AbOrigins *o);

/*
 * Does an origin have a file of its own that says no more than its header, which is put
 * into *header?  And remove that file, if it still is so and says the same; what is
 * damaged stays.  The file is in need of nobody: the branch has no directory.
 */
extern bool ab_origin_is_bare(Oid db, AbOriginHeader *header);
extern bool ab_origin_unlink_bare(const AbOriginHeader *header);

/* Violations of the file's own rules, as palloc'd text, or NULL. */
extern char *ab_origin_check(Oid db);

/* ---- what the lookups are made of ---- */

/* Forks that are found without the hash table; a power of two. */
#define AB_RECENT_FORKS 32

/* The last answer.  Asked for all the time, of plain databases, too: one cache line. */
typedef struct pg_attribute_aligned(PG_CACHE_LINE_SIZE) AbBranchAnswer
{
	Oid			db;				/* invalid: there is none */
	uint32		generation;
	pg_atomic_uint32 *counter;	/* of that database */
	AbBranch   *branch;
	AbFork	  **recent;			/* some of its forks, by ab_recent_place() */
	uint32		reserved;		/* slots for limits were, when that was held (ab_originslots.h) */
} AbBranchAnswer;

extern AbBranchAnswer ab_branch_answer;

extern AbBranch *ab_branch_lookup_slow(Oid db);
extern AbFork *ab_fork_lookup_slow(AbBranch *b, RelFileNode rnode, ForkNumber fork);
extern void ab_limit_reserve_slow(AbBranch *b);

static inline bool
ab_branch_answer_is_for(Oid db)
{
	return likely(db == ab_branch_answer.db && OidIsValid(db) &&
				  pg_atomic_read_u32(ab_branch_answer.counter) == ab_branch_answer.generation);
}

static inline AbBranch *
ab_branch_lookup(Oid db)
{
	return ab_branch_answer_is_for(db) ? ab_branch_answer.branch : ab_branch_lookup_slow(db);
}

/* Nobody needs to look: true for nothing that is a branch, damaged ones apart. */
static inline bool
ab_database_is_known_plain(Oid db)
{
	return ab_branch_answer_is_for(db) && ab_branch_answer.branch == NULL;
}

static inline uint32
ab_recent_place(Oid rel, ForkNumber fork)
{
	return (rel + 8 * fork) % AB_RECENT_FORKS;
}

/* Forks stay where they are as long as the branch is known. */
static inline AbFork *
ab_fork_lookup(AbBranch *b, RelFileNode rnode, ForkNumber fork)
{
	if (likely(b == ab_branch_answer.branch))
	{
		AbFork	   *f = ab_branch_answer.recent[ab_recent_place(rnode.relNode, fork)];

		if (likely(f != NULL && f->key.rel == rnode.relNode && f->key.fork == fork &&
				   f->key.spc == rnode.spcNode))
			return f;
	}
	return ab_fork_lookup_slow(b, rnode, fork);
}

/* What was reserved is there until the answer changes, or the file that is held. */
static inline void
ab_limit_reserve(AbBranch *b)
{
	if (unlikely(b != ab_branch_answer.branch ||
				 ab_branch_answer.reserved != ab_originslots_held_moment))
		ab_limit_reserve_slow(b);
}

#endif							/* AB_ORIGIN_H */
