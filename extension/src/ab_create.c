/*
 * ab_create.c
 *	  Creating a branch: names, rights, locks, catalog rows.
 *
 * Backends, in any database of the cluster and in any (sub)transaction.  Locks are
 * taken in the order of extension/README.locking and kept to the end of the
 * transaction.  Everything here is undone by abort; what a crash leaves is
 * ab_storage.c's.
 */
#include "ab_lifecycle.h"

#include "access/htup_details.h"
#include "access/parallel.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "ab_agentrole.h"
#include "ab_attachments.h"
#include "ab_base.h"
#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_detach.h"
#include "ab_events.h"
#include "ab_failpoint.h"
#include "ab_manifest.h"
#include "ab_quota.h"
#include "ab_settings.h"
#include "ab_snapshot.h"
#include "ab_softdelete.h"
#include "ab_storage.h"

/* ---- names ---- */

void
ab_prevent_read_only(const char *what)
{
	ab_require_preloaded();
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	PreventCommandDuringRecovery(what);
}

void
ab_check_branch_name(const char *name)
{
	if (name == NULL || name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a branch must not be empty")));
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("branch name \"%s\" is too long", name),
				 errdetail("It has %zu bytes, and a database name can have %d.",
						   strlen(name), NAMEDATALEN - 1)));
	if (ab_hidden_name_is_reserved(name) || ab_deleted_name_is_reserved(name) ||
		ab_base_name_is_reserved(name))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("branch name \"%s\" is reserved", name),
				 errdetail("Names that begin like this stand for snapshots or for deleted branches.")));
}

/*
 * Two transactions that create, delete or rename a branch of one name take turns,
 * so that the second sees what the first has done.  Two names with one hash merely
 * wait for each other.
 */
void
ab_lock_branch_name(const char *name)
{
	LOCKTAG		tag;
	uint32		hash = hash_bytes((const unsigned char *) name, strlen(name));

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, hash, 1);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	AcceptInvalidationMessages();
}

char *
ab_database_name(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	char	   *name;

	if (!HeapTupleIsValid(tup))
		return NULL;
	name = pstrdup(NameStr(((Form_pg_database) GETSTRUCT(tup))->datname));
	ReleaseSysCache(tup);
	return name;
}

bool
ab_database_is_invalid(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	bool		invalid;

	if (!HeapTupleIsValid(tup))
		return false;
	invalid = ((Form_pg_database) GETSTRUCT(tup))->datconnlimit < -1;
	ReleaseSysCache(tup);
	return invalid;
}

AbTryLock
ab_try_lock_database(Oid db)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	switch (LockAcquire(&tag, AccessExclusiveLock, false, true))
	{
		case LOCKACQUIRE_NOT_AVAIL:
			break;
		case LOCKACQUIRE_ALREADY_HELD:
		case LOCKACQUIRE_ALREADY_CLEAR:
			LockRelease(&tag, AccessExclusiveLock, false);
			return AB_LOCKED_BEFORE;
		case LOCKACQUIRE_OK:
			AcceptInvalidationMessages();
			return AB_LOCKED_NOW;
	}
	return AB_LOCK_NOT_FREE;
}

/* ---- the parent ---- */

static void
raise_no_parent(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_DATABASE),
			 errmsg("parent database \"%s\" does not exist", name),
			 errhint("Name an existing database as the parent, or create this one first.")));
}

void
ab_check_no_snapshot(const char *name)
{
	AbSnapId	id;

	if (!ab_hidden_name_parse(name, &id) && !ab_base_name_is_reserved(name))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("\"%s\" is a snapshot, not a database", name),
			 errhint("Name the database that the snapshot was taken of; branch.create() takes the snapshot as argument \"at\".")));
}

Oid
ab_find_parent(const char *name)
{
	Oid			parent;

	ab_check_no_snapshot(name);
	parent = get_database_oid(name, true);
	if (!OidIsValid(parent))
		raise_no_parent(name);
	if (ab_database_is_deleted(parent))
		ab_raise_deleted(parent);
	return parent;
}

bool
ab_have_createdb(void)
{
	HeapTuple	tup;
	bool		result = false;

	if (superuser())
		return true;
	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tup))
	{
		result = ((Form_pg_authid) GETSTRUCT(tup))->rolcreatedb;
		ReleaseSysCache(tup);
	}
	return result;
}

int
ab_errhint_createdb(void)
{
	return errhint("Have a superuser grant it: ALTER ROLE %s CREATEDB.",
				   quote_identifier(GetUserNameFromId(GetUserId(), false)));
}

void
ab_check_parent_rights(Oid parent, const char *name)
{
	if (superuser())
		return;
	if (!pg_database_ownercheck(parent, GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to branch database \"%s\"", name),
				 errdetail("Role \"%s\" does not own the database.",
						   GetUserNameFromId(GetUserId(), false)),
				 errhint("Superusers can branch any database, other roles with CREATEDB those they own.")));
	if (!ab_have_createdb())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to branch database \"%s\"", name),
				 errdetail("Role \"%s\" has no CREATEDB attribute.",
						   GetUserNameFromId(GetUserId(), false)),
				 ab_errhint_createdb()));
}

