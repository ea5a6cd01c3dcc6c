/*
 * ab_shmem.h
 *	  Shared memory of the library: generations, the snapshot table, the
 *	  keeper's request slots.
 *
 * Shared memory is a cache (rule 9): everything in it can be rebuilt from the
 * files of ab_format.h and from pg_database.
 *
 * Locks (all of them leaves, rule 25; extension/README.locking has the order):
 *	  origin_lock	 one of AB_ORIGIN_LOCKS, by database: exclusive to change a
 *					 limit, shared to make an own file that must respect it
 *	  journal_lock	 protects the journal's position and its file
 *	  snap_lock		 protects the snapshot table
 *	  keeper_lock	 protects the request slots
 *	  event_lock	 protects the notes about events
 *	  ready_lock	 protects what was seen in databases (ready[])
 *	  gather_lock	 exclusive to change the file of gathered origins, and to remove
 *					 an origin; an origin lock may be taken under it
 *	  latesync_lock  exclusive while files are made durable late
 *	  guard			 one of AB_GUARDS, by database: shared around every change of
 *					 a file of a plain database, exclusive to begin or end a
 *					 snapshot of it (ab_epoch.h)
 *	  capture_lock	 one of AB_GUARDS, by database: who saves before-images
 *	  image_lock	 one of AB_GUARDS, by database: the index of before-images,
 *					 shared to look up, exclusive to change it
 *	  A process that holds more than one takes them in that order.
 */
#ifndef AB_SHMEM_H
#define AB_SHMEM_H

#include "ab_eventnotes.h"
#include "ab_types.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"

/*
 * Generations.  What a process caches about database D (that it is or is not a
 * branch, its origin, its limits, that it has no own file for some fork) is
 * valid while ab_generation(D) has not moved since it was read.  Whoever
 * changes one of those things on disk bumps it afterwards, before the change
 * may be relied upon.  Databases share counters; a false alarm costs a reload.
 */
#define AB_GENERATIONS 4096
#define AB_ORIGIN_LOCKS 64
#define AB_GUARDS 64
#define AB_HOLE_COUNTERS 4096

typedef struct AbSnapSlot
{
	AbSnapId	id;				/* invalid: slot free */
	Oid			source_db;
	bool		confirmed;
	bool		live;			/* its pages are where they were: before-images */
	bool		poisoned;
	bool		ahead;			/* its files are there, but recovery has not come to
								 * its record: it does not exist yet */
	bool		left;			/* unconfirmed, and nobody is taking it: found at
								 * start, or replayed */
	bool		lent;			/* a branch on it may be a child of another database
								 * than its source: that was reset since, or is an
								 * earlier state of the branch itself */
	bool		outdated;		/* the source has changed, or may have, since */
	uint32		nbranches;		/* origin files that hang on it */
	uint32		catalog_changes;	/* of the source then (ab_agentready.h) */
	XLogRecPtr	clean_upto;		/* WAL up to here does not change the source's
								 * contents after the snapshot */
} AbSnapSlot;

/* A plain database with a living before-image snapshot. */
typedef struct AbParent
{
	Oid			db;				/* 0: slot free */
	bool		all_poisoned;	/* no image can help any of its snapshots */
	AbSnapId	live;			/* the newest of them; changed under the guard */

	/* its files (ab_forknotes.c; the table's spinlock) */
	AbSnapId	listed;			/* has them all, but for the notes since ... */
	uint64		listed_at;		/* ... this moment; 0: there is no such list */
	uint64		listing_at;		/* a list is being made, or was, of this moment */
	uint64		names_changed_at;	/* files came or went then */
	uint64		directories;	/* how they were when they were listed */
} AbParent;

/* Forks that changed their length (ab_forknotes.c). */
typedef struct AbForkNote
{
	Oid			db;
	AbForkKey	key;
	uint64		moment;
} AbForkNote;

#define AB_FORKNOTES 512		/* for each guard */

typedef struct AbForkNotes
{
	slock_t		mutex;
	int			n;
	uint64		lost_at;		/* the table was full then, and emptied */
	pg_atomic_uint64 clock;		/* 1 at first; moved under the spinlock */
	AbForkNote	note[AB_FORKNOTES];
} AbForkNotes;

