/*
 * ab_gather.c
 *	  Moving origins into the file of gathered ones, and replaying that.
 *
 * A server start reads the origin of each branch, and after a crash syncs each file that
 * there is: so those of branches that nobody has been in are put into one file.
 *
 * The gatherer (ab_gatherer.c), backends in branch.gc(), and the startup process.  The file
 * is changed under gather_lock, which is held until the files of their own are gone; the
 * database object of each is locked AccessShareLock meanwhile, only tried for.  A crash
 * leaves origins in both places, which is harmless: the file of its own counts.
 * G1 to G8 of extension/README say why.
 */
#include "ab_gather.h"

#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/memutils.h"

#include "ab_caught.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_originfile.h"
#include "ab_originkeys.h"
#include "ab_originpack.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"

#define BATCH 256				/* as many locks are held at once */

/* ---- when ---- */

bool
ab_gather_is_due(void)
{
	return ab_gather_after > 0 &&
		pg_atomic_read_u32(&ab_shared->ungathered) >= ab_gather_after;
}

void
ab_gather_note_new(void)
{
	if (pg_atomic_read_u32(&ab_shared->ungathered) == ab_gather_after)
		ab_request_poke_keeper();
}

/* ---- the file ---- */

/* Living entries and the batch, both sorted; those of the batch are newer. */
static AbOriginHeader *
merge(const AbPack *pack, const AbOriginHeader *batch, int nbatch, int *n)
{
	AbOriginHeader *all = palloc_extended(sizeof(AbOriginHeader) * (pack->n + nbatch),
										  MCXT_ALLOC_HUGE);
	int			next = 0;

	*n = 0;
	for (int i = 0; i < pack->n; i++)
	{
		Oid			db = ab_originpack_living(pack, i);

		if (!OidIsValid(db))
			continue;
		while (next < nbatch && batch[next].db < db)
			all[(*n)++] = batch[next++];
		if ((next == nbatch || batch[next].db != db) && ab_originpack_is_sound(pack, i))
			all[(*n)++] = pack->entries[i].origin;
	}
	while (next < nbatch)
		all[(*n)++] = batch[next++];
	return all;
}

/* False: something is missing in the file (G6). */
static bool
add_to_file(const AbOriginHeader *batch, int nbatch)
{
	AbPack		pack;
	AbOriginHeader *all;
	int			n;

	ab_originpack_read(&pack);
	if (!pack.complete)
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is damaged: %s", AB_PACK_FILE, pack.problem),
				 errhint("Delete the branches that branch.verify() names.")));
		return false;
	}
	all = merge(&pack, batch, nbatch, &n);
	ab_originpack_write(all, n);
	for (int i = 0; i < nbatch; i++)
		ab_originpack_note_new(batch[i].db);
	AB_FAILPOINT_NO_ERROR("gather-written");
	pfree(all);
	ab_originpack_free(&pack);
	return true;
}

static void
unlink_files(const AbOriginHeader *batch, int n)
{
	for (int i = 0; i < n; i++)
	{
		(void) ab_origin_unlink_bare(&batch[i]);
		AB_FAILPOINT_NO_ERROR("gather-unlinked");
	}
	fsync_fname(AB_BRANCH_DIR, true);
}

/* ---- gathering ---- */

static void
set_tag(LOCKTAG *tag, Oid db)
{
	SET_LOCKTAG_OBJECT(*tag, InvalidOid, DatabaseRelationId, db, 0);
}

static void
unlock(const AbOriginHeader *batch, int n)
{
	for (int i = 0; i < n; i++)
	{
		LOCKTAG		tag;

		set_tag(&tag, batch[i].db);
		(void) LockRelease(&tag, AccessShareLock, false);
	}
}

