/*
 * ab_detach.c
 *	  Detaching a branch: rights, locks, sessions, and the end of the transaction.
 *
 * Backends in the control database, in any (sub)transaction.  Holds the name lock and
 * AccessExclusiveLock on the database object to the end of the transaction, so nobody
 * connects to the branch or makes a child of it meanwhile.
 *
 * The copying (ab_complete.c) is done at once and stays done: nobody can tell.  The
 * branch is cut off from its snapshot when the transaction has committed, and not
 * before; rolled back it is still a branch, as it is when the server crashes between
 * its commit and that moment, which is before the client hears of it.  Calling again
 * finds everything copied.
 */
#include "ab_detach.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "ab_agentrole.h"
#include "ab_catalogrows.h"
#include "ab_caught.h"
#include "ab_complete.h"
#include "ab_events.h"
#include "ab_lifecycle.h"
#include "ab_origin.h"
#include "ab_pins.h"
#include "ab_quota.h"
#include "ab_registry.h"
#include "ab_sessions.h"
#include "ab_storage.h"

/* A branch whose files are complete. */
typedef struct Pending
{
	struct Pending *next;
	AbComplete	complete;
	int			level;			/* nesting level of the (sub)transaction */
	bool		gone;			/* this transaction has deleted it after all */
} Pending;

static Pending *pending = NULL; /* in TopMemoryContext */

/* ---- end of transactions ---- */

/*
 * The transaction has committed: no error may get out of here.  What fails leaves a
 * branch.
 */
static void
detach(const Pending *p)
{
	AbBeforeTry before = ab_before_try();

	PG_TRY();
	{
		ab_complete_detach(&p->complete);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		LWLockReleaseAll();		/* ours */
		edata = ab_caught(&before);
		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg("database %u is still a branch: %s", p->complete.db, edata->message),
				 errhint("Call branch.detach() again.")));
		FreeErrorData(edata);
	}
	PG_END_TRY();
}

/* Forget what was pending at this nesting level or deeper, or do it. */
static void
finish(int level, bool commit)
{
	Pending   **link = &pending;

	while (*link != NULL)
	{
		Pending    *p = *link;

		if (p->level < level)
		{
			link = &p->next;
			continue;
		}
		*link = p->next;
		if (commit && !p->gone)
			detach(p);
		pfree(p);
	}
}

static void
at_xact_end(XactEvent event, void *arg)
{
	if (pending == NULL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			for (Pending *p = pending; p != NULL; p = p->next)
				p->gone = !SearchSysCacheExists1(DATABASEOID,
												 ObjectIdGetDatum(p->complete.db));
			break;
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot prepare a transaction that has detached a branch"),
					 errhint("Detach the branch in a transaction of its own.")));
			break;
		case XACT_EVENT_COMMIT:
			finish(0, true);
			break;
		case XACT_EVENT_ABORT:
			finish(0, false);
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
		finish(level, false);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (Pending *p = pending; p != NULL; p = p->next)
			p->level = Min(p->level, level - 1);
	}
}

static void
remember(const AbComplete *complete)
{
	static bool registered = false;
	Pending    *p = MemoryContextAlloc(TopMemoryContext, sizeof(Pending));

	if (!registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		RegisterSubXactCallback(at_subxact_end, NULL);
		registered = true;
	}
	p->complete = *complete;
	p->level = GetCurrentTransactionNestLevel();
	p->gone = false;
	p->next = pending;
	pending = p;
}

bool
ab_detach_is_pending(Oid db)
{
	for (Pending *p = pending; p != NULL; p = p->next)
		if (p->complete.db == db)
			return true;
	return false;
}

/* ---- may it be done ---- */

static void
raise_no_branch(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_DATABASE),
			 errmsg("branch \"%s\" does not exist", name),
			 errhint("The view branch.branches lists those that do.")));
}

/* It costs what a new database costs; and who owns the branch decides about it. */
static Oid
find_branch(const char *name)
{
	Oid			db;

	db = ab_find_own_branch(name, "detach");
	if (!OidIsValid(db))
		raise_no_branch(name);
	if (ab_detach_is_pending(db))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("branch \"%s\" is detached by this transaction already", name),
				 errhint("Commit it.")));
	if (ab_have_createdb())
		return db;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to detach branch \"%s\"", name),
			 errdetail("Role \"%s\" has no CREATEDB attribute.",
					   GetUserNameFromId(GetUserId(), false)),
			 ab_errhint_createdb()));
}

static void
check_no_children(Oid db, const char *name)
{
	List	   *children = ab_children(db, false);

	if (children != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot detach branch \"%s\", because it has branches", name),
				 errdetail("They are: %s.", ab_name_list(children)),
				 errhint("Delete or detach these first.")));
}

/* Lock it and get everybody out; 55006. */
static void
lock_branch(Oid db, const char *name, bool force)
{
	char	   *now;

	LockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	now = ab_database_name(db);
	if (now == NULL || strcmp(now, name) != 0 || find_branch(name) != db)
		raise_no_branch(name);
	if (ab_storage_created_here(db))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot detach branch \"%s\" in the transaction that created it", name),
				 errhint("Commit first.")));
	ab_registry_check_protection(db, name, "detach");
	check_no_children(db, name);
	ab_branch_require_sound(db, name);
	if (force)
		ab_sessions_end(db, name);
	ab_sessions_check(db, name);

	/* closes snapshots that nobody needs, too: nothing of it is live then */
	ab_pins_check_files(db, "detach");
}

static void
report(const AbComplete *c, const char *name)
{
	char		detail[96];

	snprintf(detail, sizeof(detail), "{\"pages\": %llu, \"pages_copied\": %llu}",
			 (unsigned long long) c->pages, (unsigned long long) c->copied);
	ab_event("detached", c->db, name, ab_database_name(c->origin.parent_db), detail);
	ereport(NOTICE,
			(errmsg("branch \"%s\" will be a plain database when this transaction has committed",
					name),
			 errdetail("%llu of %llu pages were copied, the others were its own or empty.",
					   (unsigned long long) c->copied, (unsigned long long) c->pages)));
}

void
ab_detach_branch(const char *name, bool force)
{
	AbComplete	complete;
	Oid			db;

	ab_prevent_read_only("branch detachment");

	/* who has no right to it must not be able to hold its name */
	(void) find_branch(name);
	ab_lock_branch_name(name);
	db = find_branch(name);
	lock_branch(db, name, force);
	ab_agent_role_release(db);
	ab_complete_files(db, name, &complete);
	ab_quota_gone(db);
	remember(&complete);
	report(&complete, name);
}
