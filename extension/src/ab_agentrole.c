/*
 * ab_agentrole.c
 *	  Roles of agents: making, changing and dropping them, and who may connect where.
 *
 * Backends in any database, and the sweeper.  Roles are made and dropped as the
 * bootstrap superuser on behalf of who may create and delete the branch: to ask for
 * CREATEROLE instead would ask for a privilege that may take over every role but
 * superusers.  What can be had this way is only what is fixed here: a role with the
 * name of a branch of the caller's, that may do nothing but log in and is a member of
 * the group of agents alone.  All of it goes with the transaction.  The name lock of
 * the branch (README.locking, 1) makes two that make one role take turns; a role that
 * is dropped is locked AccessExclusive, as DROP ROLE does it.
 */
#include "ab_agentrole.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_auth_members.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/user.h"
#include "executor/spi.h"
#include "libpq/crypt.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "ab_originpack.h"
#include "ab_registry.h"
#include "ab_shmem.h"
#include "ab_tables.h"

/* ---- acting as a superuser ---- */

/* No PG_TRY: the abort of the (sub)transaction puts all of it back. */
void
ab_become_superuser(AbSuperuser *caller)
{
	GetUserIdAndSecContext(&caller->user, &caller->context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   caller->context | SECURITY_LOCAL_USERID_CHANGE);
	caller->guc_level = NewGUCNestLevel();
}

void
ab_become_caller(const AbSuperuser *caller)
{
	AtEOXact_GUC(true, caller->guc_level);
	SetUserIdAndSecContext(caller->user, caller->context);
	CommandCounterIncrement();
}

/* ---- who is an agent's role ---- */

Oid
ab_agent_group(void)
{
	return get_role_oid(AB_AGENT_GROUP, true);
}

bool
ab_agent_group_is_sound(void)
{
	Oid			group = ab_agent_group();
	HeapTuple	tup;
	Form_pg_authid form;
	bool		sound;

	if (!OidIsValid(group))
		return false;
	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(group));
	if (!HeapTupleIsValid(tup))
		return false;
	form = (Form_pg_authid) GETSTRUCT(tup);
	sound = !form->rolcanlogin && !form->rolsuper && !form->rolcreaterole &&
		!form->rolcreatedb && !form->rolreplication && !form->rolbypassrls;
	ReleaseSysCache(tup);
	if (!sound)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("role \"%s\" cannot be the group of the agents' roles", AB_AGENT_GROUP),
				 errdetail("It can log in, or has rights in the whole cluster."),
				 errhint("ALTER ROLE %s NOLOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS.",
						 AB_AGENT_GROUP)));
	return true;
}

/*
 * Asked at login, too, where no database is open: the cache has to be the one whose index
 * the server has loaded by then.
 */
bool
ab_agent_is_role(Oid role)
{
	Oid			group = ab_agent_group();

	return OidIsValid(group) && OidIsValid(role) &&
		SearchSysCacheExists2(AUTHMEMMEMROLE, ObjectIdGetDatum(role),
							  ObjectIdGetDatum(group));
}

/*
 * Its grants do not say whose it is: the owner of any database can name any role in them,
 * and must not get at other agents' roles in that way.
 */
Oid
ab_agent_role_of(Oid db)
{
	AbRegistryRow row;
	Oid			role;

	if (!OidIsValid(ab_agent_group()) || !ab_registry_get(db, &row) ||
		row.isnull[AB_REGISTRY_AGENT_ROLE])
		return InvalidOid;
	role = DatumGetObjectId(row.value[AB_REGISTRY_AGENT_ROLE]);
	return ab_agent_is_role(role) ? role : InvalidOid;
}

/* ---- making ---- */

/* A password as CREATE ROLE takes it: it hashes clear text. */
static void
check_password(const char *password)
{
	PasswordType type;

	if (password == NULL)
		return;
	type = get_password_type(password);
	if (password[0] == '\0' || type == PASSWORD_TYPE_MD5)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 password[0] == '\0' ?
				 errmsg("the password of an agent must not be empty") :
				 errmsg("the password of an agent cannot be an MD5 hash"),
				 errhint("Pass a password or a SCRAM-SHA-256 verifier, or null for none.")));
}

