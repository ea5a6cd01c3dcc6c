/*
 * ab_delete.c
 *	  Deleting a branch: for good, its row goes with the transaction, and its files
 *	  are swept after that (invariant B1); or recoverably (ab_softdelete.c).
 *
 * Backends, in any database and in any (sub)transaction.  Holds the name lock and
 * AccessExclusiveLock on the database object to the end of the transaction, so
 * nobody connects to the branch or makes a child of it meanwhile.  Rollback undoes
 * everything except the sessions that force has ended.
 */
#include "ab_lifecycle.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_subscription.h"
#include "commands/comment.h"
#include "commands/dbcommands.h"
#include "commands/seclabel.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_agentrole.h"
#include "ab_base.h"
#include "ab_branchsetting.h"
#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_pause.h"
#include "ab_quota.h"
#include "ab_registry.h"
#include "ab_request.h"
#include "ab_sessions.h"
#include "ab_settings.h"
#include "ab_snaptable.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"

/* Names given in an error's DETAIL. */
#define MAX_NAMES 10

/* How long one waits for a base that another is dropping, or leaves, as for sessions. */
#define BASE_WAIT_MS	5000
#define BASE_POLL_MS	20

/* ---- children ---- */

/* Could anything be a child of this database?  No file is read. */
static bool
may_have_children(Oid db)
{
	int			n;
	AbSnapSlot *slots = ab_snaptable_all(&n);
	bool		result = false;

	for (int i = 0; i < n && !result; i++)
		result = slots[i].nbranches > 0 &&
			(slots[i].source_db == db || slots[i].lent);
	pfree(slots);
	return result;
}

static bool
try_drop_base(Oid db, bool for_good)
{
	if (for_good && ab_request_drop_base(db))
	{
		AcceptInvalidationMessages();
		return true;
	}
	return ab_base_drop(db);
}

/* The sweeper, branch.gc() or another's drop may just be at it: false only if it stays in use. */
static bool
drop_base(Oid db, bool for_good)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BASE_WAIT_MS);

	while (!try_drop_base(db, for_good))
	{
		if (GetCurrentTimestamp() >= deadline)
			return false;
		ab_pause(BASE_POLL_MS);
		AcceptInvalidationMessages();
	}
	return true;
}

List *
ab_children(Oid db, bool files_go)
{
	List	   *children = NIL;
	AbOrigins  *origins;

	if (!may_have_children(db))
		return NIL;

	origins = ab_origin_all();
	for (int i = 0; i < origins->n; i++)
	{
		AbOriginHeader header;
		Oid			child = origins->dbs[i];

		CHECK_FOR_INTERRUPTS();
		if (ab_storage_read_listed(origins, i, &header) &&
			header.parent_db == db &&
			SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(child)) &&
			!(ab_is_base(child) && drop_base(child, files_go)))
			children = lappend_oid(children, child);
	}
	ab_origins_free(origins);
	return children;
}

char *
ab_name_list(List *dbs)
{
	StringInfoData buf;
	int			named = 0;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, dbs)
	{
		char	   *name = ab_database_name(lfirst_oid(lc));

		if (name == NULL)
			continue;
		if (named == MAX_NAMES)
		{
			appendStringInfo(&buf, " and %d more",
							 list_length(dbs) - foreach_current_index(lc));
			break;
		}
		appendStringInfo(&buf, "%s\"%s\"", named > 0 ? ", " : "", name);
		named++;
	}
	return buf.data;
}

/* Those that are deleted do not count: their pages stay as long as they can be recovered. */
static void
check_no_children(Oid db, const char *name, const char *verb)
{
	List	   *children = NIL;
	ListCell   *lc;

	foreach(lc, ab_children(db, false))
		if (!ab_database_is_deleted(lfirst_oid(lc)))
			children = lappend_oid(children, lfirst_oid(lc));

	if (children != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("branch \"%s\" has branches", name),
				 errdetail("They are: %s.", ab_name_list(children)),
				 strcmp(verb, "delete") == 0 ?
				 errhint("Delete these first, or say what becomes of them with argument on_children of branch.delete().") :
				 errhint("Delete these first, or leave them on what is there now with argument preserve_under_name.")));
}

