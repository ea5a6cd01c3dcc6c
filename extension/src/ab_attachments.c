/*
 * ab_attachments.c
 *	  What people attach to a database in the shared catalogs: grants, settings,
 *	  comment and security labels.
 *
 * Backends, in any database.  Reading takes AccessShareLock on the catalogs; whoever
 * saves holds a lock on the database object that keeps it from being dropped.  Roles
 * that are named are locked (AccessShareLock) to the end of the transaction before
 * what names them is written.  All of it goes with the transaction.
 */
#include "ab_attachments.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_shdescription.h"
#include "catalog/pg_shseclabel.h"
#include "commands/comment.h"
#include "commands/seclabel.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_events.h"

typedef struct SavedSetting
{
	Oid			role;
	ArrayType  *config;
} SavedSetting;

typedef struct SavedLabel
{
	char	   *provider;
	char	   *label;
} SavedLabel;

/* ---- saving ---- */

static List *
save_settings(Oid db)
{
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	List	   *settings = NIL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tup;

	ScanKeyInit(&key, Anum_pg_db_role_setting_setdatabase,
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(db));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true,
							  NULL, 1, &key);
	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		config = heap_getattr(tup, Anum_pg_db_role_setting_setconfig,
										  RelationGetDescr(rel), &isnull);
		SavedSetting *s;

		if (isnull)
			continue;
		s = palloc(sizeof(SavedSetting));
		s->role = ((Form_pg_db_role_setting) GETSTRUCT(tup))->setrole;
		s->config = DatumGetArrayTypePCopy(config);
		settings = lappend(settings, s);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return settings;
}

/* Scan of a shared catalog by (objoid, classoid). */
static SysScanDesc
begin_object_scan(Relation rel, Oid index, AttrNumber objoid, AttrNumber classoid,
				  Oid db)
{
	ScanKeyData key[2];

	ScanKeyInit(&key[0], objoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(db));
	ScanKeyInit(&key[1], classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(DatabaseRelationId));
	return systable_beginscan(rel, index, true, NULL, 2, key);
}

static char *
text_attribute(Relation rel, HeapTuple tup, AttrNumber attr)
{
	bool		isnull;
	Datum		value = heap_getattr(tup, attr, RelationGetDescr(rel), &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static char *
save_comment(Oid db)
{
	Relation	rel = table_open(SharedDescriptionRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tup;
	char	   *comment = NULL;

	scan = begin_object_scan(rel, SharedDescriptionObjIndexId,
							 Anum_pg_shdescription_objoid,
							 Anum_pg_shdescription_classoid, db);
	tup = systable_getnext(scan);
	if (HeapTupleIsValid(tup))
		comment = text_attribute(rel, tup, Anum_pg_shdescription_description);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return comment;
}

static List *
save_labels(Oid db)
{
	Relation	rel = table_open(SharedSecLabelRelationId, AccessShareLock);
	List	   *labels = NIL;
	SysScanDesc scan;
	HeapTuple	tup;

	scan = begin_object_scan(rel, SharedSecLabelObjectIndexId,
							 Anum_pg_shseclabel_objoid,
							 Anum_pg_shseclabel_classoid, db);
	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		SavedLabel *l = palloc(sizeof(SavedLabel));

		l->provider = text_attribute(rel, tup, Anum_pg_shseclabel_provider);
		l->label = text_attribute(rel, tup, Anum_pg_shseclabel_label);
		labels = lappend(labels, l);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return labels;
}

static Acl *
read_acl(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Datum		datum;
	bool		isnull;
	Acl		   *acl;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	datum = SysCacheGetAttr(DATABASEOID, tup, Anum_pg_database_datacl, &isnull);
	acl = isnull ? NULL : DatumGetAclPCopy(datum);
	ReleaseSysCache(tup);
	return acl;
}

/* Make sure that a role is not dropped in this transaction; false: it has been. */
static bool
lock_role(Oid role)
{
	LockSharedObject(AuthIdRelationId, role, 0, AccessShareLock);
	return SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
}

static bool
lock_roles_of(const Acl *acl)
{
	Oid		   *members;
	int			n = aclmembers(acl, &members);
	bool		all = true;

	for (int i = 0; i < n && all; i++)
		all = lock_role(members[i]);
	return all;
}

/* Read again if a role in it was dropped, for which its grants had to be revoked. */
static Acl *
save_acl(Oid db)
{
	Acl		   *acl = read_acl(db);

	while (acl != NULL && !lock_roles_of(acl))
	{
		Acl		   *before = acl;

		acl = read_acl(db);
		if (acl != NULL && aclequal(acl, before))
			break;				/* a role that nobody knows: whoever uses it complains */
	}
	return acl;
}

AbAttachments *
ab_attachments_save(Oid db)
{
	AbAttachments *a = palloc(sizeof(AbAttachments));

	a->acl = save_acl(db);
	a->settings = save_settings(db);
	a->labels = save_labels(db);
	a->comment = save_comment(db);
	return a;
}

/* ---- putting back ---- */

static void
restore_settings(Oid db, List *settings)
{
	Relation	rel;
	ListCell   *lc;

	if (settings == NIL)
		return;
	rel = table_open(DbRoleSettingRelationId, RowExclusiveLock);
	foreach(lc, settings)
	{
		SavedSetting *s = lfirst(lc);
		Datum		values[Natts_pg_db_role_setting];
		bool		nulls[Natts_pg_db_role_setting] = {0};
		HeapTuple	tup;

		/* DROP ROLE takes its settings along; there is no pg_shdepend row for them */
		if (OidIsValid(s->role) && !lock_role(s->role))
			continue;
		values[Anum_pg_db_role_setting_setdatabase - 1] = ObjectIdGetDatum(db);
		values[Anum_pg_db_role_setting_setrole - 1] = ObjectIdGetDatum(s->role);
		values[Anum_pg_db_role_setting_setconfig - 1] = PointerGetDatum(s->config);
		tup = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tup);
		heap_freetuple(tup);
	}
	table_close(rel, NoLock);
}

void
ab_attachments_restore(Oid db, const AbAttachments *a)
{
	ObjectAddress object;
	ListCell   *lc;

	if (a->settings == NIL && a->labels == NIL && a->comment == NULL)
		return;
	restore_settings(db, a->settings);
	if (a->comment != NULL)
		CreateSharedComments(db, DatabaseRelationId, a->comment);
	ObjectAddressSet(object, DatabaseRelationId, db);
	foreach(lc, a->labels)
	{
		SavedLabel *l = lfirst(lc);

		SetSecurityLabel(&object, l->provider, l->label);
	}
	CommandCounterIncrement();
}

/* ---- from the parent ---- */

AbAttachments *
ab_attachments_inherit(Oid parent, Oid owner)
{
	AbAttachments *a = palloc0(sizeof(AbAttachments));

	a->acl = save_acl(parent);
	if (a->acl != NULL)
		a->acl = aclnewowner(a->acl, ab_database_owner(parent), owner);
	a->settings = save_settings(parent);
	return a;
}

void
ab_attachments_give(Oid db, const char *name, const char *parent, const AbAttachments *a)
{
	char		detail[64];

	if (a == NULL || (a->acl == NULL && a->settings == NIL))
		return;
	ab_attachments_restore(db, a);
	snprintf(detail, sizeof(detail), "{\"grants\": %d, \"settings\": %d}",
			 a->acl ? ACL_NUM(a->acl) : 0, list_length(a->settings));
	ab_event("settings_copied", db, name, parent, detail);
}