/* Hashed by SCRAM whatever password_encryption says; null: no password. */
static List *
role_options(const char *password)
{
	(void) set_config_option("password_encryption", "scram-sha-256",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return list_make2(makeDefElem("canlogin", (Node *) makeBoolean(true), -1),
					  makeDefElem("password",
								  password ? (Node *) makeString(pstrdup(password)) : NULL,
								  -1));
}

static RoleSpec *
role_spec(const char *name)
{
	RoleSpec   *spec = makeNode(RoleSpec);

	spec->roletype = ROLESPEC_CSTRING;
	spec->rolename = pstrdup(name);
	spec->location = -1;
	return spec;
}

/* Who changes a row that another is changing gets an error from the server. */
static void
take_turns(Oid role)
{
	LockSharedObject(AuthIdRelationId, role, 0, ShareUpdateExclusiveLock);
}

static void
alter_role(Oid role, List *options)
{
	AlterRoleStmt *stmt = makeNode(AlterRoleStmt);

	take_turns(role);
	stmt->role = role_spec(GetUserNameFromId(role, false));
	stmt->options = options;
	stmt->action = +1;
	(void) AlterRole(NULL, stmt);
}

static Oid
create_role(const char *name, const char *password)
{
	CreateRoleStmt *stmt = makeNode(CreateRoleStmt);

	stmt->stmt_type = ROLESTMT_ROLE;
	stmt->role = pstrdup(name);
	stmt->options = lappend(role_options(password),
							makeDefElem("addroleto",
										(Node *) list_make1(role_spec(AB_AGENT_GROUP)), -1));
	return CreateRole(NULL, stmt);
}

static bool
any_row(const char *query, Oid role)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(role)};
	bool		found;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	found = ab_tables_execute(query, 1, types, values, NULL) > 0;
	SPI_finish();
	return found;
}

/* Was it made here?  A member of the group may be anybody's. */
static bool
is_made_here(Oid role)
{
	return ab_agent_is_role(role) &&
		any_row("SELECT FROM branch.agent_roles WHERE id = $1", role);
}

#define IS_BRANCHS(role) \
"EXISTS (SELECT FROM branch.registry AS r INNER JOIN pg_database AS d ON r.db = d.oid" \
" WHERE r.agent_role = " role ")"

/* Is it the role of an agent whose branch is there, living or deleted recoverably? */
static bool
is_taken(Oid role)
{
	return any_row("SELECT WHERE " IS_BRANCHS("$1"), role);
}

static void
check_left_behind(Oid role, const char *name)
{
	bool		ours = is_made_here(role);

	if (ours && !is_taken(role))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("role \"%s\" already exists", name),
			 ours ? errdetail("It is the role of an agent whose branch has another name.") :
			 errdetail("It was not made for an agent."),
			 errhint("Choose another id for the agent, or rename or drop that role. If it is the agent's, and a dump older than it was restored: branch.adopt_agent_role().")));
}

/* NULL: it can be the role of the branch's agent. */
static const char *
why_not_agents(Oid role, Oid db)
{
	if (!ab_agent_group_is_sound() || !ab_agent_is_role(role))
		return "It is no member of agent_branch_agents.";
	if (superuser_arg(role) || has_createrole_privilege(role) ||
		has_bypassrls_privilege(role))
		return "It has rights that no agent has.";
	if (is_taken(role))
		return "It is the role of the agent of another branch.";
	if (!ab_agent_is_let_in(role, db))
		return "The grants of the branch do not name it.";
	return NULL;
}

Oid
ab_agent_role_adopt(const char *name, Oid db)
{
	Oid			role = get_role_oid(name, false);
	const char *why;

	LockSharedObject(AuthIdRelationId, role, 0, AccessShareLock);
	role = get_role_oid(name, false);
	why = why_not_agents(role, db);
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("role \"%s\" is not that of an agent", name),
				 errdetail_internal("%s", why),
				 errhint("Rename or drop it; create_agent_branch() makes another one then.")));
	ab_agent_roles_remember(1, &role);
	return role;
}

