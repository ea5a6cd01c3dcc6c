/*
 * ab_holes.c
 *	  Which blocks of a branch's own file are surely holes.
 *
 * A page that is not in shared buffers is looked for in the own file first.  If the branch
 * wrote one row of a table, nearly all of that file is holes: each read of it is for
 * nothing.  So a session of the branch asks the filesystem where the holes are, for a region
 * of the file at once, and keeps that in a map of its own.  Nothing is on disk, and a crash
 * leaves nothing.
 *
 * Who fills a hole has to make all those maps count no more.  In shared memory there is a
 * counter for each region (some share one), which only grows.
 *
 *	H1	Who writes a block below the fork's limit that had no own page moves the counter
 *		after the write, before it gives the block's buffer back, even if the write failed.
 *	H2	A map is made with the counter read first, then the file looked at.
 *	H3	A map counts while its counter stands still, and is asked only by a process that has
 *		begun to read or to write the block's buffer (BM_IO_IN_PROGRESS).
 *
 * So whoever is told "a hole" is told the truth.  Suppose that block x has an own page, whose
 * write W was over before process R began its I/O of x: only one process at a time does I/O of
 * a block, W under its buffer as R, and the locks of the buffer manager by which the one
 * follows the other order everything W did before everything R does.  W moved the counter, by
 * H1, from n to n + 1, and R sees n + 1 or more.  So R's map counts only if it was made with
 * n + 1 or more.  Then the file was looked at after W moved the counter (H2), that is after
 * W's write, and x was no hole.
 * It does not matter what a map says of blocks that are being written while it is made: by
 * H1 it does not count any more when these are read.
 *
 * What an own page was, it stays, below the limit.  A cut lowers the limit, for good, and
 * blocks at or above it, cut or added later, are read from the own file without asking.  A
 * relation that is dropped has a tombstone (I8), and its number is a plain file when it is
 * used again.  Limits, tombstones and the branch itself are validated by the generation
 * (I9) before a map is asked, and a map is of one incarnation.
 *
 * Blocks that get an own page elsewhere: in recovery's end from the journal, when no
 * session is there.  FSM and VM are written without looking, so they have no maps.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* SEEK_DATA, SEEK_HOLE */
#endif

#include "ab_holes.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "ab_parentfile.h"
#include "ab_shmem.h"

/* Regions do not cross segments; a map takes 2 kB. */
#define REGION_BLOCKS 16384
#define REGIONS_PER_SEGMENT ((RELSEG_SIZE + REGION_BLOCKS - 1) / REGION_BLOCKS)

/* Maps of a process, found by hash; one takes another's place. */
#define MAPS 256				/* a power of 2 */

/* Questions to the filesystem for one map; what is beyond stays unknown. */
#define MAX_QUESTIONS 1024

/*
 * So many holes are read before a map is made anew, and one more for each question of the
 * last time: making it costs less than the reads then, whatever becomes of it.
 */
#define PATIENCE 8
#define PATIENCE_IF_NOTHING 1024	/* a filesystem that does not tell */

typedef struct HoleMap
{
	RelFileNode rnode;
	uint32		region;
	AbSnapId	incarnation;
	uint64		counter;		/* of the region, when the map was begun */
	uint32		patience;		/* holes to be read before another is made here */
	uint8		hole[REGION_BLOCKS / 8];
} HoleMap;

static HoleMap *maps[MAPS];

static inline uint32
region_of(BlockNumber block)
{
	return block / RELSEG_SIZE * REGIONS_PER_SEGMENT +
		block % RELSEG_SIZE / REGION_BLOCKS;
}

/* In its region. */
static inline uint32
place_of(BlockNumber block)
{
	return block % RELSEG_SIZE % REGION_BLOCKS;
}

static inline uint32
hash_of(RelFileNode rnode, uint32 region)
{
	return murmurhash32(rnode.relNode ^ rnode.dbNode * 2654435761u ^ region * 40503u);
}

static inline pg_atomic_uint64 *
counter_of(uint32 hash)
{
	return &ab_shared->holes_filled[hash % AB_HOLE_COUNTERS];
}