/* What agents need has been seen in a database (ab_agentready.c). */
typedef struct AbReadyDatabase
{
	Oid			db;				/* 0: free */
	Oid			owner;
	bool		roles;
	uint32		changes;
	uint32		role_changes;
	uint64		age;			/* the lowest makes room */
} AbReadyDatabase;

#define AB_READY_DATABASES 256

typedef enum AbRequestKind
{
	AB_REQ_NONE,
	AB_REQ_ADD_HIDDEN,			/* commit the hidden row of a snapshot */
	AB_REQ_DROP_HIDDEN,			/* commit its removal */
	AB_REQ_PROTECTION,			/* is branch source_db protected? */
	AB_REQ_ADD_BASE,			/* commit the base of a snapshot, made after source_db */
	AB_REQ_DROP_BASE			/* drop the base source_db, if nobody reads in it */
} AbRequestKind;

typedef enum AbRequestState
{
	AB_REQ_FREE,				/* nobody's */
	AB_REQ_FILLING,				/* a backend owns it and is filling it in */
	AB_REQ_WAITING,				/* the keeper may take it */
	AB_REQ_DONE,				/* keeper finished; requester frees it */
	AB_REQ_FAILED,				/* same, with message */
	AB_REQ_ABANDONED			/* requester is gone; the keeper frees it */
} AbRequestState;

typedef struct AbRequest
{
	AbRequestState state;		/* keeper_lock */
	AbRequestKind kind;
	AbSnapId	snapshot;
	Oid			source_db;
	TransactionId frozen_xid;
	MultiXactId min_multi;
	TimestampTz protected_until;	/* answer; DT_NOBEGIN: it is not */
	int			sqlerrcode;
	char		message[256];
} AbRequest;

#define AB_REQUESTS 64

/* What is not durable yet (ab_latesync.c). */
typedef enum AbLateKind
{
	AB_LATE_ORIGIN,				/* the origin file of db */
	AB_LATE_SNAPSHOT,			/* manifest and epoch's file of a snapshot of db */
	AB_LATE_NAME				/* the manifest's last name */
} AbLateKind;

typedef struct AbLateFile
{
	AbLateKind	kind;
	Oid			db;
	AbSnapId	snapshot;		/* not of an origin */
} AbLateFile;

#define AB_LATESYNC_MAX 4096

typedef struct AbLateSync
{
	slock_t		mutex;
	int			n;
	AbLateFile	file[AB_LATESYNC_MAX];
} AbLateSync;