void
ab_lock_parent(Oid parent, const char *name)
{
	char	   *now;

	LockSharedObject(DatabaseRelationId, parent, 0, AccessShareLock);

	/* dropped or renamed while we waited? */
	now = ab_database_name(parent);
	if (now == NULL || strcmp(now, name) != 0)
		raise_no_parent(name);
	pfree(now);
	if (ab_database_is_deleted(parent))
		ab_raise_deleted(parent);

	if (database_is_invalid_oid(parent))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot branch invalid database \"%s\"", name),
				 errdetail("A DROP DATABASE of it was interrupted."),
				 errhint("Use DROP DATABASE to drop invalid databases.")));

	/* the keeper could not see its pg_shdepend rows */
	if (ab_storage_created_here(parent))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot branch database \"%s\" in the transaction that created it", name),
				 errhint("Commit first.")));

	/* the snapshot would lean on one that is about to go */
	if (ab_detach_is_pending(parent))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot branch database \"%s\" in the transaction that detaches it", name),
				 errhint("Commit first.")));

	/* it may have been given to somebody else while we waited */
	ab_check_parent_rights(parent, name);
}

Oid
ab_database_owner(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Oid			owner;

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", db)));
	owner = ((Form_pg_database) GETSTRUCT(tup))->datdba;
	ReleaseSysCache(tup);
	return owner;
}

/*
 * A snapshot survives ALTER DATABASE ... SET TABLESPACE of its source, but then
 * its pages are not where the parent's row says any more.
 */
AbSnapId
ab_parent_snapshot(Oid parent)
{
	AbSnapId	id = ab_snapshot_get(parent, false);
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(parent));
	AbManifest *m;
	bool		same;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", parent);
	m = ab_manifest_acquire(id);
	same = m->h->source_spc == ((Form_pg_database) GETSTRUCT(tup))->dattablespace;
	ab_manifest_release(m);
	ReleaseSysCache(tup);
	return same ? id : ab_snapshot_get(parent, true);
}

/* ---- rows ---- */

/* The hidden row of a snapshot that this transaction has locked. */
static Oid
hidden_database(AbSnapId id)
{
	char	   *name = ab_hidden_name(id);
	Oid			db = get_database_oid(name, true);

	if (!OidIsValid(db))
		elog(ERROR, "snapshot row \"%s\" is missing", name);
	pfree(name);
	return db;
}

/*
 * Insert the pg_database row: the hidden one, which is the parent's as it was at the
 * snapshot (rule 30), with what is the branch's own; or that of a descendant of the snapshot,
 * which is like it in all that matters but for the tablespace.
 */
static Oid
insert_row(Relation rel, Oid db, const AbNewBranch *nb)
{
	Oid			hidden_db = OidIsValid(nb->pattern) ? nb->pattern : hidden_database(nb->snapshot);
	HeapTuple	hidden = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(hidden_db));
	AbManifest *m = ab_manifest_acquire(nb->snapshot);
	Datum		values[Natts_pg_database];
	bool		nulls[Natts_pg_database];
	NameData	name;
	HeapTuple	tup;
	Oid			spc;

	if (!HeapTupleIsValid(hidden))
		elog(ERROR, "cache lookup failed for database %u", hidden_db);
	heap_deform_tuple(hidden, RelationGetDescr(rel), values, nulls);
	spc = OidIsValid(nb->pattern) ? m->h->source_spc
		: ((Form_pg_database) GETSTRUCT(hidden))->dattablespace;

	namestrcpy(&name, nb->name);
	values[Anum_pg_database_oid - 1] = ObjectIdGetDatum(db);
	values[Anum_pg_database_datname - 1] = NameGetDatum(&name);
	values[Anum_pg_database_datdba - 1] = ObjectIdGetDatum(nb->owner);
	values[Anum_pg_database_datistemplate - 1] = BoolGetDatum(nb->is_template);
	values[Anum_pg_database_datallowconn - 1] = BoolGetDatum(nb->allow_connections);
	values[Anum_pg_database_datconnlimit - 1] = Int32GetDatum(nb->connection_limit);

	values[Anum_pg_database_dattablespace - 1] = ObjectIdGetDatum(spc);
	values[Anum_pg_database_datfrozenxid - 1] = TransactionIdGetDatum(m->h->frozen_xid);
	values[Anum_pg_database_datminmxid - 1] = TransactionIdGetDatum(m->h->min_multi);
	values[Anum_pg_database_datacl - 1] = PointerGetDatum(nb->acl);
	nulls[Anum_pg_database_datacl - 1] = nb->acl == NULL;

	tup = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tup);

	heap_freetuple(tup);
	ReleaseSysCache(hidden);
	ab_manifest_release(m);
	return spc;
}

