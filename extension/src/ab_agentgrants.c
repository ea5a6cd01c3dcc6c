/*
 * ab_agentgrants.c
 *	  Grants of databases that name agents' roles: who gets in is written there.
 *
 * Backends in any database, the sweeper, and whoever logs in.  A row of pg_database is
 * changed under its tuple lock, as GRANT does it, and what depends on it with it; all of
 * that goes with the transaction.
 */
#include "ab_agentrole.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_shdepend.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* ---- reading and changing them ---- */

/* NULL: the default, which names nobody. */
static Acl *
read_acl(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	bool		isnull = true;
	Datum		datum = (Datum) 0;
	Acl		   *acl;

	if (!HeapTupleIsValid(tup))
		return NULL;
	datum = SysCacheGetAttr(DATABASEOID, tup, Anum_pg_database_datacl, &isnull);
	acl = isnull ? NULL : DatumGetAclPCopy(datum);
	ReleaseSysCache(tup);
	return acl;
}

bool
ab_agent_may_connect(Oid role, const Acl *acl)
{
	if (acl == NULL)
		return false;
	for (int i = 0; i < ACL_NUM(acl); i++)
	{
		const AclItem *item = &ACL_DAT(acl)[i];

		if (item->ai_grantee == role && (ACLITEM_GET_PRIVS(*item) & ACL_CONNECT))
			return true;
	}
	return false;
}

static Acl *
change_acl(Acl *acl, Oid grantee, Oid grantor, AclMode privs, int how, Oid owner)
{
	AclItem		item;

	item.ai_grantee = grantee;
	item.ai_grantor = grantor;
	ACLITEM_SET_PRIVS_GOPTIONS(item, privs,
							   how == ACL_MODECHG_DEL && grantee != ACL_ID_PUBLIC ?
							   privs : ACL_NO_RIGHTS);
	return aclupdate(acl, &item, how, owner, DROP_CASCADE);
}

/*
 * Without the entries of a role, or of all agents' roles (InvalidOid).  To change one may
 * take others along: begin anew after each.
 */
static Acl *
without_agents(Acl *acl, Oid owner, Oid role)
{
	for (int i = 0; acl != NULL && i < ACL_NUM(acl);)
	{
		AclItem		item = ACL_DAT(acl)[i];

		if (OidIsValid(role) ? item.ai_grantee != role : !ab_agent_is_role(item.ai_grantee))
		{
			i++;
			continue;
		}
		acl = change_acl(acl, item.ai_grantee, item.ai_grantor,
						 ACL_ALL_RIGHTS_DATABASE, ACL_MODECHG_DEL, owner);
		i = 0;
	}
	return acl;
}

static Acl *
closed_to_public(Acl *acl, Oid owner)
{
	for (int i = 0; i < ACL_NUM(acl);)
	{
		AclItem		item = ACL_DAT(acl)[i];

		if (item.ai_grantee != ACL_ID_PUBLIC ||
			(ACLITEM_GET_PRIVS(item) & ACL_CONNECT) == 0)
		{
			i++;
			continue;
		}
		acl = change_acl(acl, ACL_ID_PUBLIC, item.ai_grantor, ACL_CONNECT,
						 ACL_MODECHG_DEL, owner);
		i = 0;
	}
	return acl;
}

Acl *
ab_agent_acl(const Acl *old, Oid owner, Oid role)
{
	Acl		   *acl = unconstify(Acl *, old);

	if (OidIsValid(ab_agent_group()))
		acl = without_agents(acl, owner, InvalidOid);
	if (!OidIsValid(role))
		return acl;
	if (acl == NULL)
		acl = acldefault(OBJECT_DATABASE, owner);
	acl = closed_to_public(acl, owner);
	return change_acl(acl, role, owner, ACL_CONNECT | ACL_CREATE_TEMP,
					  ACL_MODECHG_ADD, owner);
}

/* ---- rows ---- */

