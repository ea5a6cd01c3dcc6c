/*
 * ab_storage.c
 *	  Making and removing the files of a branch database on a running primary.
 *	  (Replaying it, and repair after a crash: ab_storage_redo.c.)
 *
 * Backends and the keeper, inside a transaction, holding AccessExclusiveLock on
 * the database object.
 *
 * This process remembers what its transaction has created, with the nesting level,
 * so that the end of a (sub)transaction can take it back (rule 33).  What a crash
 * leaves: files with an origin but without a pg_database row, which the sweep finds
 * (B1), the origin being the last file made and the last removed; or files that
 * the mark of unfinished creation names, which server start removes.
 */
#include "ab_storage.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "postmaster/bgwriter.h"
#include "replication/slot.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/md.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ab_caught.h"
#include "ab_dir.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_gather.h"
#include "ab_origin.h"
#include "ab_latesync.h"
#include "ab_snaptable.h"
#include "ab_storagefiles.h"

/* A branch this transaction has begun to create. */
typedef struct AbCreated
{
	struct AbCreated *next;
	Oid			db;
	Oid			spc;
	int			level;			/* nesting level of the (sub)transaction */
	bool		has_dir;		/* there may be directories, and they are ours */
	AbSnapId	incarnation;	/* invalid: its WAL record is not written yet */
	AbSnapId	snapshot;
	bool		counted;		/* ab_snaptable_ref(+1) was done */
} AbCreated;

static AbCreated *created = NULL;	/* in TopMemoryContext, newest first */
static Oid	lowest_created;		/* if there are any */
static Oid	highest_created;
static bool callbacks_registered = false;

/* ---- end of transactions ---- */

static void
discard_files(const AbCreated *c)
{
	/*
	 * Logged and flushed first, so that a standby never keeps what is gone here.
	 * There are no buffers and no sync requests to forget: nobody could have
	 * opened a database whose row was never visible.
	 */
	if (AbSnapIdIsValid(c->incarnation))
		XLogFlush(ab_wal_branch_drop(c->incarnation, c->db));
	AB_FAILPOINT_NO_ERROR("discard-logged");
	if (c->has_dir && !ab_storage_remove_dirs(c->db))
		return;					/* with its origin it is found again */
	ab_origin_remove(c->db);
	ab_storage_unmark(c->db);
	if (c->counted)
		ab_snaptable_ref(c->snapshot, -1);
}

/*
 * Take back one creation during abort.  An error must not get out of here: the
 * transaction is already aborting.  What cannot be removed now is swept later.
 */
static void
discard(const AbCreated *c)
{
	AbBeforeTry before = ab_before_try();

	PG_TRY();
	{
		discard_files(c);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		/* abort has released all LWLocks before; these are ours */
		LWLockReleaseAll();
		edata = ab_caught(&before);
		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg("could not remove the files of unfinished branch %u now: %s",
						c->db, edata->message),
				 errhint("They are removed by the next sweep, or call branch.gc().")));
		FreeErrorData(edata);
	}
	PG_END_TRY();
}

/* Take back what was created at this nesting level or deeper. */
static void
discard_from_level(int level)
{
	AbCreated **link = &created;

	while (*link != NULL)
	{
		AbCreated  *c = *link;

		if (c->level < level)
		{
			link = &c->next;
			continue;
		}
		*link = c->next;
		discard(c);
		pfree(c);
	}
}

static void
forget_created(void)
{
	while (created != NULL)
	{
		AbCreated  *c = created;

		created = c->next;
		pfree(c);
	}
}

static void
at_xact_end(XactEvent event, void *arg)
{
	if (created == NULL)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot prepare a transaction that has changed branches"),
					 errhint("Change them in a transaction of their own.")));
			break;
		case XACT_EVENT_COMMIT:
			forget_created();
			break;
		case XACT_EVENT_ABORT:
			discard_from_level(0);
			break;
		default:
			break;
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
			   SubTransactionId parentSubid, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		discard_from_level(level);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (AbCreated *c = created; c != NULL; c = c->next)
			c->level = Min(c->level, level - 1);
	}
}

static AbCreated *
remember(Oid db, Oid spc, AbSnapId snapshot)
{
	AbCreated  *c = MemoryContextAllocZero(TopMemoryContext, sizeof(AbCreated));

	if (!callbacks_registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		RegisterSubXactCallback(at_subxact_end, NULL);
		callbacks_registered = true;
	}
	c->db = db;
	c->spc = spc;
	c->level = GetCurrentTransactionNestLevel();
	c->snapshot = snapshot;
	lowest_created = created ? Min(lowest_created, db) : db;
	highest_created = created ? Max(highest_created, db) : db;
	c->next = created;
	created = c;
	return c;
}

/* Asked for each branch's parent, which is older than a batch. */
bool
ab_storage_created_here(Oid db)
{
	if (created == NULL || db < lowest_created || db > highest_created)
		return false;
	for (AbCreated *c = created; c != NULL; c = c->next)
		if (c->db == db)
			return true;
	return false;
}

/* ---- creation ---- */

/*
 * Server start after a crash empties unlogged relations, by files that it must find there
 * (F9).  Whatever else is in the directory is made when it is needed (ab_dir.c).
 */
static void
make_unlogged(AbCreated *c, const AbManifest *m)
{
	ab_storage_mark(c->db);
	AB_FAILPOINT("create-marked");
	c->has_dir = true;
	ab_dir_make(c->db, c->spc, c->snapshot, m->relmap);
	AB_FAILPOINT("create-directory");
	ab_storage_make_unlogged(c->db, m, false);
	AB_FAILPOINT("create-files");
}