/* ---- who uses it ---- */

static void
check_replication(Oid db, const char *name)
{
	int			nslots;
	int			nactive;
	int			nsubscriptions;

	(void) ReplicationSlotsCountDBSlots(db, &nslots, &nactive);
	if (nactive > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("branch \"%s\" is used by an active logical replication slot", name),
				 errdetail_plural("There is %d active slot.",
								  "There are %d active slots.", nactive, nactive),
				 errhint("Stop its consumer first; branch.sync_stop() ends a sync.")));

	nsubscriptions = CountDBSubscriptions(db);
	if (nsubscriptions > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("branch \"%s\" is used by a logical replication subscription", name),
				 errdetail_plural("There is %d subscription.",
								  "There are %d subscriptions.",
								  nsubscriptions, nsubscriptions),
				 errhint("Drop it there with DROP SUBSCRIPTION first; branch.sync_stop() ends a sync.")));
}

void
ab_check_not_template(Oid db, const char *name)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	bool		istemplate;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	istemplate = ((Form_pg_database) GETSTRUCT(tup))->datistemplate;
	ReleaseSysCache(tup);
	if (istemplate)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot delete branch \"%s\", because it is a template database", name),
				 errhint("Use ALTER DATABASE ... IS_TEMPLATE false first.")));
}

/*
 * Whoever drops a branch removes its origin before he commits: where there is none, wait
 * for him.  False if the name is another's, or nobody's, after that.
 */
static bool
is_no_branch(Oid db, const char *name)
{
	LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	return get_database_oid(name, true) == db && !ab_origin_exists(db);
}

Oid
ab_find_own_branch(const char *name, const char *verb)
{
	Oid			db;

	ab_check_no_snapshot(name);
	for (;;)
	{
		db = get_database_oid(name, true);
		if (!OidIsValid(db) || ab_database_is_deleted(db))
			return InvalidOid;
		if (!pg_database_ownercheck(db, GetUserId()))
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_DATABASE, name);
		/* a damaged origin is one, too: such a branch can still be deleted */
		if (ab_origin_exists(db))
			break;
		if (is_no_branch(db, name))
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("database \"%s\" is not a branch", name),
					 strcmp(verb, "delete") == 0 ?
					 errhint("Use DROP DATABASE to drop a database that is not a branch.") :
					 errhint("The view branch.branches lists the branches.")));
	}

	if (db == MyDatabaseId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot %s branch \"%s\", because this session is connected to it",
						verb, name),
				 errhint("Connect to another database first.")));
	return db;
}

