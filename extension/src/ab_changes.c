/*
 * ab_changes.c
 *	  Which blocks of a database changed since a snapshot.
 *
 * Backends in the control database; the files are other databases'.  A branch: its own
 * pages, and all at or above a fork's limit.  A database that the snapshot was taken of:
 * pages with an image of that snapshot's epoch or a later one (E1), and pages that it
 * did not have in its own file then and has now.  What cannot be told for sure counts as
 * changed, so answers are right whatever happens meanwhile, as long as the databases are
 * there, and only what was written before is looked for.
 *
 * Locks: the image lock in shared mode, for some blocks at a time.  Nothing is written
 * but dirty buffers; a crash leaves nothing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* SEEK_DATA, SEEK_HOLE */
#endif

#include "ab_changes.h"

#include <unistd.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/fd.h"
#include "storage/smgr.h"

#include "ab_imagechain.h"
#include "ab_imagefile.h"
#include "ab_images.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_page.h"
#include "ab_parentfile.h"
#include "ab_storagefiles.h"

/* Blocks whose newest images are looked up under one lock. */
#define HEADS_AT_ONCE 512

struct AbKinship
{
	AbManifest *base;
	Oid			branches[2];	/* those of the two that are branches */
	int			nbranches;
	bool		of_source;		/* the source may have changed, too: it is one of the
								 * two, or they hang on different snapshots of it */
};

static void
add_range(AbBlockRanges *ranges, BlockNumber start, BlockNumber end)
{
	if (start >= end)
		return;
	if (ranges->n > 0 && ranges->range[ranges->n - 1].end == start)
	{
		ranges->range[ranges->n - 1].end = end;
		return;
	}
	if (ranges->n == ranges->max)
	{
		ranges->max = Max(64, ranges->max * 2);
		ranges->range = ranges->range == NULL
			? palloc_array(AbBlockRange, ranges->max)
			: repalloc_array(ranges->range, AbBlockRange, ranges->max);
	}
	ranges->range[ranges->n].start = start;
	ranges->range[ranges->n].end = end;
	ranges->n++;
}

/* ---- own pages ---- */

/*
 * Stretches of a segment that are no holes; all of it if the filesystem cannot say.  Where
 * single pages were written each is one question: where a stretch ends is asked when it
 * has a second page.
 */
static void
add_data(int fd, BlockNumber first, BlockNumber nblocks, AbBlockRanges *ranges)
{
	off_t		end = (off_t) nblocks * BLCKSZ;
	off_t		at = 0;

	while (at < end)
	{
		off_t		data = lseek(fd, at, SEEK_DATA);
		off_t		hole = data;

		if (data < 0 && errno == ENXIO)
			return;				/* nothing but holes from here on */
		if (data >= 0)
			hole = at > 0 && data == at ? lseek(fd, data, SEEK_HOLE) : data + 1;
		if (data < 0 || hole < 0)
		{
			data = at;
			hole = end;
		}
		hole = Min(TYPEALIGN(BLCKSZ, hole), end);
		add_range(ranges, first + Min(data, end) / BLCKSZ, first + hole / BLCKSZ);
		at = Max(hole, at + BLCKSZ);
	}
}

/* Blocks below the limit that may be the branch's own. */
static void
add_own_pages(Oid db, Oid spc, Oid rel, BlockNumber limit, AbBlockRanges *ranges)
{
	RelFileNode rnode = {spc, db, rel};

	for (BlockNumber first = 0; first < limit; first += (BlockNumber) RELSEG_SIZE)
	{
		char		path[MAXPGPATH];
		int			fd;

		ab_relation_path(path, rnode, MAIN_FORKNUM, first / (BlockNumber) RELSEG_SIZE);
		fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
		if (fd < 0 && errno == ENOENT)
			return;				/* it has none */
		if (fd < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not open file \"%s\": %m", path)));
		add_data(fd, first, Min(limit - first, (BlockNumber) RELSEG_SIZE), ranges);
		CloseTransientFile(fd);
		CHECK_FOR_INTERRUPTS();
	}
}