static inline bool
is_of(const HoleMap *m, AbBranch *b, RelFileNode rnode, uint32 region)
{
	return RelFileNodeEquals(m->rnode, rnode) && m->region == region &&
		AbSnapIdEquals(m->incarnation, ab_branch_header(b)->incarnation);
}

bool
ab_holes_known(AbBranch *b, RelFileNode rnode, BlockNumber block)
{
	uint32		region = region_of(block);
	uint32		hash = hash_of(rnode, region);
	uint32		place = place_of(block);
	const HoleMap *m = maps[hash % MAPS];

	return m != NULL &&
		(m->hole[place / 8] & (1 << place % 8)) != 0 &&
		is_of(m, b, rnode, region) &&
		m->counter == pg_atomic_read_u64(counter_of(hash));
}

void
ab_holes_filled(RelFileNode rnode, BlockNumber block)
{
	/* a full barrier */
	pg_atomic_fetch_add_u64(counter_of(hash_of(rnode, region_of(block))), 1);
}

/* ---- making a map ---- */

static void
note_holes(HoleMap *m, uint32 from, uint32 to)
{
	for (uint32 place = from; place < to; place++)
		m->hole[place / 8] |= 1 << place % 8;
}

/*
 * Note the holes from block "first" of the file on, as many as fit into a map; returns how
 * many questions that took.  Where single pages were written each is one question: where
 * a stretch ends is asked when it has a second page.
 */
static uint32
look_for_holes(HoleMap *m, int fd, BlockNumber first)
{
	off_t		begin = (off_t) first * BLCKSZ;
	uint32		nblocks = Min(REGION_BLOCKS, RELSEG_SIZE - first);
	uint32		at = 0;			/* block of the region */
	uint32		asked = 0;

	while (at < nblocks && asked < MAX_QUESTIONS)
	{
		off_t		from = begin + (off_t) at * BLCKSZ;
		off_t		data = lseek(fd, from, SEEK_DATA);
		off_t		hole = data;
		uint32		next;

		asked++;
		if (data < 0 && errno != ENXIO)
			break;
		next = data < 0 ? nblocks : Min((data - begin) / BLCKSZ, nblocks);
		note_holes(m, at, next);
		if (data == from)
		{
			asked++;
			hole = lseek(fd, data, SEEK_HOLE);
			if (hole < 0)
				break;
		}
		at = next + 1;
		if (data == from)
			at = Max(at, Min((hole - begin + BLCKSZ - 1) / BLCKSZ, nblocks));
	}
	return asked;
}

static bool
has_holes(const HoleMap *m)
{
	for (int i = 0; i < sizeof(m->hole); i++)
		if (m->hole[i] != 0)
			return true;
	return false;
}

/* The file is opened for this alone: nobody keeps one open that is being removed. */
static void
make_map(HoleMap *m, AbBranch *b, RelFileNode rnode, BlockNumber block, uint32 hash)
{
	char		path[MAXPGPATH];
	int			fd;

	memset(m, 0, sizeof(*m));
	m->rnode = rnode;
	m->region = region_of(block);
	m->incarnation = ab_branch_header(b)->incarnation;
	m->counter = pg_atomic_read_u64(counter_of(hash));
	pg_memory_barrier();		/* H2 */

	ab_relation_path(path, rnode, MAIN_FORKNUM, block / RELSEG_SIZE);
	fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	if (fd >= 0)
	{
		m->patience = PATIENCE + look_for_holes(m, fd, block % RELSEG_SIZE - place_of(block));
		(void) close(fd);
	}
	if (!has_holes(m))
		m->patience = PATIENCE_IF_NOTHING;
}

void
ab_holes_found_one(AbBranch *b, RelFileNode rnode, BlockNumber block)
{
	uint32		hash = hash_of(rnode, region_of(block));
	HoleMap   **m = &maps[hash % MAPS];

	/* others have other databases' pages in hand now and then, and nothing to gain */
	if (rnode.dbNode != MyDatabaseId || CritSectionCount > 0)
		return;
	if (*m == NULL)
		*m = MemoryContextAllocZero(TopMemoryContext, sizeof(HoleMap));
	if ((*m)->patience > 0)
		(*m)->patience--;
	else
		make_map(*m, b, rnode, block, hash);
}
