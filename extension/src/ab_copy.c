/*
 * ab_copy.c
 *	  Snapshot of a plain database: all its pages, cloned or copied, or only their
 *	  places (before-images).
 *
 * In the quiet moment in a backend, or in the startup process.  The caller has
 * flushed the database's buffers and looks afterwards, in WAL, for what was changed
 * meanwhile; so files that vanish or change their length here are no errors.
 */
#include "ab_method.h"

#include "ab_caught.h"
#include "ab_forknotes.h"

/* One segment's blocks into the layer; a segment that is gone is zeros. */
static void
copy_segment(AbCapture *c, AbForkKey key, uint32 segno, BlockNumber nblocks)
{
	BlockNumber start = segno * (BlockNumber) RELSEG_SIZE;
	char		path[MAXPGPATH];
	uint32		position;

	if (!ab_source_open(c, key, segno, path))
		return;
	position = ab_layer_writer_append_file(c->layer, c->source_fd, path, 0,
										   nblocks, start);
	ab_source_close(c);
	ab_builder_run(c->builder, start, nblocks, 0, position);
}

static void
copy_fork(AbCapture *c, AbForkKey key, uint16 flags, BlockNumber nblocks)
{
	ab_builder_fork(c->builder, key, flags, nblocks);

	/* of an unlogged relation only the init fork says anything */
	if ((flags & AB_FORK_UNLOGGED) && key.fork != INIT_FORKNUM)
		return;
	if (c->live)
	{
		if (nblocks > 0)
			ab_builder_run(c->builder, 0, nblocks, 0, 0);
		return;
	}
	for (uint32 segno = 0; nblocks > 0; segno++)
	{
		BlockNumber count = Min(nblocks, (BlockNumber) RELSEG_SIZE);

		copy_segment(c, key, segno, count);
		nblocks -= count;
	}
}

/* As md counts: a segment that is not full is the last. */
static BlockNumber
fork_length(const AbSourceFork *f)
{
	BlockNumber nblocks = 0;

	for (uint32 segno = 0; segno < f->nsegments; segno++)
	{
		nblocks += f->length[segno];
		if (f->length[segno] < (BlockNumber) RELSEG_SIZE)
			break;
	}
	return nblocks;
}

static void
list_everything(AbCapture *c)
{
	int			n;
	AbSourceFork *forks = ab_source_forks(c, &n);

	c->looked_at = n;
	for (int i = 0; i < n; i++)
	{
		AbForkKey	init = forks[i].key;
		uint16		flags;

		init.fork = INIT_FORKNUM;
		flags = ab_source_find(forks, n, init) ? AB_FORK_UNLOGGED : 0;

		/* free space and visibility maps are made anew with the relation */
		if (flags && forks[i].key.fork != MAIN_FORKNUM &&
			forks[i].key.fork != INIT_FORKNUM)
			continue;
		copy_fork(c, forks[i].key, flags, fork_length(&forks[i]));
	}
}

/* ---- or what has changed since the last list (README.before_images, L1 to L4) ---- */

/* NULL, after a message for the log, if it is damaged: everything is listed then. */
static AbManifest *
try_manifest(AbSnapId id)
{
	AbBeforeTry before = ab_before_try();
	AbManifest *volatile m = NULL;

	PG_TRY();
	{
		m = ab_manifest_acquire(id);
	}
	PG_CATCH();
	{
		ErrorData  *e = ab_caught(&before);

		ereport(LOG,
				(errcode(e->sqlerrcode),
				 errmsg_internal("listing all files of a database: %s", e->message)));
		FreeErrorData(e);
	}
	PG_END_TRY();
	return m;
}

/* What is noted of an unlogged relation's other forks, which no list has. */
static bool
is_never_listed(const AbManifest *m, AbForkKey key)
{
	const AbForkEntry *e;

	key.fork = MAIN_FORKNUM;
	e = ab_manifest_find(m, key);
	return e != NULL && (e->flags & AB_FORK_UNLOGGED);
}

/* The present lengths of the forks noted, in *lengths.  False: a list does not tell. */
static bool
measure_noted(const AbCapture *c, const AbManifest *m, const AbForkKey *noted, int n,
			  BlockNumber *lengths)
{
	for (int i = 0; i < n; i++)
	{
		const AbForkEntry *e = ab_manifest_find(m, noted[i]);
		AbSourceFork fork;

		if (e == NULL && is_never_listed(m, noted[i]))
			continue;
		if (e == NULL || !ab_source_fork(c, noted[i], &fork))
			return false;
		lengths[e - m->forks] = fork_length(&fork);
		pfree(fork.length);
	}
	return true;
}

static bool
list_from(AbCapture *c, const AbManifest *m, const AbForkKey *noted, int n)
{
	BlockNumber *lengths = palloc_extended(sizeof(BlockNumber) * (m->h->nforks + 1),
										   MCXT_ALLOC_HUGE);
	bool		told;

	for (uint32 i = 0; i < m->h->nforks; i++)
		lengths[i] = m->forks[i].nblocks;
	told = measure_noted(c, m, noted, n, lengths);
	c->looked_at = n;
	if (told)
		ab_builder_expect(c->builder, m->h->nforks, m->h->nruns + n);
	for (uint32 i = 0; i < m->h->nforks && told; i++)
	{
		const AbForkEntry *e = &m->forks[i];
		AbForkKey	key = {e->spc, e->rel, e->fork};

		copy_fork(c, key, e->flags, lengths[i]);
	}
	pfree(lengths);
	return told;
}

/* Of what the last snapshot lists, only what is noted since can be otherwise. */
static bool
list_what_changed(AbCapture *c)
{
	AbForkKey  *noted;
	AbSnapId	since;
	AbManifest *volatile m;
	volatile bool listed = false;
	bool		usable;
	int			n;

	c->stamp = ab_source_stamp(c);
	c->listed_at = ab_forknotes_listing(c->source_db, c->stamp, &usable, &since,
										&noted, &n);
	m = usable ? try_manifest(since) : NULL;
	if (m == NULL)
		return false;
	PG_TRY();
	{
		listed = list_from(c, m, noted, n);
	}
	PG_FINALLY();
	{
		ab_manifest_release(m);
	}
	PG_END_TRY();
	return listed;
}

static void
copy_what_is_there(AbCapture *c)
{
	c->taken_over = c->live && list_what_changed(c);
	if (!c->taken_over)
		list_everything(c);
}

static void
copy_what_wal_says(AbCapture *c)
{
	for (int i = 0; i < c->wal_nforks; i++)
	{
		const AbForkEntry *e = &c->wal_forks[i];
		AbForkKey	key;

		key.spc = e->spc;
		key.rel = e->rel;
		key.fork = e->fork;
		copy_fork(c, key, e->flags, e->nblocks);
	}
}

static void
capture_files(AbCapture *c)
{
	if (c->wal_forks)
		copy_what_wal_says(c);
	else
		copy_what_is_there(c);
	ab_source_relmap(c);
}

const AbMethod ab_method_files = {"files", capture_files};