BlockNumber
ab_relation_blocks(Oid db, Oid spc, Oid rel)
{
	RelFileNode rnode = {spc, db, rel};
	SMgrRelation reln = smgropen(rnode, InvalidBackendId);
	BlockNumber nblocks = 0;

	if (smgrexists(reln, MAIN_FORKNUM))
		nblocks = smgrnblocks(reln, MAIN_FORKNUM);
	smgrclose(reln);
	return nblocks;
}

/* ---- since a snapshot ---- */

/*
 * Own pages of a branch and what is behind its limit.  False if the file is not the one
 * that its snapshot has.
 */
static bool
add_branch_changes(Oid db, Oid spc, Oid rel, AbBlockRanges *ranges)
{
	RelFileNode rnode = {spc, db, rel};
	AbBranch   *b = ab_branch_lookup(db);
	AbFork	   *f;
	BlockNumber limit;
	BlockNumber then;

	if (b == NULL)
		return false;
	f = ab_fork_lookup(b, rnode, MAIN_FORKNUM);
	if (f->dropped || f->entry == NULL || (f->entry->flags & AB_FORK_UNLOGGED))
		return false;
	limit = f->limit;
	then = f->entry->nblocks;
	add_own_pages(db, spc, rel, limit, ranges);
	add_range(ranges, limit, Max(then, ab_relation_blocks(db, spc, rel)));
	return true;
}

/*
 * A block was written since; is there more in it than what readers put there, hint bits
 * and the LSN of an image that was logged for them?
 */
static bool
is_rewritten(const AbManifest *base, AbForkKey key, BlockNumber block)
{
	Oid			db = base->h->source_db;
	RelFileNode rnode = {key.spc, db, key.rel};
	PGAlignedBlock then;
	PGAlignedBlock now;

	if (ab_images_read(db, base->h->id.lsn, key, block, then.data) != AB_IMAGE_FOUND ||
		!ab_parentfile_read(AB_NO_SNAPSHOT, rnode, key.fork, block, true, now.data))
		return true;
	PageSetLSN(then.data, (XLogRecPtr) 0);
	PageSetLSN(now.data, (XLogRecPtr) 0);
	return !ab_page_only_hints_differ(then.data, now.data);
}

