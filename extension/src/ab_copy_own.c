/*
 * ab_copy_own.c
 *	  Snapshot of a branch: its own pages stay in its files (live), or are copied; all
 *	  others are named where the snapshot that the branch hangs on has them.
 *
 * In the quiet moment in a backend, or, to copy, in the startup process, as ab_copy.c.
 * So the cost follows what the branch changed, and a page of the new snapshot is
 * still found in one step, however deep the branch is.
 *
 * A live snapshot does not look at the pages: whatever is no hole of an own file is
 * called the branch's own, and a page of it that turns out to be zeros is inherited
 * nevertheless (AbForkEntry.inherited; ab_live.c).
 *
 * A standby that copies has the same pages, but not always in the same places: which
 * own files and hint bits it has is its own affair.  Its manifest must not name a layer
 * that the primary's does not name, since the primary decides when a layer goes (S4).
 * So the record lists the primary's layers, and pages that are in others are copied.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* SEEK_DATA, SEEK_HOLE */
#endif

#include "ab_method.h"

#include <unistd.h>

#include "ab_layer.h"
#include "ab_origin.h"
#include "ab_overlay.h"

#define CHUNK_BLOCKS 128

typedef struct Fork
{
	AbForkEntry e;				/* what the new manifest says */
	const AbForkEntry *base;	/* the old one's entry, or NULL */
	BlockNumber limit;			/* inherited below it, where base has it */
	AbSourceFork *own;			/* own files, or NULL */
} Fork;

typedef struct OwnCapture
{
	AbCapture  *c;
	uint32	   *layer;			/* index in the builder of each layer of the old
								 * manifest, 0 while it was not needed */
	bool	   *may_name;		/* each of them; false in redo, if the primary's
								 * manifest does not */
	char	   *chunk;
	BlockNumber cursor;			/* of the fork at hand, runs are complete below */
	const Fork *fork;
} OwnCapture;

/* ---- which forks ---- */

static AbForkKey
key_of(const AbForkEntry *e)
{
	AbForkKey	key;

	key.spc = e->spc;
	key.rel = e->rel;
	key.fork = e->fork;
	return key;
}

static RelFileNode
node_of(const AbCapture *c, AbForkKey key)
{
	RelFileNode rnode;

	rnode.spcNode = key.spc;
	rnode.dbNode = c->source_db;
	rnode.relNode = key.rel;
	return rnode;
}

/*
 * What the branch inherits of a fork now.  Returns false if the relation was
 * dropped in the branch.
 */
static bool
look_up_limit(const AbCapture *c, Fork *f, AbForkKey key)
{
	AbBranch   *b = ab_branch_lookup(c->source_db);
	AbFork	   *state;

	if (b == NULL)
		elog(ERROR, "database %u is not a branch any more", c->source_db);
	state = ab_fork_lookup(b, node_of(c, key), key.fork);
	f->base = NULL;
	f->limit = 0;
	if (state->dropped)
		return false;
	if (state->entry)
	{
		f->base = ab_manifest_find(c->source_manifest, key);
		f->limit = state->limit;
	}
	return true;
}

/*
 * Length as the branch sees it.  A segment that a crash has left shorter than the
 * limit is extended again at its first use, so it counts as full here.
 */
static BlockNumber
fork_length(const Fork *f)
{
	BlockNumber nblocks = 0;

	if (f->own == NULL)
		return f->limit;
	for (uint32 segno = 0; segno < f->own->nsegments; segno++)
	{
		BlockNumber start = segno * (BlockNumber) RELSEG_SIZE;
		BlockNumber length = f->own->length[segno];

		if (f->limit > start)
			length = Max(length, Min(f->limit - start, (BlockNumber) RELSEG_SIZE));
		nblocks += length;
		if (length < (BlockNumber) RELSEG_SIZE)
			break;
	}
	return Max(nblocks, f->limit);
}

/* Fill in *f; false if the fork does not belong into the snapshot. */
static bool
describe_fork(const AbCapture *c, AbForkKey key, AbSourceFork *own, int nown,
			  Fork *f)
{
	AbForkKey	init = key;
	bool		alive = look_up_limit(c, f, key);

	init.fork = INIT_FORKNUM;
	memset(&f->e, 0, sizeof(f->e));
	f->e.spc = key.spc;
	f->e.rel = key.rel;
	f->e.fork = (int16) key.fork;
	f->own = ab_source_find(own, nown, key);

	/* unlogged relations have all their files in the branch itself */
	if (ab_source_find(own, nown, init))
	{
		if (key.fork != MAIN_FORKNUM && key.fork != INIT_FORKNUM)
			return false;
		f->e.flags = AB_FORK_UNLOGGED;
		f->base = NULL;
		f->limit = 0;
	}
	if (f->own == NULL && (!alive || f->base == NULL))
		return false;
	f->e.nblocks = fork_length(f);
	return true;
}