Oid
ab_agent_role_make(const char *name, const char *password)
{
	Oid			role = get_role_oid(name, true);
	AbSuperuser caller;

	if (strcmp(name, AB_AGENT_GROUP) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("role name \"%s\" is reserved", name),
				 errdetail("It is that of the group of all agents' roles."),
				 errhint("Choose another id for the agent.")));
	check_password(password);
	if (OidIsValid(role))
	{
		/* the sweep may be about to drop it */
		LockSharedObject(AuthIdRelationId, role, 0, AccessShareLock);
		role = get_role_oid(name, true);
	}
	if (OidIsValid(role))
		check_left_behind(role, name);

	ab_become_superuser(&caller);
	if (OidIsValid(role))
		alter_role(role, role_options(password));
	else
		role = create_role(name, password);
	ab_become_caller(&caller);
	return role;
}

void
ab_agent_roles_remember(int n, const Oid *roles)
{
	Oid			types[1] = {OIDARRAYOID};
	Datum	   *ids = palloc(n * sizeof(Datum));
	Datum		values[1];

	for (int i = 0; i < n; i++)
		ids[i] = ObjectIdGetDatum(roles[i]);
	values[0] = PointerGetDatum(construct_array(ids, n, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("INSERT INTO branch.agent_roles (id)"
							 " SELECT u.id FROM unnest($1) AS u (id) WHERE u.id <> 0"
							 " ON CONFLICT (id) DO NOTHING",
							 1, types, values, NULL);
	SPI_finish();
}

void
ab_agent_role_unlock(Oid role)
{
	HeapTuple	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		created;
	LOCKTAG		tag;

	if (!HeapTupleIsValid(tup))
		return;
	created = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetRawXmin(tup->t_data));
	ReleaseSysCache(tup);
	SET_LOCKTAG_OBJECT(tag, InvalidOid, AuthIdRelationId, role, 0);
	while (created && LockHeldByMe(&tag, AccessShareLock))
		(void) LockRelease(&tag, AccessShareLock, false);
}

void
ab_agent_role_set_password(Oid role, const char *password)
{
	AbSuperuser caller;

	check_password(password);
	ab_become_superuser(&caller);
	alter_role(role, role_options(password));
	ab_become_caller(&caller);
}

/* Could a role have that name? */
static bool
is_free(const char *name)
{
	return !OidIsValid(get_role_oid(name, true)) && !IsReservedName(name) &&
		strcmp(name, "public") != 0 && strcmp(name, "none") != 0;
}

static void
rename_role(Oid role, const char *new_name)
{
	char	   *name;

	take_turns(role);
	name = GetUserNameFromId(role, false);
	if (strcmp(name, new_name) == 0)
		return;
	if (is_free(new_name))
		(void) RenameRole(name, new_name);
	else
		ereport(NOTICE,
				(errmsg("role \"%s\" of the agent keeps its name", name),
				 errdetail("Another role has the name \"%s\", or none can have it.", new_name)));
	CommandCounterIncrement();
}

void
ab_agent_role_follow(Oid db, const char *new_name, const bool *login)
{
	Oid			role = ab_agent_role_of(db);
	AbSuperuser caller;

	if (!OidIsValid(role))
		return;
	ab_become_superuser(&caller);
	rename_role(role, new_name);
	if (login != NULL)
		alter_role(role, list_make1(makeDefElem("canlogin", (Node *) makeBoolean(*login), -1)));
	ab_become_caller(&caller);
}

/* ---- dropping ---- */

static bool
is_in_use(Oid role)
{
	return role == GetUserId() || role == GetOuterUserId() || role == GetSessionUserId();
}

/* Under its lock.  False: it owns something in a snapshot, or in another branch. */
static bool
drop_role(Oid role)
{
	char	   *detail;
	char	   *detail_log;
	DropRoleStmt *stmt;

	if (is_in_use(role) ||
		checkSharedDependencies(AuthIdRelationId, role, &detail, &detail_log))
		return false;
	stmt = makeNode(DropRoleStmt);
	stmt->roles = list_make1(role_spec(GetUserNameFromId(role, false)));
	DropRole(stmt);
	return true;
}

static void
want_sweep(void)
{
	pg_atomic_write_u32(&ab_shared->agent_roles_left, 1);
}

static bool
can_log_in(Oid role)
{
	HeapTuple	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		result = HeapTupleIsValid(tup) &&
		((Form_pg_authid) GETSTRUCT(tup))->rolcanlogin;

	if (HeapTupleIsValid(tup))
		ReleaseSysCache(tup);
	return result;
}

/*
 * Its grants on databases go, whoever has made them.  One that owns something in a
 * snapshot, or in another branch, cannot be dropped, only kept from logging in; nor can one
 * that is named by a database which somebody else is about to drop.
 */
static void
put_away(Oid role)
{
	ab_agent_revoke_databases(role);
	if (drop_role(role))
	{
		(void) any_row("DELETE FROM branch.agent_roles WHERE id = $1", role);
		return;
	}
	if (can_log_in(role))
		alter_role(role, list_make2(makeDefElem("canlogin", (Node *) makeBoolean(false), -1),
									makeDefElem("password", NULL, -1)));
	CommandCounterIncrement();
	want_sweep();
}

void
ab_agent_role_drop(Oid role)
{
	AbSuperuser caller;

	if (!OidIsValid(role))
		return;
	LockSharedObject(AuthIdRelationId, role, 0, AccessExclusiveLock);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		return;
	ab_become_superuser(&caller);
	put_away(role);
	ab_become_caller(&caller);
}

void
ab_agent_role_release(Oid db)
{
	Oid			role = ab_agent_role_of(db);

	if (OidIsValid(role))
		(void) any_row("DELETE FROM branch.agent_roles WHERE id = $1", role);
}

static bool
has_members(Oid group)
{
	Relation	rel = table_open(AuthMemRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, Anum_pg_auth_members_roleid,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(group));
	scan = systable_beginscan(rel, AuthMemRoleMemIndexId, true, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

void
ab_agent_check_drop_role(Oid role)
{
	if (role != ab_agent_group() || !(ab_origin_any() || has_members(role)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
			 errmsg("role \"%s\" cannot be dropped while there are branches or agents", AB_AGENT_GROUP),
			 errdetail("Without it agents could connect to any database."),
			 errhint("Delete the branches first, call branch.gc(), and drop roles that are left in it.")));
}

void
ab_agent_check_statement(const Node *stmt)
{
	const RenameStmt *rename = (const RenameStmt *) stmt;

	if (!IsA(stmt, RenameStmt) || rename->renameType != OBJECT_ROLE ||
		strcmp(rename->subname, AB_AGENT_GROUP) != 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_RESERVED_NAME),
			 errmsg("role \"%s\" cannot be renamed", AB_AGENT_GROUP),
			 errdetail("Without it agents could connect to any database.")));
}

void
ab_agent_note_drop_database(Oid db)
{
	if (ab_shared != NULL && ab_agent_is_named(db))
		want_sweep();
}

/* ---- sweeping ---- */

/* Roles that were made here and are no branch's any more. */
static List *
left_roles(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *roles = NIL;
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("DELETE FROM branch.agent_roles AS a WHERE NOT EXISTS"
							 " (SELECT FROM pg_authid AS r WHERE r.oid = a.id)",
							 0, NULL, NULL, NULL);
	n = ab_tables_execute("SELECT a.id FROM branch.agent_roles AS a WHERE NOT " IS_BRANCHS("a.id"),
						  0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(caller);

		roles = lappend_oid(roles, role);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return roles;
}

/* Of the role, nobody else can make use meanwhile; false: somebody does. */
static bool
lock_left(Oid role)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, AuthIdRelationId, role, 0);
	if (LockAcquire(&tag, AccessExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return true;
}

void
ab_agent_roles_sweep(void)
{
	List	   *left;
	ListCell   *lc;
	AbSuperuser caller;

	if (!ab_tables_installed() ||
		pg_atomic_exchange_u32(&ab_shared->agent_roles_left, 0) == 0)
		return;
	ab_become_superuser(&caller);
	left = left_roles();
	if (left != NIL)
		want_sweep();			/* this transaction may be rolled back */
	foreach(lc, left)
	{
		Oid			role = lfirst_oid(lc);

		CHECK_FOR_INTERRUPTS();
		if (!lock_left(role))
			continue;
		if (SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)) &&
				 is_made_here(role) && !is_taken(role))
			put_away(role);
	}
	ab_become_caller(&caller);
}
