/*
 * ab_rename.c
 *	  Giving a branch another name.
 *
 * Backends.  Nothing of a branch is stored under its name but its row in pg_database.
 * Locks: the names, then AccessExclusiveLock on the database object, both to the end of
 * the transaction; a crash leaves what was committed.
 */
#include "ab_rename.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "ab_agentrole.h"
#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_events.h"
#include "ab_sessions.h"
#include "ab_storagefiles.h"

/* The tuple is locked against VACUUM, which changes frozen ids in place. */
bool
ab_change_database(Oid db, const char *name, const bool *allow_connections)
{
	Relation	rel;
	HeapTuple	tup;
	ItemPointerData tid;
	Form_pg_database form;
	bool		before;

	ab_agent_role_follow(db, name, allow_connections);
	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	tup = SearchSysCacheLockedCopy1(DATABASEOID, ObjectIdGetDatum(db));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	tid = tup->t_self;
	form = (Form_pg_database) GETSTRUCT(tup);
	before = form->datallowconn;
	namestrcpy(&form->datname, name);
	if (allow_connections != NULL)
		form->datallowconn = *allow_connections;
	CatalogTupleUpdate(rel, &tid, tup);
	UnlockTuple(rel, &tid, InplaceUpdateTupleLock);
	InvokeObjectPostAlterHook(DatabaseRelationId, db, 0);
	heap_freetuple(tup);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return before;
}

/* As the server has it for ALTER DATABASE ... RENAME. */
void
ab_check_may_name(const char *what, const char *name)
{
	if (!ab_have_createdb())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to %s branch \"%s\"", what, name),
				 errdetail("Role \"%s\" has no CREATEDB attribute, which a new name takes.",
						   GetUserNameFromId(GetUserId(), false)),
				 ab_errhint_createdb()));
}

static Oid
find_branch(const char *name)
{
	Oid			db = ab_find_own_branch(name, "rename");

	if (!OidIsValid(db))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("branch \"%s\" does not exist", name),
				 errhint("The view branch.branches lists those that do.")));
	return db;
}

static void
report_renamed(Oid db, const char *name, const char *new_name)
{
	StringInfoData detail;
	AbOriginHeader header;
	char	   *parent = NULL;

	if (ab_storage_read_origin(db, &header))
		parent = ab_database_name(header.parent_db);
	initStringInfo(&detail);
	appendStringInfoString(&detail, "{\"old_name\": ");
	escape_json(&detail, name);
	appendStringInfoChar(&detail, '}');
	ab_event("renamed", db, new_name, parent, detail.data);
}

/* Rights come first: who has none must not be able to hold a name. */
Oid
ab_rename_branch(const char *name, const char *new_name, bool force)
{
	bool		in_order = strcmp(name, new_name) < 0;
	char	   *now;
	Oid			db;

	ab_prevent_read_only("branch renaming");
	ab_check_branch_name(new_name);
	(void) find_branch(name);
	ab_check_may_name("rename", name);
	ab_lock_branch_name(in_order ? name : new_name);
	ab_lock_branch_name(in_order ? new_name : name);
	db = find_branch(name);
	LockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	now = ab_database_name(db);
	if (now == NULL || strcmp(now, name) != 0 || find_branch(name) != db)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("branch \"%s\" has been changed by another transaction", name),
				 errhint("Try again.")));
	if (OidIsValid(get_database_oid(new_name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_DATABASE),
				 errmsg("database \"%s\" already exists", new_name)));
	if (force)
		ab_sessions_end(db, name);
	ab_sessions_check(db, name);
	ab_event_make_known(db, name);
	(void) ab_change_database(db, new_name, NULL);
	ab_default_parent_follow(name, new_name);
	report_renamed(db, name, new_name);
	return db;
}
