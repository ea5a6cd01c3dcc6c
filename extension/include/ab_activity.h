/*
 * ab_activity.h
 *	  What client sessions of branches do, by database, in shared memory.
 *
 * Three places, each summing up the one before it:
 *
 *	  slots		 one for each backend, written by it alone with plain stores
 *	  entries	 one for each database: what has been collected from the slots and is not
 *				 in table branch.activity yet; agent_branch.max_tracked_branches of them
 *	  the table	 written by a worker (ab_activityflush.h)
 *
 * What finds no entry goes to a file (ab_activityfile.h), and from there to the table.
 *
 * A1  Whatever was counted is in exactly one of: the part of a slot that was not
 *	   collected, an entry, the file, the table.  Moves between the first three happen
 *	   under the lock.
 * A2  What a transaction of the worker adds to the table is in the batch, with its
 *	   transaction id, before it can commit.  It is taken from the entries when it is known
 *	   to have committed, by whoever looks next; who reads takes it off if his snapshot
 *	   sees the transaction.  So it does not matter where the worker ends.
 */
#ifndef AB_ACTIVITY_H
#define AB_ACTIVITY_H

#include "ab_types.h"

#include "datatype/timestamp.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/snapshot.h"

/* Sums; they only grow. */
typedef struct AbUse
{
	int64		sessions;		/* that were begun */
	int64		requests;		/* top-level statements */
	int64		active_us;		/* time such a statement was running */
	int64		rows;			/* inserted, updated, deleted */
	int64		bytes;			/* WAL written */
} AbUse;

/*
 * Of one backend.  Without the lock nobody else looks at it; its cache lines are its own,
 * for it is written with every statement.
 */
typedef struct pg_attribute_aligned(PG_CACHE_LINE_SIZE) AbActivitySlot
{
	/* changed under the lock, exclusively */
	Oid			db;				/* invalid: free */
	int			pid;
	TimestampTz origin_at;
	AbUse		collected;

	/* the owner's; readers take them when count is even and has not moved */
	uint32		count;
	bool		leaving;		/* as it was asked to; it may drop temporary tables yet */
	TimestampTz running_since;	/* 0: no statement is running */
	TimestampTz last_active;
	AbUse		use;

	/* Asked to leave, if it has not been active since then; 0: not (ab_suspend.c). */
	TimestampTz leave_if_idle_since;
} AbActivitySlot;

/*
 * Of one database.  All under the lock; who has changed an entry calls ab_activity_touch().
 */
typedef struct AbActivity
{
	Oid			db;				/* hash key */
	int			sessions;		/* slots of it */
	TimestampTz origin_at;		/* created_at of the origin file */
	TimestampTz since;			/* when the first of pending began */
	TimestampTz last_active;	/* DT_NOBEGIN: not known here */
	TimestampTz suspended_at;	/* 0: it is not suspended */
	bool		changed;		/* last_active or suspended_at not in the table */
	bool		stats_put_away; /* its statistics are in branch.suspended_stats */
	uint8		naps;			/* times it was resumed that the table does not know of */
	uint8		suspended_for;	/* AbSuspendReason, the last time */
	Oid			moved_by;		/* role that suspended or resumed it, whichever was last */
	AbUse		pending;
} AbActivity;

/* Of entries, by their numbers, which begin with 1; 0: none. */
typedef struct AbActivityList
{
	uint32		first;
	uint32		last;
} AbActivityList;

typedef enum AbActivityListKind
{
	AB_TO_WRITE,				/* they say what is not in the table */
	AB_TO_MOVE,					/* suspended ones with statistics, or the other way round */
	AB_ACTIVITY_LISTS
} AbActivityListKind;

/* Databases whose changes one transaction writes. */
#define AB_ACTIVITY_BATCH 1000