/* Blocks [start, end) that were changed since the snapshot, or may have been. */
static void
add_imaged(const AbManifest *base, AbForkKey key, BlockNumber start, BlockNumber end,
		   AbBlockRanges *ranges)
{
	Oid			db = base->h->source_db;
	AbImageRef	heads[HEADS_AT_ONCE];

	while (start < end)
	{
		int			n = Min(end - start, HEADS_AT_ONCE);
		bool		ok;

		ab_imagefile_lock(db, LW_SHARED);
		ok = ab_image_heads_read(db, key, start, n, heads);
		ab_imagefile_unlock(db);
		for (int i = 0; i < n; i++)
			if (!ok || (heads[i].lsn >= base->h->id.lsn &&
						is_rewritten(base, key, start + i)))
				add_range(ranges, start + i, start + i + 1);
		start += n;
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Changes of the database that the base was taken of.  What the base has in another
 * place than the source's own file, the source (a branch then) has changed if it has it
 * in its own file now.
 */
static bool
add_source_changes(const AbManifest *base, Oid spc, Oid rel, AbBlockRanges *ranges)
{
	Oid			db = base->h->source_db;
	AbForkKey	key = {spc, rel, MAIN_FORKNUM};
	const AbForkEntry *e = ab_manifest_find(base, key);

	if (e == NULL || (e->flags & AB_FORK_UNLOGGED))
		return false;
	for (uint32 i = 0; i < e->nruns; i++)
	{
		const AbRun *run = &base->runs[e->first_run + i];

		if (run->layer == 0)
			add_imaged(base, key, run->start, run->start + run->count, ranges);
	}
	if (base->layers[0].of_branch)
	{
		AbBlockRanges own = {NULL, 0, 0};

		if (!add_branch_changes(db, spc, rel, &own))
			return false;
		for (int i = 0; i < own.n; i++)
			for (BlockNumber block = own.range[i].start; block < own.range[i].end; block++)
			{
				const AbRun *run = block < e->nblocks ? ab_manifest_run(base, e, block) : NULL;

				if (run == NULL || run->layer != 0)
					add_range(ranges, block, block + 1);
			}
		if (own.range)
			pfree(own.range);
	}
	add_range(ranges, e->nblocks, Max(e->nblocks, ab_relation_blocks(db, spc, rel)));
	return true;
}

/* ---- what two databases have in common ---- */

/* A branch and the head of its snapshot. */
typedef struct AbDescent
{
	Oid			db;
	bool		is_branch;
	AbSnapId	snapshot;
	AbManifestHeader header;
} AbDescent;

static AbDescent
descent_of(Oid db)
{
	AbDescent	d = {db};
	AbOriginHeader origin;

	if (ab_storage_read_origin(db, &origin))
	{
		d.snapshot = origin.snapshot;
		d.is_branch = ab_manifest_read_header(origin.snapshot, &d.header);
	}
	return d;
}

/* Is d a branch of db, in a way that tells what db changed since? */
static bool
is_child(const AbDescent *d, Oid db)
{
	return d->is_branch && d->header.source_db == db && (d->header.flags & AB_MANIFEST_LIVE);
}

/*
 * Of two branches of one plain database: it stays as long as they do, and what it changed
 * between their snapshots was in its files at the later one.
 */
static bool
are_siblings(const AbDescent *a, const AbDescent *b)
{
	return is_child(a, b->header.source_db) && is_child(b, a->header.source_db) &&
		!AbSnapIdIsValid(a->header.base) && !AbSnapIdIsValid(b->header.base);
}

static AbKinship *
kinship_of(const AbDescent *older, const AbDescent *other, bool of_source)
{
	AbKinship  *k = palloc0(sizeof(AbKinship));

	k->base = ab_manifest_acquire(older->snapshot);
	k->branches[k->nbranches++] = older->db;
	if (other->is_branch && other->db != older->header.source_db)
		k->branches[k->nbranches++] = other->db;
	k->of_source = of_source;
	return k;
}

AbKinship *
ab_kinship(Oid a, Oid b)
{
	AbDescent	da;
	AbDescent	db;
	AbKinship  *k = NULL;

	if (RecoveryInProgress())
		return NULL;			/* what was captured may be yet to come */
	da = descent_of(a);
	db = descent_of(b);
	if (is_child(&da, b))
		k = kinship_of(&da, &db, true);
	else if (is_child(&db, a))
		k = kinship_of(&db, &da, true);
	else if (da.is_branch && db.is_branch && AbSnapIdEquals(da.snapshot, db.snapshot))
		k = kinship_of(&da, &db, false);
	else if (are_siblings(&da, &db))
		k = da.snapshot.lsn < db.snapshot.lsn ? kinship_of(&da, &db, true)
			: kinship_of(&db, &da, true);
	if (k != NULL)
	{
		FlushDatabaseBuffers(a);
		FlushDatabaseBuffers(b);
	}
	return k;
}

bool
ab_kinship_changes(AbKinship *k, Oid spc, Oid rel, AbBlockRanges *ranges)
{
	for (int i = 0; i < k->nbranches; i++)
		if (!add_branch_changes(k->branches[i], spc, rel, ranges))
			return false;
	return !k->of_source || add_source_changes(k->base, spc, rel, ranges);
}

void
ab_kinship_release(AbKinship *k)
{
	ab_manifest_release(k->base);
	pfree(k);
}
