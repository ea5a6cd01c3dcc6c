/*
 * ab_snapshot_mend.c
 *	  What was touched while a snapshot was captured (step 5 of extension/README).
 *
 * Backends that take a snapshot; the gate is closed, so only pruning, hint bits and maps can
 * have changed.  Pages are read from shared buffers under their content locks.  Patches
 * go into a layer that has no name yet, or into the images of a snapshot that is not
 * confirmed: a crash leaves what S6 removes.
 */
#include "ab_snapshot_taking.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/checksum.h"
#include "storage/smgr.h"

#include "ab_capture.h"
#include "ab_walscan.h"

/* Rounds of capturing again what changed while it was captured again. */
#define MEND_ROUNDS 8

/* ---- single blocks ---- */

static int
compare_blocks(const AbTouchedBlock *x, const AbTouchedBlock *y)
{
	int			order = memcmp(&x->rnode, &y->rnode, sizeof(RelFileNode));

	if (order != 0)
		return order;
	if (x->fork != y->fork)
		return x->fork < y->fork ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

static int
compare_cells(const ListCell *a, const ListCell *b)
{
	return compare_blocks(lfirst(a), lfirst(b));
}

/* The page as it is in shared buffers, ready to be written; returns its LSN. */
static XLogRecPtr
read_touched(const AbTouchedBlock *block, char *page)
{
	Buffer		buffer = ReadBufferWithoutRelcache(block->rnode, block->fork,
												   block->block, RBM_NORMAL,
												   NULL, true);

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	memcpy(page, BufferGetPage(buffer), BLCKSZ);
	UnlockReleaseBuffer(buffer);
	if (!PageIsNew(page) && DataChecksumsEnabled())
		((PageHeader) page)->pd_checksum = pg_checksum_page(page, block->block);
	return PageIsNew(page) ? InvalidXLogRecPtr : PageGetLSN(page);
}

typedef enum TouchedFate
{
	TOUCHED_IGNORE,				/* the snapshot is right as it is */
	TOUCHED_AGAIN,				/* capture it again, at *position */
	TOUCHED_INHERITED,			/* it is a page of an older layer */
	TOUCHED_STRANGE				/* not captured at all: begin anew */
} TouchedFate;

static TouchedFate
fate_of(const AbTaking *t, const AbTouchedBlock *block, uint32 *position)
{
	bool		is_map = block->fork == VISIBILITYMAP_FORKNUM ||
		block->fork == FSM_FORKNUM;
	const AbForkEntry *e;
	const AbRun *run;
	AbForkKey	key;

	key.spc = block->rnode.spcNode;
	key.rel = block->rnode.relNode;
	key.fork = block->fork;
	e = ab_manifest_find(&t->view, key);

	/* a map that says less than it could is a good map */
	if (e == NULL || block->block >= e->nblocks)
		return is_map ? TOUCHED_IGNORE : TOUCHED_STRANGE;
	if ((e->flags & AB_FORK_UNLOGGED) && block->fork != INIT_FORKNUM)
		return TOUCHED_IGNORE;
	run = ab_manifest_run(&t->view, e, block->block);
	if (run == NULL)
		return TOUCHED_STRANGE;
	if (run->layer != 0)
		return TOUCHED_INHERITED;
	*position = run->position + (block->block - run->start);
	return TOUCHED_AGAIN;
}

/* ---- all of them ---- */

/*
 * Capture the touched pages again.  Returns false if only a new attempt helps;
 * *newest: the highest LSN found on them.
 *
 * An inherited page that was pruned or given hint bits means the same before and
 * after, and stays inherited.  Only a visibility map page that was captured after
 * such a pruning could claim too much about it.
 */
static bool
capture_again(AbTaking *t, List *touched, XLogRecPtr *newest)
{
	const AbTouchedBlock *last = NULL;
	bool		inherited = false;
	bool		map = false;
	PGAlignedBlock page;
	ListCell   *lc;

	*newest = InvalidXLogRecPtr;
	list_sort(touched, compare_cells);
	foreach(lc, touched)
	{
		const AbTouchedBlock *block = lfirst(lc);
		uint32		position = 0;

		CHECK_FOR_INTERRUPTS();
		if (last && compare_blocks(last, block) == 0)
			continue;
		if (last && !RelFileNodeEquals(last->rnode, block->rnode))
			smgrclose(smgropen(last->rnode, InvalidBackendId));
		last = block;
		map |= block->fork == VISIBILITYMAP_FORKNUM;

		switch (fate_of(t, block, &position))
		{
			case TOUCHED_IGNORE:
				break;
			case TOUCHED_AGAIN:
				{
					XLogRecPtr	lsn = read_touched(block, page.data);

					*newest = Max(*newest, lsn);
					if (t->capture.live)
						ab_capture_window(t->id, block->rnode, block->fork,
										  block->block, page.data);
					else
						ab_layer_writer_patch(t->capture.layer, position, page.data);
				}
				break;
			case TOUCHED_INHERITED:
				inherited = true;
				break;
			case TOUCHED_STRANGE:
				return false;
		}
	}
	if (last)
		smgrclose(smgropen(last->rnode, InvalidBackendId));
	return !(inherited && map);
}

/*
 * What WAL says about the time from the flush to the record.  Pages that are
 * captured again may be newer than the record; then the WAL up to what they show
 * has to be as harmless, and what it touched is captured again as well.
 */
bool
ab_taking_mend(AbTaking *t)
{
	XLogRecPtr	from = t->window;
	XLogRecPtr	upto = t->record;	/* our own says nothing, and may be long */
	XLogRecPtr	seen = t->id.lsn;

	for (int round = 0; round < MEND_ROUNDS; round++)
	{
		List	   *touched = NIL;
		XLogRecPtr	newest;

		if (ab_walscan(t->capture.source_db, from, upto, false, &touched) != AB_SCAN_CLEAN)
			return false;
		if (!capture_again(t, touched, &newest))
			return false;
		if (newest <= seen)
			return true;
		from = seen;
		upto = seen = newest;
	}
	return false;
}
