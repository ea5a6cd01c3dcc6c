/*
 * ab_quotatable.h
 *	  Quotas in shared memory, and how much of them is used.
 *
 * Table branch.quota_list in the control database is what lasts; branches are made in
 * sessions of other databases as well, which cannot read it.  The keeper loads it at
 * start, and whoever changes it applies the change here when it commits.
 */
#ifndef AB_QUOTATABLE_H
#define AB_QUOTATABLE_H

#include "ab_types.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/snapshot.h"

/* Both: branches of a database that a role owns.  None: all of the cluster. */
typedef struct AbQuotaKey
{
	Oid			role;
	Oid			parent;
} AbQuotaKey;

#define AB_NO_LIMIT (-1)

typedef struct AbQuotaLimits
{
	int64		branches;
	int64		own_bytes;
	int64		per_minute;
	int64		snapshots;
} AbQuotaLimits;

typedef enum AbQuotaCount
{
	AB_COUNT_UNKNOWN,			/* nobody has counted yet */
	AB_COUNT_BEGUN,				/* somebody counts; commits since his snapshot are
								 * added up */
	AB_COUNT_KNOWN				/* and kept up to date by each commit */
} AbQuotaCount;

typedef struct AbQuota
{
	AbQuotaKey	key;
	AbQuotaLimits limits;
	AbQuotaCount state;
	uint32		epoch;			/* number of the count */
	int64		count;			/* branches that are committed */
	int64		reserved;		/* by transactions that run */
	TimestampTz minute;			/* begin of this minute; creations in it ... */
	int64		in_minute;
	int64		in_last_minute; /* ... and in the one before */
	int64		own_bytes;
	TimestampTz measured_at;	/* 0: never */
	int64		measured_in;	/* microseconds that it took */
} AbQuota;

/* Of each backend, while it commits. */
typedef struct AbQuotaCommit
{
	TransactionId xid;
	uint32		seen_by;		/* counts from this epoch on have seen it; 0: none */
} AbQuotaCommit;

typedef struct AbQuotaShared
{
	LWLock	   *lock;
	pg_atomic_uint32 loaded;	/* 0 until the table has been read after start */
	pg_atomic_uint32 nquotas;	/* beside that of the cluster */
	pg_atomic_uint32 counted;	/* 0 while no count is known or begun */
	uint32		epoch;			/* lock */
	ConditionVariable cv;		/* broadcast when places become free, when a count is
								 * over, and when the table has been read */
	AbQuotaCommit commits[FLEXIBLE_ARRAY_MEMBER];	/* lock; MaxBackends of them */
} AbQuotaShared;

extern AbQuotaShared *ab_quotas;

/* For ab_shmem.c. */
extern Size ab_quotatable_size(void);
extern void ab_quotatable_init(LWLock *lock);

/* Is there any quota but that of the cluster? */
extern bool ab_quotatable_any(void);

/* Copy a quota; false if there is none of that key. */
extern bool ab_quotatable_get(AbQuotaKey key, AbQuota *quota);

/* Room for a quota, without limits as yet; false if there is none. */
extern bool ab_quotatable_make_room(AbQuotaKey key);

/* Its limits from now on; NULL: it goes.  Never fails where there is room. */
extern void ab_quotatable_set(AbQuotaKey key, const AbQuotaLimits *limits);

/* All keys, palloc'd. */
extern AbQuotaKey *ab_quotatable_keys(int *n);

/* What is wanted of a quota. */
typedef struct AbQuotaWish
{
	AbQuotaKey	key;
	int64		max_branches;	/* AB_NO_LIMIT: no place is reserved */
	int64		max_per_minute;
	int64		own_reserved;	/* places that this transaction has */
	int64		own_freed;		/* branches that it has deleted */
} AbQuotaWish;

typedef enum AbQuotaAnswer
{
	AB_QUOTA_GRANTED,
	AB_QUOTA_FULL,				/* used: branches that are there */
	AB_QUOTA_BUSY,				/* would be if those that run commit; used: with them */
	AB_QUOTA_TOO_FAST,			/* used: in this minute; seconds: try again then */
	AB_QUOTA_UNCOUNTED
} AbQuotaAnswer;

typedef struct AbQuotaReply
{
	AbQuotaAnswer answer;
	int			wish;			/* the one that was not granted */
	int64		used;
	int			seconds;
} AbQuotaReply;

/* Grant all wishes for n places each, or none. */
extern void ab_quotatable_reserve(const AbQuotaWish *wishes, int nwishes, int n,
								  AbQuotaReply *reply);
extern void ab_quotatable_release(AbQuotaKey key, int64 n);

/* Creations of the last minute, where they are limited. */
extern int64 ab_quotatable_recent(AbQuotaKey key);

/*
 * Counting: begin takes the snapshot to count in and returns the number of the count, or
 * 0 if it need not be done; end gives the result (-1: none was found).
 */
extern uint32 ab_quotatable_begin_count(AbQuotaKey key, Snapshot *snapshot);
extern void ab_quotatable_end_count(AbQuotaKey key, uint32 epoch, int64 count);

/* Have everything counted anew. */
extern void ab_quotatable_forget_counts(void);

/* Around the commit of a transaction that changes counts: before, and after it. */
extern void ab_quotatable_before_commit(void);
extern void ab_quotatable_change(AbQuotaKey key, int64 n);
extern void ab_quotatable_after_commit(void);

extern void ab_quotatable_set_measure(AbQuotaKey key, int64 bytes, int64 usecs);

#endif							/* AB_QUOTATABLE_H */