static void
log_and_write_origin(AbCreated *c, xl_ab_branch_create *rec)
{
	XLogRecPtr	end = ab_wal_branch_create(rec);

	c->incarnation = ab_snapid_make(rec->tli, end);
	AB_FAILPOINT("create-logged");
	ab_storage_write_origin(rec, c->incarnation, false);
	c->counted = true;
	AB_FAILPOINT("create-origin");
	ab_latesync_origin(c->db);
	AB_FAILPOINT("create-late");
}

/*
 * No checkpoint may complete between the record and the origin file: a base backup
 * begun there would have neither.  And O1 (ab_latesync.c).
 */
static void
log_origin(AbCreated *c, xl_ab_branch_create *rec)
{
	ab_latesync_begin();
	PG_TRY();
	{
		log_and_write_origin(c, rec);
	}
	PG_FINALLY();
	{
		ab_latesync_end();
	}
	PG_END_TRY();
}

void
ab_storage_create(Oid db, Oid spc, Oid parent_db, AbSnapId snapshot)
{
	/* remembered before the first file: a full disk leaves nothing either */
	AbCreated  *c = remember(db, spc, snapshot);
	AbManifest *m = ab_manifest_acquire(snapshot);
	xl_ab_branch_create rec = {0};

	PG_TRY();
	{
		if (ab_storage_has_unlogged(m))
			make_unlogged(c, m);
		rec.depth = m->h->depth + 1;
	}
	PG_FINALLY();
	{
		ab_manifest_release(m);
	}
	PG_END_TRY();

	rec.snapshot = snapshot;
	rec.db = db;
	rec.spc = spc;
	rec.parent_db = parent_db;
	rec.created_at = GetCurrentTimestamp();

	log_origin(c, &rec);
	ab_gather_note_new();
}

/*
 * The tablespaces, listed once in a transaction: in one that is made meanwhile nothing
 * is left over of an earlier database.
 */
static List *
tablespaces(void)
{
	static LocalTransactionId listed_in = InvalidLocalTransactionId;
	static List *list = NIL;
	MemoryContext old;

	if (!IsTransactionState())
		return ab_storage_tablespaces(ERROR);
	if (MyProc->lxid == listed_in)
		return list;
	list = NIL;
	listed_in = InvalidLocalTransactionId;
	old = MemoryContextSwitchTo(TopTransactionContext);
	list = ab_storage_tablespaces(ERROR);
	MemoryContextSwitchTo(old);
	listed_in = MyProc->lxid;
	return list;
}

bool
ab_storage_exists(Oid db)
{
	bool		found = ab_origin_exists(db);
	ListCell   *lc;

	foreach(lc, tablespaces())
		found |= ab_storage_dir_exists(db, lfirst_oid(lc));
	return found;
}

/* ---- removal ---- */

/* What dropdb does before it touches files, for many databases at once (M8). */
static void
detach_from_server(const Oid *dbs, int n)
{
	for (int i = 0; i < n; i++)
	{
		ReplicationSlotsDropDBSlots(dbs[i]);
		DropDatabaseBuffers(dbs[i]);
		ForgetDatabaseSyncRequests(dbs[i]);
	}

	/* the checkpointer has absorbed those requests when this returns, and redo
	 * will begin after every change of pages of these databases */
	RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE | CHECKPOINT_WAIT);

	/* close their files everywhere */
	WaitForProcSignalBarrier(EmitProcSignalBarrier(PROCSIGNAL_BARRIER_SMGRRELEASE));
}

void
ab_storage_remove(Oid *dbs, int n)
{
	XLogRecPtr	end = InvalidXLogRecPtr;

	if (n == 0)
		return;
	detach_from_server(dbs, n);
	AB_FAILPOINT("remove-checkpoint");

	/*
	 * Logged before the first file goes: should the server crash in between, redo
	 * finishes the work, and so does a standby.  An origin that cannot be read
	 * gives no incarnation: the record then means whatever is there.
	 */
	for (int i = 0; i < n; i++)
	{
		AbOriginHeader header = {0};

		(void) ab_storage_read_origin(dbs[i], &header);
		end = ab_wal_branch_drop(header.incarnation, dbs[i]);
	}
	XLogFlush(end);
	AB_FAILPOINT("remove-logged");

	for (int i = 0; i < n; i++)
	{
		bool		gone = ab_storage_remove_dirs(dbs[i]);

		AB_FAILPOINT_NO_ERROR("remove-directories");
		if (gone)
			ab_storage_drop_origin(dbs[i]);
	}
	AB_FAILPOINT_NO_ERROR("remove-done");
	fsync_fname_ext("base", true, true, WARNING);
}

/* ---- space ---- */

static void
add_usage_of_dir(const char *path, int64 *bytes, int64 *files)
{
	DIR		   *dir = AllocateDir(path);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return;					/* removed since it was listed */
	while ((de = ReadDir(dir, path)) != NULL)
	{
		char		file[MAXPGPATH * 2];
		struct stat st;

		if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
			continue;
		snprintf(file, sizeof(file), "%s/%s", path, de->d_name);
		if (lstat(file, &st) < 0)
		{
			if (errno == ENOENT)
				continue;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not stat file \"%s\": %m", file)));
		}
		*bytes += (int64) st.st_blocks * 512;
		(*files)++;
	}
	FreeDir(dir);
}

void
ab_storage_usage(Oid db, int64 *bytes, int64 *files)
{
	List	   *dirs = ab_storage_dirs(db, ERROR);
	ListCell   *lc;

	*bytes = 0;
	*files = 0;
	foreach(lc, dirs)
		add_usage_of_dir(lfirst(lc), bytes, files);
	list_free_deep(dirs);
}
