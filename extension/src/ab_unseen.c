/*
 * ab_unseen.c
 *	  What the next snapshot of a database does not see any more.
 *
 * Backends that take a snapshot, and the startup process when one is replayed.
 *
 * Who changes a block asks only whether the newest snapshot sees it.  That is enough as
 * long as whatever an older one sees the newest sees too, or an image has.  Truncation leaves
 * images, but files become shorter without it: a power cut takes back an extension that WAL
 * did not know of yet, and a standby never had it.  And where a filesystem has set space aside,
 * it may call a hole in a branch's file data now and a hole later.
 *
 * So before a snapshot is live, it is compared with the one before, and what is missing is
 * saved for that one as it is now: nobody has changed it since, or it would have an image.
 * As a rule that is zeros.  A list that is taken over from the snapshot before needs no
 * comparison: while a server runs only it changes lengths, and truncates with images (L1).
 *
 * Reads manifests, which do not change, without a lock; the guard is taken, shared, for some
 * blocks at a time.  If the newest snapshot ends meanwhile, what was compared was in between:
 * what the one before it sees beyond it has images already.
 */
#include "ab_unseen.h"

#include "access/xlogutils.h"

#include "ab_capture.h"
#include "ab_epoch.h"
#include "ab_method.h"

/* Blocks that are looked up with the guard held. */
#define CHUNK_BLOCKS 1024

static void
save(Oid db, const AbForkEntry *e, BlockNumber from, BlockNumber end)
{
	RelFileNode rnode = {e->spc, db, e->rel};

	while (from < end)
	{
		BlockNumber upto = Min(end, from + CHUNK_BLOCKS);

		ab_capture_interrupts();
		ab_guard_enter(db);
		ab_capture_range(rnode, e->fork, from, upto);
		ab_guard_leave(db);
		from = upto;
	}
}

/* Of [from, end) what is in none of the own runs of n; *next moves on among them. */
static void
save_gaps(Oid db, const AbForkEntry *e, BlockNumber from, BlockNumber end,
		  const AbManifest *n, const AbForkEntry *now, uint32 *next)
{
	for (; now != NULL && *next < now->nruns && from < end; (*next)++)
	{
		const AbRun *run = &n->runs[now->first_run + *next];

		if (run->layer != 0 || run->start + run->count <= from)
			continue;
		if (run->start >= end)
			break;
		save(db, e, from, run->start);
		from = run->start + run->count;
		if (from >= end)
			return;				/* it may reach into the next run as well */
	}
	save(db, e, from, end);
}

/* now: the fork's entry in the next manifest, or NULL. */
static void
save_fork(Oid db, const AbManifest *m, const AbForkEntry *e, const AbManifest *n,
		  const AbForkEntry *now)
{
	uint32		next = 0;

	/* unlogged relations are made anew; files of dropped ones stay as they are (ab_kept.c) */
	if ((e->flags & AB_FORK_UNLOGGED) && e->fork != INIT_FORKNUM)
		return;
	if (now == NULL && !ab_manifest_has_relation(n, e->spc, e->rel))
		return;
	for (uint32 i = 0; i < e->nruns; i++)
	{
		const AbRun *run = &m->runs[e->first_run + i];

		if (run->layer == 0 && run->start < e->nblocks)
			save_gaps(db, e, run->start, Min(run->start + run->count, e->nblocks),
					  n, now, &next);
	}
}

/* Both lists are in the same order. */
static void
compare(Oid db, const AbManifest *m, const AbManifest *n)
{
	uint32		k = 0;

	for (uint32 i = 0; i < m->h->nforks; i++)
	{
		const AbForkEntry *e = &m->forks[i];
		int			order = 1;

		while (k < n->h->nforks &&
			   (order = ab_fork_entry_compare(&n->forks[k], e)) < 0)
			k++;
		save_fork(db, m, e, n, k < n->h->nforks && order == 0 ? &n->forks[k] : NULL);
	}
}

void
ab_unseen_save(Oid db, const AbManifest *next)
{
	const AbManifest *m = NULL;
	int			error = errno;
	AbSnapId	live;
	bool		out_of_memory = false;

	ab_guard_enter(db);
	if (ab_epoch_live(db, &live))
	{
		if (next != NULL)
		{
			m = ab_epoch_view(live);
			error = errno;
		}
		out_of_memory = m == NULL && error == ENOMEM && !InRecovery;
		if (m == NULL && !out_of_memory)
			ab_epoch_poison(db, live, 0, error);
	}
	ab_guard_leave(db);
	if (out_of_memory)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("The manifest of the snapshot before could not be mapped.")));
	if (m != NULL)
		compare(db, m, next);
}