/* Give a database other grants: those that "of" makes of its present ones. */
static void
change_database(Oid db, Oid role, Acl *(*of) (Acl *acl, Oid owner, Oid role))
{
	Relation	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	HeapTuple	tup = SearchSysCacheLockedCopy1(DATABASEOID, ObjectIdGetDatum(db));
	Datum		values[Natts_pg_database] = {0};
	bool		nulls[Natts_pg_database] = {0};
	bool		replaces[Natts_pg_database] = {0};
	ItemPointerData tid;
	Oid		   *old_members = NULL;
	Oid		   *new_members;
	Oid			owner;
	Acl		   *old;
	Acl		   *acl;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	tid = tup->t_self;
	owner = ((Form_pg_database) GETSTRUCT(tup))->datdba;
	old = read_acl(db);
	acl = of(old, owner, role);
	if (acl != old)
	{
		int			nold = old ? aclmembers(old, &old_members) : 0;
		int			nnew = aclmembers(acl, &new_members);

		values[Anum_pg_database_datacl - 1] = PointerGetDatum(acl);
		replaces[Anum_pg_database_datacl - 1] = true;
		tup = heap_modify_tuple(tup, RelationGetDescr(rel), values, nulls, replaces);
		CatalogTupleUpdate(rel, &tid, tup);
		updateAclDependencies(DatabaseRelationId, db, 0, owner,
							  nold, old_members, nnew, new_members);
	}

	/* VACUUM changes frozen ids in place */
	UnlockTuple(rel, &tid, InplaceUpdateTupleLock);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

static Acl *
for_agent(Acl *acl, Oid owner, Oid role)
{
	return ab_agent_acl(acl, owner, role);
}

void
ab_agent_give_database(Oid db, Oid role)
{
	change_database(db, role, for_agent);
}

/* Databases whose grants name the role. */
static List *
databases_of(Oid role)
{
	Relation	rel = table_open(SharedDependRelationId, AccessShareLock);
	List	   *dbs = NIL;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tup;

	ScanKeyInit(&key[0], Anum_pg_shdepend_refclassid,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(AuthIdRelationId));
	ScanKeyInit(&key[1], Anum_pg_shdepend_refobjid,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(role));
	scan = systable_beginscan(rel, SharedDependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		Form_pg_shdepend form = (Form_pg_shdepend) GETSTRUCT(tup);

		if (form->classid == DatabaseRelationId && form->deptype == SHARED_DEPENDENCY_ACL)
			dbs = lappend_oid(dbs, form->objid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return dbs;
}

/* Nobody drops it before this transaction is over; false: somebody is about to, or has. */
static bool
hold_database(Oid db)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	if (LockAcquire(&tag, AccessShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db));
}

void
ab_agent_revoke_databases(Oid role)
{
	ListCell   *lc;

	foreach(lc, databases_of(role))
		if (hold_database(lfirst_oid(lc)))
			change_database(lfirst_oid(lc), role, without_agents);
}

bool
ab_agent_is_named(Oid db)
{
	Acl		   *acl = OidIsValid(ab_agent_group()) ? read_acl(db) : NULL;

	for (int i = 0; acl != NULL && i < ACL_NUM(acl); i++)
		if (ab_agent_is_role(ACL_DAT(acl)[i].ai_grantee))
			return true;
	return false;
}

bool
ab_agent_is_let_in(Oid role, Oid db)
{
	return ab_agent_may_connect(role, read_acl(db));
}

/* ---- dependencies ---- */

/*
 * In a database whose tables are granted to the group there is a row for each of them.
 * A branch does not need these: the group cannot be dropped while there are branches, and
 * a grant to a role that is no more does no harm.
 */
void
ab_agent_copy_dependencies(Oid from, Oid to)
{
	Oid			group = ab_agent_group();
	Relation	rel;
	CatalogIndexState indexes;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tup;

	if (!OidIsValid(group))
	{
		copyTemplateDependencies(from, to);
		return;
	}
	rel = table_open(SharedDependRelationId, RowExclusiveLock);
	indexes = CatalogOpenIndexes(rel);
	ScanKeyInit(&key, Anum_pg_shdepend_dbid,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(from));
	scan = systable_beginscan(rel, SharedDependDependerIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		Form_pg_shdepend form = (Form_pg_shdepend) GETSTRUCT(tup);

		if (form->refclassid == AuthIdRelationId && form->refobjid == group &&
			form->deptype == SHARED_DEPENDENCY_ACL)
			continue;
		tup = heap_copytuple(tup);
		((Form_pg_shdepend) GETSTRUCT(tup))->dbid = to;
		CatalogTupleInsertWithInfo(rel, tup, indexes);
		heap_freetuple(tup);
	}
	systable_endscan(scan);
	CatalogCloseIndexes(indexes);
	table_close(rel, RowExclusiveLock);
}