/* Everything that the old manifest or the branch's directories have. */
static Fork *
forks_that_are_there(const AbCapture *c, AbSourceFork *own, int nown, int *n)
{
	const AbManifest *m = c->source_manifest;
	Fork	   *forks = palloc_extended(sizeof(Fork) * (m->h->nforks + nown + 1),
										MCXT_ALLOC_HUGE);

	*n = 0;
	for (uint32 i = 0; i < m->h->nforks; i++)
		if (describe_fork(c, key_of(&m->forks[i]), own, nown, &forks[*n]))
			(*n)++;
	for (int i = 0; i < nown; i++)
		if (ab_manifest_find(m, own[i].key) == NULL &&
			describe_fork(c, own[i].key, own, nown, &forks[*n]))
			(*n)++;
	return forks;
}

static Fork *
forks_that_wal_names(const AbCapture *c, AbSourceFork *own, int nown, int *n)
{
	Fork	   *forks = palloc_extended(sizeof(Fork) * (c->wal_nforks + 1),
										MCXT_ALLOC_HUGE);

	*n = c->wal_nforks;
	for (int i = 0; i < c->wal_nforks; i++)
	{
		AbForkKey	key = key_of(&c->wal_forks[i]);

		(void) look_up_limit(c, &forks[i], key);
		forks[i].e = c->wal_forks[i];
		forks[i].own = ab_source_find(own, nown, key);
		if (forks[i].e.flags & AB_FORK_UNLOGGED)
			forks[i].base = NULL;
		if (forks[i].base == NULL)
			forks[i].limit = 0;
	}
	return forks;
}

/* ---- runs ---- */

static uint32
layer_index(OwnCapture *oc, uint32 old)
{
	if (oc->layer[old] == 0)
		oc->layer[old] = ab_builder_layer(oc->c->builder,
										  oc->c->source_manifest->layers[old]);
	return oc->layer[old];
}

static bool *
nameable_layers(const AbCapture *c)
{
	const AbManifest *m = c->source_manifest;
	bool	   *may_name = palloc0(sizeof(bool) * m->h->nlayers);

	for (uint32 i = 0; i < m->h->nlayers; i++)
	{
		may_name[i] = c->wal_forks == NULL;
		for (int j = 0; j < c->wal_nlayers && !may_name[i]; j++)
			may_name[i] = AbSnapIdEquals(m->layers[i].id, c->wal_layers[j].id);
	}
	return may_name;
}

/* Inherited pages of a layer that must not be named. */
static void
copy_inherited(OwnCapture *oc, BlockNumber start, BlockNumber count)
{
	PGAlignedBlock page;

	for (BlockNumber i = 0; i < count; i++)
	{
		uint32		position;

		ab_capture_interrupts();
		ab_snapshot_read(oc->c->source_manifest, oc->fork->base, start + i, page.data);
		position = ab_layer_writer_append_page(oc->c->layer, page.data);
		ab_builder_run(oc->c->builder, start + i, 1, 0, position);
	}
}

/* From the cursor up to block end nothing is the branch's own. */
static void
inherit_up_to(OwnCapture *oc, BlockNumber end)
{
	const AbManifest *m = oc->c->source_manifest;
	const AbForkEntry *base = oc->fork->base;
	BlockNumber limit = Min(end, Min(oc->fork->limit, oc->fork->e.nblocks));

	while (base && oc->cursor < limit)
	{
		const AbRun *run = ab_manifest_run(m, base, oc->cursor);
		BlockNumber count = 1;	/* without a run: a zero page */

		if (run)
		{
			count = Min(run->start + run->count, limit) - oc->cursor;
			if (oc->may_name[run->layer])
				ab_builder_run(oc->c->builder, oc->cursor, count,
							   layer_index(oc, run->layer),
							   run->position + (oc->cursor - run->start));
			else
				copy_inherited(oc, oc->cursor, count);
		}
		oc->cursor += count;
	}
	oc->cursor = Max(oc->cursor, end);
}

static void
own_run(OwnCapture *oc, const char *path, BlockNumber first, BlockNumber count,
		BlockNumber relblock)
{
	uint32		position;

	inherit_up_to(oc, relblock);
	position = ab_layer_writer_append_file(oc->c->layer, oc->c->source_fd, path,
										   first, count, relblock);
	ab_builder_run(oc->c->builder, relblock, count, 0, position);
	oc->cursor = relblock + count;
}

/*
 * Blocks that are no hole of the own file, for a live snapshot.  Those at and above the
 * limit follow at the end, holes or not.
 */
static void
live_run(OwnCapture *oc, BlockNumber start, BlockNumber end)
{
	end = Min(end, Min(oc->fork->limit, oc->fork->e.nblocks));
	if (start >= end)
		return;
	inherit_up_to(oc, start);
	ab_builder_run(oc->c->builder, start, end - start, 0, start);
	oc->cursor = end;
}

