/*
 * ab_hooks_database.c
 *	  Statements about databases that the server would carry out by copying,
 *	  moving or removing directories: what they may not do to branches (M17).
 *
 * Any backend.  The checks before a statement run without locks and are meant for
 * people, except for that of ALTER DATABASE ... SET TABLESPACE, which takes the
 * statement's AccessExclusiveLock early; ab_check_drop_database() runs in the object
 * access hook, under the statement's lock.  These two are exact.
 */
#include "ab_hooks.h"

#include "access/htup_details.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "commands/tablespace.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/syscache.h"

#include "ab_base.h"
#include "ab_catalogrows.h"
#include "ab_dir.h"
#include "ab_events.h"
#include "ab_file.h"
#include "ab_gc.h"
#include "ab_kept.h"
#include "ab_lifecycle.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_registry.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_softdelete.h"
#include "ab_suspendstats.h"

static DefElem *
find_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *defel = lfirst_node(DefElem, lc);

		if (strcmp(defel->defname, name) == 0)
			return defel;
	}
	return NULL;
}

static bool
strategy_is(const CreatedbStmt *stmt, const char *strategy)
{
	DefElem    *defel = find_option(stmt->options, "strategy");

	return defel != NULL && defel->arg != NULL &&
		pg_strcasecmp(defGetString(defel), strategy) == 0;
}

bool
ab_statement_is_branch(const CreatedbStmt *stmt)
{
	return strategy_is(stmt, "branch");
}

static bool
is_hidden_name(const char *name)
{
	AbSnapId	id;

	return ab_hidden_name_parse(name, &id);
}

static bool
is_reserved(const char *name)
{
	return ab_hidden_name_is_reserved(name) || ab_deleted_name_is_reserved(name) ||
		ab_base_name_is_reserved(name);
}

static void
refuse_hidden(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("database \"%s\" stands for a snapshot and cannot be changed or copied", name),
			 errdetail("Branches of the snapshot rely on this row."),
			 errhint("branch.gc() removes snapshots that nobody needs.")));
}

/* Rows of snapshots are nobody's; a deleted branch stays as it is until it is recovered. */
static void
check_ordinary(const char *name)
{
	Oid			db;

	if (is_hidden_name(name))
		refuse_hidden(name);
	if (!ab_deleted_name_is_reserved(name))
		return;
	db = get_database_oid(name, true);
	if (OidIsValid(db) && ab_database_is_deleted(db))
		ab_raise_deleted(db);
}

static void
refuse_reserved(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_RESERVED_NAME),
			 errmsg("database name \"%s\" is reserved", name),
			 errdetail("Names that begin like this stand for snapshots or for deleted branches.")));
}

/* Say what the database has to do with branches; NULL: nothing. */
static char *
why_files_must_stay(Oid db)
{
	List	   *children;

	if (ab_origin_exists(db))
		return pstrdup("It is a branch: part of its storage is its parent's snapshot.");
	children = ab_children(db, true);
	if (children != NIL)
		return psprintf("It has branches: %s.", ab_name_list(children));
	return NULL;
}

static char *
why_not_to_copy(Oid db)
{
	int			nkept;

	pfree(ab_kept_relations(db, &nkept));
	if (nkept > 0)
		return pstrdup("It has files of dropped relations that snapshots need, and they would stay in the copy.");
	return why_files_must_stay(db);
}

static Oid
tablespace_of(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Oid			spc;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	spc = ((Form_pg_database) GETSTRUCT(tup))->dattablespace;
	ReleaseSysCache(tup);
	return spc;
}

/*
 * The server copies what is in the directory of the template, whom it will lock as well;
 * from here on nobody puts another in its place.
 */
static void
ensure_directory(Oid db)
{
	if (!ab_origin_exists(db))
		return;
	LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	if (ab_database_name(db) != NULL)
		ab_dir_ensure(db, tablespace_of(db));
}

/* Does a branch inherit tables there?  It may have no files of its own of them. */
static bool
inherits_in(Oid db, Oid spc)
{
	AbBranch   *b = ab_branch_lookup(db);
	const AbManifest *m = b != NULL ? ab_branch_manifest(b) : NULL;

	for (uint32 i = 0; m != NULL && i < m->h->nforks; i++)
	{
		RelFileNode rnode = {m->forks[i].spc, db, m->forks[i].rel};
		const AbFork *f;

		if (rnode.spcNode != spc)
			continue;
		f = ab_fork_lookup(b, rnode, m->forks[i].fork);
		if (f->entry != NULL && !f->dropped)
			return true;
	}
	return false;
}