/* The next that can be gathered, locked. */
static int
collect(const AbOrigins *o, int *next, AbOriginHeader batch[BATCH])
{
	int			n = 0;

	while (*next < o->n && n < BATCH)
	{
		int			i = (*next)++;
		LOCKTAG		tag;

		if (o->gathered[i] != NULL || !ab_origin_is_bare(o->dbs[i], &batch[n]))
			continue;
		set_tag(&tag, o->dbs[i]);
		if (LockAcquire(&tag, AccessShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
			pg_atomic_fetch_add_u32(&ab_shared->ungathered, 1);
		else if (ab_origin_is_bare(o->dbs[i], &batch[n]))
			n++;
		else
			(void) LockRelease(&tag, AccessShareLock, false);
	}
	return n;
}

static bool
gather_batch(const AbOriginHeader *batch, int n)
{
	bool		done;

	AB_FAILPOINT("gather-locked");
	LWLockAcquire(ab_shared->gather_lock, LW_EXCLUSIVE);
	done = add_to_file(batch, n);
	if (done)
	{
		Assert((MyProc->delayChkptFlags & DELAY_CHKPT_START) == 0);
		MyProc->delayChkptFlags |= DELAY_CHKPT_START;
		XLogFlush(ab_wal_gather(batch, n));
		AB_FAILPOINT_NO_ERROR("gather-logged");
		unlink_files(batch, n);
		MyProc->delayChkptFlags &= ~DELAY_CHKPT_START;
	}
	LWLockRelease(ab_shared->gather_lock);
	AB_FAILPOINT_NO_ERROR("gather-done");
	return done;
}

/*
 * A full disk, most likely: what called us has something else to do as well, and replay goes
 * on, for the files of their own count.
 */
static bool
try_batch(bool (*work) (const AbOriginHeader *batch, int n), const AbOriginHeader *batch, int n)
{
	AbBeforeTry before = ab_before_try();
	volatile bool done = false;

	PG_TRY();
	{
		done = work(batch, n);
	}
	PG_CATCH();
	{
		ErrorData  *e;

		if (MyProc != NULL)
			MyProc->delayChkptFlags &= ~DELAY_CHKPT_START;
		LWLockReleaseAll();
		e = ab_caught(&before);
		ereport(WARNING,
				(errcode(e->sqlerrcode),
				 errmsg("could not gather the origins of branches: %s", e->message)));
		FreeErrorData(e);
	}
	PG_END_TRY();
	return done;
}

/* Most of the file says nothing any more, or it is damaged where nothing lives. */
static bool
is_worth_writing(void)
{
	AbPack		pack;
	int			living = 0;
	bool		worth;

	ab_originpack_read(&pack);
	for (int i = 0; i < pack.n; i++)
		living += OidIsValid(ab_originpack_living(&pack, i));
	worth = pack.complete &&
		(pack.problem != NULL || (pack.n > 0 && living < pack.n / 2 + 1));
	ab_originpack_free(&pack);
	return worth;
}

void
ab_gather(void)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "agent_branch gather",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	AbOrigins  *o;
	AbOriginHeader *batch = palloc(sizeof(AbOriginHeader) * BATCH);
	int			next = 0;
	int			n;
	bool		done = true;
	bool		written = false;

	pg_atomic_write_u32(&ab_shared->ungathered, 0);
	o = ab_origin_all();
	while (done && (n = collect(o, &next, batch)) > 0)
	{
		done = written = try_batch(gather_batch, batch, n);
		unlock(batch, n);
		CHECK_FOR_INTERRUPTS();
	}
	/* no batch has left them out; an empty one has the file written without them */
	if (done && !written && is_worth_writing())
		(void) try_batch(gather_batch, batch, 0);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}

/* ---- server start ---- */

static bool
make_keys(const AbOriginHeader *batch, int n)
{
	AbPack		pack;
	Oid		   *keys;
	int			nkeys = 0;

	ab_originpack_read(&pack);
	keys = palloc_extended(Max(pack.n, 1) * sizeof(Oid), MCXT_ALLOC_HUGE);
	for (int i = 0; i < pack.n; i++)
		if (OidIsValid(ab_originpack_living(&pack, i)))
			keys[nkeys++] = ab_originpack_living(&pack, i);
	if (pack.problem == NULL)
		ab_originkeys_write(keys, nkeys);
	pfree(keys);
	ab_originpack_free(&pack);
	return true;
}

void
ab_gather_begin(void)
{
	if (ab_file_exists(AB_PACK_FILE) && ab_originkeys_ask(InvalidOid) == AB_KEYS_UNKNOWN)
		(void) try_batch(make_keys, NULL, 0);
}

/* ---- replay ---- */

/*
 * As in ab_storage_create_redo(): without a snapshot, before recovery is consistent, it is
 * dropped further on.  What is damaged or of a later incarnation is not ours to mend.
 */
static void
restore_missing(const AbOriginHeader *header)
{
	AbManifest *m;
	bool		missing;

	if (ab_origin_exists(header->db))
		return;
	m = ab_storage_try_manifest(header->snapshot, &missing);
	if (m != NULL || !missing || reachedConsistency)
	{
		AB_FAILPOINT_NO_ERROR("redo-gather-restore");
		ab_storage_restore_origin(header, true);
		smgrcloseall();			/* as in create_origin() */
	}
	if (m != NULL)
		ab_manifest_release(m);
}

/*
 * A backup may have copied the other list of keys before one of these came into it, and the file
 * with their entries after that.
 */
static bool
lists_all(const AbOriginHeader *batch, int n)
{
	int			nkeys;
	Oid		   *keys = ab_originkeys_read(&nkeys);
	bool		all = keys != NULL || n == 0;

	for (int i = 0; i < n && all; i++)
		all = ab_originkeys_place(batch[i].db, keys, nkeys) >= 0;
	if (keys != NULL)
		pfree(keys);
	return all;
}

static bool
redo_batch(const AbOriginHeader *batch, int n)
{
	bool		done;

	LWLockAcquire(ab_shared->gather_lock, LW_EXCLUSIVE);
	done = add_to_file(batch, n);
	if (done)
		unlink_files(batch, n);
	LWLockRelease(ab_shared->gather_lock);
	return done;
}

void
ab_gather_redo(const xl_ab_gather *rec)
{
	const char *data = (const char *) (rec + 1);
	AbOriginHeader *batch = palloc(sizeof(AbOriginHeader) * rec->n);
	AbOriginHeader *gathered = palloc(sizeof(AbOriginHeader) * rec->n);
	int			ngathered = 0;
	int			n = 0;

	for (uint32 i = 0; i < rec->n; i++)
	{
		AbOriginHeader header;

		memcpy(&header, data + i * sizeof(header), sizeof(header));
		restore_missing(&header);
		if (ab_originpack_find(header.db, &gathered[ngathered]) == AB_PACK_FOUND)
			ngathered++;
		if (ab_origin_is_bare(header.db, &batch[n]) &&
			AbSnapIdEquals(batch[n].incarnation, header.incarnation))
			n++;
	}
	AB_FAILPOINT_NO_ERROR("redo-gather");
	if (n > 0 || rec->n == 0 || !lists_all(gathered, ngathered))
		(void) try_batch(redo_batch, batch, n);
	pfree(gathered);
	pfree(batch);
}