typedef struct AbShared
{
	LWLockPadded *origin_locks; /* AB_ORIGIN_LOCKS of them */
	LWLockPadded *guards;		/* AB_GUARDS of each of these three */
	LWLockPadded *capture_locks;
	LWLockPadded *image_locks;
	LWLock	   *journal_lock;
	LWLock	   *snap_lock;
	LWLock	   *keeper_lock;
	LWLock	   *ready_lock;
	LWLock	   *latesync_lock;
	LWLock	   *gather_lock;
	LWLock	   *event_lock;

	pg_atomic_uint32 layer_generation;	/* bumped when a layer is removed */
	pg_atomic_uint32 image_generation;	/* bumped when files of the image store
										 * or files kept for snapshots go */
	pg_atomic_uint32 poison_generation; /* bumped when a snapshot is poisoned */
	pg_atomic_uint32 generation[AB_GENERATIONS];

	/* databases of which an origin was gathered, by number as above; and in each place one
	 * that has none there, with that count as it was before that was found out: see G7 */
	pg_atomic_uint32 gathered[AB_GENERATIONS];
	pg_atomic_uint64 not_gathered[AB_GENERATIONS];
	pg_atomic_uint32 catalog_changes[AB_GENERATIONS];	/* by database as the
														 * generations */
	pg_atomic_uint64 holes_filled[AB_HOLE_COUNTERS];	/* ab_holes.c */
	pg_atomic_uint32 agent_roles_left;	/* some may be without a database */
	AbReadyDatabase ready[AB_READY_DATABASES];	/* ready_lock */
	uint64		ready_age;		/* ready_lock */

	/* Files of relations being unlinked, by database as the guards (ab_capture.c). */
	pg_atomic_uint32 unlinks_begun[AB_GUARDS];
	pg_atomic_uint32 unlinks_ended[AB_GUARDS];

	AbParent   *parents;		/* nsnapslots of them; snap_lock to take or free one */
	AbForkNotes forknotes[AB_GUARDS];	/* by database as the guards */

	uint32		journal_next;	/* journal_lock */

	/* Kind of the files that recovery works on, until it is consistent (ab_recovery.h). */
	bool		files_ahead;
	bool		mixed_files;

	/* Set once by the startup process before anybody can write (ab_image.h). */
	XLogRecPtr	unadopted_from;
	XLogRecPtr	unadopted_to;

	/* keeper */
	pid_t		keeper_pid;		/* keeper_lock; 0: not running */
	Latch	   *keeper_latch;	/* keeper_lock */
	bool		first_sweep_done;	/* keeper_lock */
	bool		sweep_wanted;	/* keeper_lock; set to have a sweep soon */
	bool		sweep_awaited;	/* keeper_lock; set to have one very soon */
	uint32		sweeps_begun;	/* keeper_lock; one at a time */
	uint32		sweeps_ended;	/* keeper_lock */
	ConditionVariable keeper_cv;	/* broadcast when a request or a sweep is
									 * finished */
	AbRequest	request[AB_REQUESTS];

	/* events of other databases (ab_eventnotes.h) */
	AbNote		notes[AB_NOTES];	/* event_lock */
	uint64		notes_seq;		/* event_lock */
	pg_atomic_uint32 notes_used;	/* not free; changed under event_lock */
	uint64		events_wanted;	/* event_lock; comparisons of all branches with all
								 * events that were asked for, 1 at start ... */
	uint64		events_compared;	/* ... and up to which it was done */
	TimestampTz events_pruned_at;	/* event_lock; when old ones were last looked for */
	ConditionVariable notes_cv; /* broadcast when notes were written */

	/* order of events (ab_eventorder.h) */
	Oid			events_sequence;	/* event_lock to change; 0: nothing is known yet */
	pg_atomic_uint64 events_last;	/* highest id that was taken */
	pg_atomic_uint64 *events_from;	/* MaxBackends of them: from which id on that one
									 * writes; 0: it does not */
	int64		events_notified;	/* the keeper's: last id that was sent */
	pg_atomic_uint32 events_poked;	/* the keeper has been told that there are some */

	AbLateSync latesync;

	/* origin files made since those there were have been looked at (ab_gather.c) */
	pg_atomic_uint32 ungathered;

	/* own files whose names may not be durable; one that cannot be synced counts for ever */
	pg_atomic_uint32 unsynced_names;

	int			nsnapslots;
	AbSnapSlot	snap[FLEXIBLE_ARRAY_MEMBER];	/* snap_lock */
} AbShared;

extern AbShared *ab_shared;		/* NULL: library not preloaded */

extern void ab_shmem_install_hooks(void);

static inline uint32
ab_generation_place(Oid db)
{
	return (db * 2654435761u) >> 20;
}

static inline pg_atomic_uint32 *
ab_generation_counter(Oid db)
{
	return &ab_shared->generation[ab_generation_place(db)];
}

static inline LWLock *
ab_origin_lock(Oid db)
{
	return &ab_shared->origin_locks[db % AB_ORIGIN_LOCKS].lock;
}

static inline LWLock *
ab_guard_lock(Oid db)
{
	return &ab_shared->guards[db % AB_GUARDS].lock;
}

static inline LWLock *
ab_capture_lock(Oid db)
{
	return &ab_shared->capture_locks[db % AB_GUARDS].lock;
}

static inline LWLock *
ab_image_lock(Oid db)
{
	return &ab_shared->image_locks[db % AB_GUARDS].lock;
}

static inline uint32
ab_generation(Oid db)
{
	return pg_atomic_read_u32(ab_generation_counter(db));
}

/* Full barrier: what was written before is seen by whoever sees the bump. */
static inline void
ab_generation_bump(Oid db)
{
	pg_atomic_fetch_add_u32(ab_generation_counter(db), 1);
}

#endif							/* AB_SHMEM_H */