/*
 * The server looks whether the template has files in what will be the default tablespace of the
 * copy: tables that name it, and others that have the default, would not be told apart there.
 */
static void
check_new_default(const CreatedbStmt *stmt, Oid db)
{
	DefElem    *defel = find_option(stmt->options, "tablespace");
	char	   *name = defel != NULL && defel->arg != NULL ? defGetString(defel) : NULL;
	Oid			spc = name != NULL ? get_tablespace_oid(name, true) : InvalidOid;

	if (OidIsValid(spc) && spc != tablespace_of(db) && inherits_in(db, spc))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot assign new default tablespace \"%s\"", name),
				 errdetail("There is a conflict because database \"%s\" already has some tables in this tablespace.",
						   get_database_name(db))));
}

static void
check_createdb(const CreatedbStmt *stmt)
{
	DefElem    *defel = find_option(stmt->options, "template");
	const char *template = "template1";
	char	   *why;
	Oid			db;

	if (is_reserved(stmt->dbname))
		refuse_reserved(stmt->dbname);
	if (defel != NULL && defel->arg != NULL)
		template = defGetString(defel);
	check_ordinary(template);

	db = get_database_oid(template, true);
	if (!OidIsValid(db))
		return;
	ab_branch_require_sound(db, template);
	why = strategy_is(stmt, "file_copy") ? why_not_to_copy(db) : NULL;
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot copy the files of database \"%s\"", template),
				 errdetail("%s", why),
				 errhint("Use STRATEGY wal_log for a full copy, or STRATEGY branch.")));
	check_new_default(stmt, db);
	ensure_directory(db);
}

/*
 * Take the statement's own lock, early, so that what is found stays true.  Invalid: the
 * statement will fail, and say why.
 */
static Oid
lock_to_move(const char *name)
{
	for (;;)
	{
		Oid			db = get_database_oid(name, true);

		if (!OidIsValid(db) || db == MyDatabaseId ||
			!pg_database_ownercheck(db, GetUserId()))
			return InvalidOid;
		LockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
		if (get_database_oid(name, true) == db)
			return db;
		UnlockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	}
}

static void
check_alter(const AlterDatabaseStmt *stmt)
{
	char	   *why;
	Oid			db;

	check_ordinary(stmt->dbname);
	if (find_option(stmt->options, "tablespace") == NULL)
		return;

	db = lock_to_move(stmt->dbname);
	if (!OidIsValid(db))
		return;
	why = why_files_must_stay(db);
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot move database \"%s\" to another tablespace", stmt->dbname),
				 errdetail("%s", why),
				 errhint("Copy it with CREATE DATABASE ... STRATEGY wal_log TABLESPACE ... instead.")));
	ab_gc_before_files_go(db, "move");
	ab_gc_kept_before_move(db);
}

static void
check_rename(const RenameStmt *stmt)
{
	if (stmt->renameType != OBJECT_DATABASE)
		return;
	check_ordinary(stmt->subname);
	if (is_reserved(stmt->newname))
		refuse_reserved(stmt->newname);
}

/* What was prepared may be such a statement. */
bool
ab_changes_owners(Node *stmt)
{
	return IsA(stmt, ReassignOwnedStmt) ||
		(IsA(stmt, AlterOwnerStmt) &&
		 ((AlterOwnerStmt *) stmt)->objectType == OBJECT_DATABASE) ||
		(IsA(stmt, TransactionStmt) &&
		 ((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED);
}

void
ab_check_database_statement(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreatedbStmt:
			check_createdb((CreatedbStmt *) stmt);
			break;
		case T_AlterDatabaseStmt:
			check_alter((AlterDatabaseStmt *) stmt);
			break;
		case T_RenameStmt:
			check_rename((RenameStmt *) stmt);
			break;
		case T_AlterOwnerStmt:
			if (((AlterOwnerStmt *) stmt)->objectType == OBJECT_DATABASE)
				check_ordinary(strVal(((AlterOwnerStmt *) stmt)->object));
			break;
		case T_AlterDatabaseSetStmt:
			check_ordinary(((AlterDatabaseSetStmt *) stmt)->dbname);
			break;
		case T_AlterDatabaseRefreshCollStmt:
			check_ordinary(((AlterDatabaseRefreshCollStmt *) stmt)->dbname);
			break;
		default:
			break;
	}
}

/* From whatever database; branch.delete() has looked by itself. */
static void
check_protection(Oid db, const char *name)
{
	TimestampTz until;
	bool		protected;

	if (ab_in_control_database())
		protected = ab_registry_protected(db, &until);
	else
		protected = ab_request_protection(db, &until);
	if (protected)
		ab_registry_raise_protected(name, "drop", until);
}

static bool
any_deleted(List *dbs)
{
	ListCell   *lc;

	foreach(lc, dbs)
		if (ab_database_is_deleted(lfirst_oid(lc)))
			return true;
	return false;
}

void
ab_check_drop_database(Oid db, bool files_go)
{
	char	   *name = ab_database_name(db);
	List	   *children;

	if (name == NULL)
		return;
	if (is_hidden_name(name))
		refuse_hidden(name);

	/* branch.delete() and its like have looked for themselves, and may leave children */
	children = files_go ? ab_children(db, true) : NIL;
	if (children != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop database \"%s\", because it has branches", name),
				 errdetail("They are: %s.", ab_name_list(children)),
				 any_deleted(children) ?
				 errhint("Delete these first; those that are deleted already with branch.delete(name, hard => true) in database \"%s\".",
						 ab_control_database) :
				 errhint("Delete these first.")));
	if (files_go && ab_origin_exists(db))
		check_protection(db, name);
	if (files_go)
		ab_gc_before_files_go(db, "drop");
	ab_suspendstats_before_drop(db);
	pfree(name);
}

