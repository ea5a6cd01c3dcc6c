/*
 * ab_reset.c
 *	  Resetting and restoring a branch: a new database of the same name, with the
 *	  parent's contents of now or those of a snapshot, in place of the old one.
 *
 * Backends; one transaction deletes (or renames) and creates, so others see the old
 * branch or the new one.  Locks: names, parent, snapshot, old database, new database
 * (extension/README.locking).  What people have attached to the database in the
 * shared catalogs (owner, grants, settings, comment, security labels) moves over to
 * the new OID.
 */
#include "ab_lifecycle.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/json.h"
#include "utils/syscache.h"

#include "ab_agentrole.h"
#include "ab_attachments.h"
#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_failpoint.h"
#include "ab_origin.h"
#include "ab_quota.h"
#include "ab_registry.h"
#include "ab_sessions.h"
#include "ab_snapshot.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"

/* Columns of the old row that the new one keeps. */
static void
save_row(Oid db, AbNewBranch *nb)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Form_pg_database form;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	form = (Form_pg_database) GETSTRUCT(tup);
	nb->owner = form->datdba;
	nb->allow_connections = form->datallowconn;
	nb->is_template = form->datistemplate;
	nb->connection_limit = form->datconnlimit;

	/* left behind by a DROP DATABASE that was interrupted */
	if (nb->connection_limit < -1)
		nb->connection_limit = -1;
	ReleaseSysCache(tup);
}

/* ---- which snapshot, of which parent ---- */

static void
raise_no_branch(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_DATABASE),
			 errmsg("branch \"%s\" does not exist", name),
			 errhint("The view branch.branches lists those that do.")));
}

static const char *
verb(const AbResetOptions *opt)
{
	return AbSnapIdIsValid(opt->at) ? "restore" : "reset";
}

/* The branch to be reset; not locked yet. */
static Oid
find_branch(const AbResetOptions *opt)
{
	Oid			db = ab_find_own_branch(opt->name, verb(opt));

	if (!OidIsValid(db))
		raise_no_branch(opt->name);
	if (AbSnapIdIsValid(opt->at) && db != opt->at_db)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("branch \"%s\" has been replaced by another transaction",
						opt->name),
				 errhint("Try again.")));
	return db;
}

/* The parent a branch was made of; its name in *name, NULL if it is gone. */
static Oid
parent_of(Oid db, const char *branch, char **name)
{
	AbOriginHeader header;

	if (!ab_origin_read(db, &header))
		raise_no_branch(branch);
	*name = ab_database_name(header.parent_db);
	return header.parent_db;
}

/* May this user do it?  Who may not must not be able to hold names either. */
static void
check_source_rights(const AbResetOptions *opt, Oid db)
{
	char	   *name;
	Oid			parent;

	if (opt->at_own)
	{
		ab_check_parent_rights(db, opt->name);
		return;
	}
	parent = parent_of(db, opt->name, &name);
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("the parent of branch \"%s\" does not exist any more", opt->name),
				 errdetail("It was database %u.", parent),
				 errhint("Delete the branch and create it from another parent, or restore it to a snapshot of itself.")));
	if (ab_database_is_deleted(parent))
		ab_raise_deleted(parent);
	ab_check_parent_rights(parent, name);
}

/*
 * Parent and snapshot of the new incarnation, locked.  This comes before the
 * transaction writes anything: it may be in the parent itself.
 */
static void
choose_snapshot(const AbResetOptions *opt, Oid old, AbNewBranch *nb)
{
	char	   *name;

	nb->parent = parent_of(old, opt->name, &name);
	nb->snapshot = opt->at;
	if (opt->at_own && opt->preserve_under_name)
		nb->parent = old;		/* which will be locked even more */
	else if (opt->at_own)
		LockSharedObject(DatabaseRelationId, nb->parent, 0, AccessShareLock);
	else if (name == NULL)
		raise_no_branch(opt->name); /* both have gone */
	else
		ab_lock_parent(nb->parent, name);

	if (AbSnapIdIsValid(opt->at))
		ab_snapshot_get_at(opt->at);
	else
		nb->snapshot = ab_parent_snapshot(nb->parent);
}

/* ---- reset ---- */