bool
ab_lock_for_delete(Oid db, const char *name, const char *verb, bool with_children,
				   bool force)
{
	char	   *now;
	bool		same;

	LockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	now = ab_database_name(db);
	same = now != NULL && strcmp(now, name) == 0;
	if (!same)
		return false;

	/* it may have been given to somebody else while we waited */
	if (!pg_database_ownercheck(db, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_DATABASE, name);

	ab_registry_check_protection(db, name, verb);
	if (!with_children)
		check_no_children(db, name, verb);
	check_replication(db, name);
	if (force)
		ab_sessions_end(db, name);
	ab_sessions_check(db, name);
	return true;
}

void
ab_check_unused(Oid db, const char *name)
{
	check_replication(db, name);
	ab_sessions_check(db, name);
}

/* ---- rows ---- */

static bool wake_wanted = false;

/*
 * A transaction callback would be too early: the sweep passes over a database
 * whose lock we still hold.
 */
static void
at_release(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (!wake_wanted || !isTopLevel || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	wake_wanted = false;
	if (isCommit)
		ab_request_wake_keeper();
}

static void
request_sweep(void)
{
	static bool registered = false;

	if (!registered)
		RegisterResourceReleaseCallback(at_release, NULL);
	registered = true;
	wake_wanted = true;
}

void
ab_delete_rows(Oid db)
{
	Relation	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	HeapTuple	tup;

	InvokeObjectDropHook(DatabaseRelationId, db, 0);

	tup = SearchSysCacheCopy1(DATABASEOID, ObjectIdGetDatum(db));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	CatalogTupleDelete(rel, &tup->t_self);
	heap_freetuple(tup);

	DeleteSharedComments(db, DatabaseRelationId);
	DeleteSharedSecurityLabel(db, DatabaseRelationId);
	DropSetting(db, InvalidOid);
	dropDatabaseDependencies(db);
	AB_FAILPOINT("delete-rows");
	pgstat_drop_database(db);

	table_close(rel, NoLock);
	CommandCounterIncrement();
	request_sweep();
}

void
ab_delete_for_good(Oid db)
{
	Oid			role = ab_agent_role_of(db);

	ab_delete_rows(db);
	ab_agent_role_drop(role);
}

/* ---- delete ---- */

void
ab_report_deleted(Oid db, const char *name)
{
	AbOriginHeader header;
	char	   *parent = NULL;

	if (ab_database_is_deleted(db))
	{
		ab_report_purged(db);
		return;
	}
	ab_quota_gone(db);
	if (ab_storage_read_origin(db, &header))
		parent = ab_database_name(header.parent_db);
	ab_event("deleted", db, name, parent, "{\"hard\": true}");
}

/* Of one that is invalid nothing could be recovered. */
void
ab_delete_locked(Oid db, const char *name, bool hard)
{
	if (!hard && !ab_database_is_invalid(db) &&
		ab_branchsetting(db, AB_BRANCH_RECOVERY_WINDOW) > 0)
	{
		ab_soft_delete(db, name);
		return;
	}
	ab_report_deleted(db, name);
	ab_delete_for_good(db);
}

static bool
delete_living(const AbDeleteOptions *opt)
{
	Oid			db = ab_find_own_branch(opt->name, "delete");

	if (!OidIsValid(db))
		return false;
	if (opt->on_children == AB_CHILDREN_CASCADE)
	{
		ab_delete_tree(db, opt);
		return true;
	}

	/* who has no right to it must not be able to hold its name */
	ab_lock_branch_name(opt->name);
	db = ab_find_own_branch(opt->name, "delete");
	if (!OidIsValid(db))
		return false;
	ab_check_not_template(db, opt->name);
	if (!ab_lock_for_delete(db, opt->name, "delete",
							opt->on_children == AB_CHILDREN_KEEP, opt->force))
		return false;
	ab_delete_locked(db, opt->name, opt->hard);
	return true;
}

/* Those who depend on it have been left to themselves when it was deleted first. */
static bool
delete_deleted(const AbDeleteOptions *opt)
{
	Oid			db;

	if (opt->on_children == AB_CHILDREN_CASCADE)
	{
		db = ab_find_deleted(opt->name, false);
		if (OidIsValid(db))
			ab_delete_tree(db, opt);
		return OidIsValid(db);
	}
	db = ab_lock_deleted(opt->name);
	if (OidIsValid(db))
		ab_purge(db);
	return OidIsValid(db);
}

/* One that was deleted when we looked for the living may live when we look for the deleted. */
static bool
delete_either(const AbDeleteOptions *opt)
{
	do
	{
		if (delete_living(opt) || delete_deleted(opt))
			return true;
	} while (OidIsValid(ab_find_own_branch(opt->name, "delete")));
	return false;
}

void
ab_delete_branch(const AbDeleteOptions *opt)
{
	ab_prevent_read_only("branch deletion");
	if (opt->hard ? delete_either(opt) : delete_living(opt))
		return;
	if (!opt->if_exists)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("branch \"%s\" does not exist", opt->name),
				 errhint("The view branch.branches lists those that do.")));
	ereport(NOTICE,
			(errmsg("branch \"%s\" does not exist, skipping", opt->name)));
}