/* An interrupted DROP DATABASE may have left nothing that says whether it was a branch. */
void
ab_report_drop_database(Oid db)
{
	char	   *name = ab_database_name(db);

	if (name != NULL && ab_origin_exists(db))
	{
		/* a database without any is dropped without a WAL record */
		ab_dir_make_empty(db, tablespace_of(db));
		ab_report_deleted(db, name);
	}
	else if (name != NULL && ab_database_is_invalid(db))
		ab_event_find_out();
}

static List *
living_branches(void)
{
	AbOrigins  *origins = ab_origin_all();
	List	   *found = NIL;

	for (int i = 0; i < origins->n; i++)
	{
		char	   *name = ab_database_name(origins->dbs[i]);

		if (name != NULL && !is_hidden_name(name) && !ab_base_name_is_reserved(name))
			found = lappend_oid(found, origins->dbs[i]);
	}
	ab_origins_free(origins);
	return found;
}

void
ab_warn_drop_extension(Oid extension)
{
	List	   *branches;

	if (extension != get_extension_oid("agent_branch", true) || !ab_in_control_database())
		return;
	branches = living_branches();
	if (branches != NIL)
		ereport(WARNING,
				(errmsg("extension \"agent_branch\" is dropped while there are branches"),
				 errdetail("They stay: %s. What has been said about them is forgotten.",
						   ab_name_list(branches)),
				 errhint("The server must not be started without the library before they are deleted: CREATE EXTENSION agent_branch finds them again.")));
}

/* A snapshot whose manifest is damaged needs nothing any more. */
static bool
has_files_in(AbSnapId id, Oid spc)
{
	char	   *path = ab_snapshot_path(id, ".manifest");
	size_t		len;
	char	   *image = ab_file_read(path, &len);
	bool		found = false;
	AbManifest	m;

	if (image != NULL && ab_manifest_check(image, len, &m) == NULL)
	{
		for (uint32 i = 0; i < m.h->nforks && !found; i++)
			found = m.forks[i].spc == spc;
	}
	if (image != NULL)
		pfree(image);
	pfree(path);
	return found;
}

void
ab_check_created_database(Oid db)
{
	char	   *path = psprintf("%s/%u", AB_IMAGE_DIR, db);

	/* of a branch whose row is gone there need not be a directory */
	if (ab_origin_exists(db) || ab_file_exists(path))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("database OID %u cannot be used yet", db),
				 errdetail("A dropped database had it, and files of that are still there."),
				 errhint("Call branch.gc(), or try again for another OID.")));
	pfree(path);
}

/*
 * A branch has no directory in a tablespace until it writes there, so the server
 * would find the tablespace empty (M10).
 */
void
ab_check_drop_tablespace(Oid spc, const char *name)
{
	AbSnapSlot *slots;
	int			n;

	slots = ab_snaptable_all(&n);
	for (int i = 0; i < n; i++)
	{
		char	   *hidden = ab_hidden_name(slots[i].id);

		if (slots[i].confirmed &&
			(slots[i].nbranches > 0 || OidIsValid(get_database_oid(hidden, true))) &&
			has_files_in(slots[i].id, spc))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("tablespace \"%s\" is not empty", name),
					 errdetail("Branches inherit relations in it."),
					 errhint("Delete the branches and the snapshots they hang on first; branch.gc() removes unused snapshots.")));
		pfree(hidden);
	}
	pfree(slots);
}