/* Lock names in one order, whoever wants which of them. */
static void
lock_names(const AbResetOptions *opt)
{
	const char *other = opt->preserve_under_name;

	if (other && strcmp(other, opt->name) < 0)
		ab_lock_branch_name(other);
	ab_lock_branch_name(opt->name);
	if (other && strcmp(other, opt->name) > 0)
		ab_lock_branch_name(other);
}

/*
 * The old incarnation keeps everything but its name and its agent, who is the new
 * one's; its own branches included.
 * The server looks at rights, names and sessions, and waits for these.
 */
static void
preserve(const AbResetOptions *opt)
{
	Oid			db = get_database_oid(opt->name, false);

	(void) RenameDatabase(opt->name, opt->preserve_under_name);
	CommandCounterIncrement();
	ab_agent_give_database(db, InvalidOid);
}

/* Lock the old incarnation; nobody must use it. */
static void
lock_old(Oid old, const AbResetOptions *opt)
{
	char	   *now;

	if (opt->preserve_under_name == NULL)
	{
		if (!ab_lock_for_delete(old, opt->name, verb(opt), false, opt->force))
			raise_no_branch(opt->name);
		return;
	}
	LockSharedObject(DatabaseRelationId, old, 0, AccessExclusiveLock);
	now = ab_database_name(old);
	if (now == NULL || strcmp(now, opt->name) != 0)
		raise_no_branch(opt->name);
	if (!pg_database_ownercheck(old, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_DATABASE, opt->name);
	ab_registry_check_protection(old, opt->name, verb(opt));
	if (opt->force)
		ab_sessions_end(old, opt->name);
}

/* The preserved state has its OID, the branch another one. */
static void
report_reset(const AbResetOptions *opt, Oid old, Oid new, const AbNewBranch *nb)
{
	StringInfoData detail;
	char		id[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(nb->snapshot, id);
	initStringInfo(&detail);
	appendStringInfo(&detail, "{\"snapshot\": \"%s\", \"old_id\": %u", id, old);
	if (opt->preserve_under_name)
	{
		appendStringInfoString(&detail, ", \"preserved_as\": ");
		escape_json(&detail, opt->preserve_under_name);
	}
	appendStringInfoChar(&detail, '}');
	ab_event(AbSnapIdIsValid(opt->at) ? "restored" : "reset", new, opt->name,
			 ab_database_name(nb->parent), detail.data);
}

/* With what is preserved there is one branch more. */
static void
check_quota(const AbResetOptions *opt, Oid old)
{
	char	   *name;

	if (opt->preserve_under_name)
		ab_quota_check_create(ab_database_owner(old),
							  opt->at_own ? old : parent_of(old, opt->name, &name), 1);
}

/* Before its files go. */
static void
note_replaced(Oid db, AbReplaced *replaced)
{
	AbOriginHeader header;

	replaced->db = db;
	replaced->known = ab_storage_read_origin(db, &header);
	replaced->created_at = replaced->known ? header.created_at : 0;
}

Oid
ab_reset_branch(const AbResetOptions *opt, AbReplaced *replaced)
{
	AbNewBranch nb = {0};
	AbAttachments *attachments;
	Oid			old;
	Oid			new;

	ab_prevent_read_only("branch reset");
	if (opt->preserve_under_name)
		ab_check_branch_name(opt->preserve_under_name);
	check_source_rights(opt, find_branch(opt));
	lock_names(opt);
	old = find_branch(opt);
	check_source_rights(opt, old);
	check_quota(opt, old);
	nb.name = opt->name;
	choose_snapshot(opt, old, &nb);

	lock_old(old, opt);
	note_replaced(old, replaced);
	ab_event_make_known(old, opt->name);
	save_row(old, &nb);
	attachments = ab_attachments_save(old);
	nb.acl = attachments->acl;

	if (opt->preserve_under_name)
		preserve(opt);
	else
		ab_delete_rows(old);
	AB_FAILPOINT("reset-old-gone");
	new = ab_insert_branch(&nb);
	ab_attachments_restore(new, attachments);
	AB_FAILPOINT("reset-attached");
	report_reset(opt, old, new, &nb);
	return new;
}
