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
copy_what_is_there(AbCapture *c)
{
	int			n;
	AbSourceFork *forks = ab_source_forks(c, &n);

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