typedef struct AbActivityShared
{
	LWLock	   *lock;			/* a leaf, but for taking a snapshot under it */
	int			nentries;
	int			nsuspended;		/* read without the lock by who connects */
	int			nto_move;		/* on the list; read without the lock by the worker */
	uint32		nnumbers;		/* of entries that have been used */
	uint32		free;			/* the first number of those that are not any more */
	AbActivityList lists[AB_ACTIVITY_LISTS];
	bool		known;			/* which ones are suspended has been read from the table */
	bool		none_to_evict;	/* since a batch was settled, or an entry became idle */
	uint32		rounds_asked;	/* of the worker, by those who need room ... */
	uint32		rounds_done;	/* ... of which these are over */
	int64		spilled;		/* bytes in the file ... */
	int64		spill_done;		/* ... of which these are in the table */

	/* A2 */
	TransactionId batch_xid;	/* invalid: there is no batch */
	int			nbatch;
	int			nleft_out;		/* that transaction does not write them; after the others */
	int64		batch_spill;	/* bytes of the file in it */
	AbActivity	batch[AB_ACTIVITY_BATCH];	/* in order of db */

	Latch	   *worker;			/* NULL: not running */
	AbActivitySlot *slots;		/* MaxBackends, by backend id - 1 */
} AbActivityShared;

extern AbActivityShared *ab_activity;

extern Size ab_activity_size(void);
extern void ab_activity_init(LWLock *lock);

/* ---- sessions ---- */

/*
 * This backend's slot, for a session of this database that begins now.  NULL: there is
 * none for it.
 */
extern AbActivitySlot *ab_activity_attach(TimestampTz origin_at);

/* Its sums go to the entry or to the file.  At the end of the process. */
extern void ab_activity_detach(void);

/* ---- entries; the caller holds the lock exclusively ---- */

extern AbActivity *ab_activity_find(Oid db);

/* NULL: there is no room. */
extern AbActivity *ab_activity_make(Oid db, TimestampTz origin_at);
extern void ab_activity_remove(Oid db);

/* It has been changed: the lists follow. */
extern void ab_activity_touch(AbActivity *entry);

/* All that the slots have, or those of one database: into the entries, or into the file. */
extern void ab_activity_collect(Oid db);

/*
 * Copies of entries that are to be written, those that have waited longest first; or whose
 * statistics are to be put away or brought back.  How many; at most max.
 */
extern int	ab_activity_list_to_write(AbActivity *into, int max);
extern int	ab_activity_list_to_move(AbActivity *into, int max, bool away);

/* All entries, palloc'd before the lock was taken: room for ab_activity_room(). */
extern int	ab_activity_room(void);
extern int	ab_activity_all(AbActivity *entries, int room);

/* ---- batches (A2) ---- */

extern AbActivity *ab_activity_in_batch(Oid db);

/*
 * Fill the batch with what is not in the table, for a transaction that is going to write
 * it; how many.  Zero: then there is no batch either.  No other may be under way.
 */
extern int	ab_activity_take(TransactionId xid);
extern bool ab_activity_anything(void);

/* Leave out a database: the transaction will not write it. */
extern void ab_activity_leave_out(Oid db);

/* If the transaction of the batch has ended: it is over. */
extern void ab_activity_settle(void);

/*
 * Have the worker write what is not in the table yet, and wait for that, not for long: then
 * entries can make room that could not before.  The caller does not hold the lock.
 */
extern void ab_activity_write_now(void);

/* The worker, around a round: how many were asked for when it began. */
extern uint32 ab_activity_round_begins(void);
extern void ab_activity_round_ends(uint32 asked);

/* ---- reading ---- */

/*
 * What is not in the table as this snapshot sees it, entries, slots and file together.
 * The snapshot is taken meanwhile, and registered.  One database, or all of them.
 */
extern AbActivity *ab_activity_read(Oid db, Snapshot *snapshot, int *n);

/* When was it suspended?  0: it is not. */
extern TimestampTz ab_activity_suspended_at(Oid db);

static inline bool
ab_use_is_zero(const AbUse *use)
{
	return use->sessions == 0 && use->requests == 0 && use->active_us == 0 &&
		use->rows == 0 && use->bytes == 0;
}

static inline void
ab_use_add(AbUse *to, const AbUse *what)
{
	to->sessions += what->sessions;
	to->requests += what->requests;
	to->active_us += what->active_us;
	to->rows += what->rows;
	to->bytes += what->bytes;
}

static inline void
ab_use_subtract(AbUse *from, const AbUse *what)
{
	from->sessions -= what->sessions;
	from->requests -= what->requests;
	from->active_us -= what->active_us;
	from->rows -= what->rows;
	from->bytes -= what->bytes;
}

#endif							/* AB_ACTIVITY_H */