/* Roles and tablespaces that the branch's contents refer to, as they were. */
static void
insert_dependencies(Oid db, const AbNewBranch *nb)
{
	recordDependencyOnOwner(DatabaseRelationId, db, nb->owner);
	if (nb->acl != NULL)
	{
		Oid		   *members;
		int			nmembers = aclmembers(nb->acl, &members);

		updateAclDependencies(DatabaseRelationId, db, 0, nb->owner,
							  0, NULL, nmembers, members);
	}
	if (!OidIsValid(nb->pattern))
		ab_agent_copy_dependencies(hidden_database(nb->snapshot), db);
}

static Oid
choose_oid(Relation rel)
{
	Oid			db;

	do
	{
		CHECK_FOR_INTERRUPTS();
		db = GetNewOidWithIndex(rel, DatabaseOidIndexId, Anum_pg_database_oid);
	} while (ab_storage_exists(db));
	return db;
}

Oid
ab_insert_branch(const AbNewBranch *nb)
{
	Relation	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	Oid			db = choose_oid(rel);
	Oid			spc;

	LockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	spc = insert_row(rel, db, nb);
	insert_dependencies(db, nb);
	InvokeObjectPostCreateHook(DatabaseRelationId, db, 0);
	ab_storage_create(db, spc, nb->parent, nb->snapshot);
	AB_FAILPOINT("create-stored");
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return db;
}

/* ---- create ---- */

static Oid
choose_owner(const char *name)
{
	Oid			owner;

	if (name == NULL)
		return GetUserId();
	owner = get_role_oid(name, false);
	check_is_member_of_role(GetUserId(), owner);
	return owner;
}

static void
check_name_is_free(const char *name)
{
	if (OidIsValid(get_database_oid(name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_DATABASE),
				 errmsg("database \"%s\" already exists", name)));
}

/* Whose child the branch will be; *name NULL: of a database that is gone. */
static Oid
choose_parent(const AbCreateOptions *opt, const char **name)
{
	Oid			parent;

	*name = opt->parent;
	if (opt->parent == NULL && AbSnapIdIsValid(opt->at))
	{
		/* nobody owns it */
		if (!superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to branch a snapshot of a database that does not exist any more"),
					 errhint("Only superusers can.")));
		return opt->at_parent;
	}
	if (opt->parent == NULL)
		*name = ab_default_parent_name();
	parent = ab_find_parent(*name);
	if (AbSnapIdIsValid(opt->at) && parent != opt->at_parent)
		raise_no_parent(*name); /* renamed since the snapshot was looked up */
	ab_check_parent_rights(parent, *name);
	return parent;
}

static void
report_created(Oid db, const char *name, const char *parent_name, AbSnapId snapshot)
{
	char		detail[AB_SNAPID_TEXT_LEN + 32];
	char		id[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(snapshot, id);
	snprintf(detail, sizeof(detail), "{\"snapshot\": \"%s\"}", id);
	ab_event("created", db, name, parent_name, detail);
}

void
ab_create_take_places(AbCreateOptions *opt, int n)
{
	const char *name;
	Oid			parent;

	ab_prevent_read_only("branch creation");
	parent = choose_parent(opt, &name);
	opt->parent = name;
	ab_lock_parent(parent, name);
	ab_quota_check_create(choose_owner(opt->owner), parent, n);
	opt->has_place = true;
}

Oid
ab_create_branch(const AbCreateOptions *opt)
{
	const char *parent_name;
	AbNewBranch nb = {0};
	AbAttachments *inherited = NULL;
	Oid			db;

	ab_prevent_read_only("branch creation");
	ab_check_branch_name(opt->name);
	if (opt->connection_limit < -1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid connection limit: %d", opt->connection_limit)));

	nb.parent = choose_parent(opt, &parent_name);
	nb.name = opt->name;
	nb.owner = choose_owner(opt->owner);
	nb.connection_limit = opt->connection_limit;
	nb.allow_connections = opt->allow_connections;
	nb.is_template = opt->is_template;

	ab_lock_branch_name(opt->name);
	check_name_is_free(opt->name);
	if (parent_name)
		ab_lock_parent(nb.parent, parent_name);

	if (!opt->has_place)
		ab_quota_check_create(nb.owner, nb.parent, 1);

	/* before this transaction writes anything: it may be in the parent itself */
	nb.snapshot = opt->at;
	if (AbSnapIdIsValid(opt->at))
		ab_snapshot_get_at(opt->at);
	else
		nb.snapshot = ab_parent_snapshot(nb.parent);
	if (parent_name && !opt->without_settings)
	{
		inherited = ab_attachments_inherit(nb.parent, nb.owner);
		nb.acl = inherited->acl;
	}
	nb.acl = ab_agent_acl(nb.acl, nb.owner, opt->agent_role);
	db = ab_insert_branch(&nb);
	report_created(db, opt->name, parent_name, nb.snapshot);
	ab_attachments_give(db, opt->name, parent_name, inherited);
	return db;
}