static BlockNumber
read_chunk(int fd, const char *path, BlockNumber first, BlockNumber count, char *buf)
{
	ssize_t		n = pg_pread(fd, buf, (size_t) count * BLCKSZ, (off_t) first * BLCKSZ);

	if (n < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	return n / BLCKSZ;
}

/* Own pages among blocks [first, end) of an open segment. */
static void
scan_blocks(OwnCapture *oc, const char *path, uint32 segno, BlockNumber first,
			BlockNumber end)
{
	BlockNumber start = segno * (BlockNumber) RELSEG_SIZE;

	while (first < end)
	{
		BlockNumber count = read_chunk(oc->c->source_fd, path, first,
									   Min(end - first, CHUNK_BLOCKS), oc->chunk);
		BlockNumber i = 0;

		if (count == 0)
			break;				/* the file became shorter */
		ab_capture_interrupts();
		while (i < count)
		{
			BlockNumber run = i;

			while (run < count && !ab_page_is_zero(oc->chunk + (size_t) run * BLCKSZ))
				run++;
			if (run > i)
				own_run(oc, path, first + i, run - i, start + first + i);
			i = run + 1;
		}
		first += count;
	}
}

/* An own file is mostly holes: ask the filesystem where the data is. */
static void
scan_segment(OwnCapture *oc, const char *path, uint32 segno, BlockNumber nblocks)
{
	BlockNumber start = segno * (BlockNumber) RELSEG_SIZE;
	int			fd = oc->c->source_fd;
	off_t		end = (off_t) nblocks * BLCKSZ;
	off_t		at = 0;

	while (at < end)
	{
		off_t		data = lseek(fd, at, SEEK_DATA);
		off_t		hole;
		BlockNumber last;

		if (data < 0 && errno == ENXIO)
			break;				/* nothing but holes from here on */
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (data < 0 || hole < 0)
		{
			data = at;			/* it cannot say: look at all of it */
			hole = end;
		}
		data -= data % BLCKSZ;
		if (data >= end)
			break;
		last = (Min(hole, end) + BLCKSZ - 1) / BLCKSZ;
		if (oc->c->live)
			live_run(oc, start + Max(data, at) / BLCKSZ, start + last);
		else
			scan_blocks(oc, path, segno, Max(data, at) / BLCKSZ, last);
		at = (off_t) last * BLCKSZ;
	}
}

static void
capture_own_files(OwnCapture *oc)
{
	const Fork *f = oc->fork;

	for (uint32 segno = 0; segno < f->own->nsegments; segno++)
	{
		BlockNumber start = segno * (BlockNumber) RELSEG_SIZE;
		char		path[MAXPGPATH];

		if (start >= f->e.nblocks || (oc->c->live && start >= f->limit))
			break;
		if (!ab_source_open(oc->c, f->own->key, segno, path))
			continue;
		scan_segment(oc, path, segno,
					 Min(f->e.nblocks - start, (BlockNumber) RELSEG_SIZE));
		ab_source_close(oc->c);
	}
}

static void
capture_fork(OwnCapture *oc, const Fork *f)
{
	ab_builder_fork(oc->c->builder, key_of(&f->e), f->e.flags, f->e.nblocks);
	if ((f->e.flags & AB_FORK_UNLOGGED) && f->e.fork != INIT_FORKNUM)
		return;
	oc->fork = f;
	oc->cursor = 0;
	if (f->own)
		capture_own_files(oc);
	if (!oc->c->live)
	{
		inherit_up_to(oc, f->e.nblocks);
		return;
	}
	inherit_up_to(oc, Min(f->limit, f->e.nblocks));
	ab_builder_inherited(oc->c->builder, Min(f->limit, f->e.nblocks));
	if (f->limit < f->e.nblocks)
		ab_builder_run(oc->c->builder, f->limit, f->e.nblocks - f->limit, 0, f->limit);
}

static void
capture_own(AbCapture *c)
{
	OwnCapture	oc;
	AbSourceFork *own;
	Fork	   *forks;
	int			nown;
	int			n;

	own = ab_source_forks(c, &nown);
	forks = c->wal_forks ? forks_that_wal_names(c, own, nown, &n)
		: forks_that_are_there(c, own, nown, &n);

	oc.c = c;
	oc.layer = palloc0(sizeof(uint32) * c->source_manifest->h->nlayers);
	oc.may_name = nameable_layers(c);
	oc.chunk = palloc(CHUNK_BLOCKS * BLCKSZ);
	for (int i = 0; i < n; i++)
	{
		ab_capture_interrupts();
		capture_fork(&oc, &forks[i]);
	}
	pfree(oc.chunk);
	ab_source_relmap(c);
}

const AbMethod ab_method_own_pages = {"own pages", capture_own};
