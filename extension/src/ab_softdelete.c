/*
 * ab_softdelete.c
 *	  Branches that are deleted and can be recovered: deleting, recovering, and
 *	  deleting for good when the time for that is over.
 *
 * Backends and the sweeper, in the control database; names anywhere.  A deleted branch
 * is a database like others for the storage, for autovacuum, which does not care for
 * datallowconn, and for whatever inherits its pages.  All changes of its state are made
 * under AccessExclusiveLock on the database object, and with the rows of pg_database
 * and branch.registry in one transaction; a crash leaves what was committed.
 */
#include "ab_softdelete.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/vacuum.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_branchsetting.h"
#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_failpoint.h"
#include "ab_gc.h"
#include "ab_pins.h"
#include "ab_quota.h"
#include "ab_registry.h"
#include "ab_rename.h"
#include "ab_settings.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

#define DELETED_PREFIX "agent_branch_deleted_"

/* ---- names ---- */

static char *
deleted_name(Oid db)
{
	return psprintf(DELETED_PREFIX "%u", db);
}

bool
ab_deleted_name_is_reserved(const char *datname)
{
	return strncmp(datname, DELETED_PREFIX, strlen(DELETED_PREFIX)) == 0;
}

bool
ab_database_is_deleted(Oid db)
{
	char	   *name = ab_database_name(db);
	bool		deleted;

	if (name == NULL)
		return false;
	deleted = ab_deleted_name_is_reserved(name) && strcmp(name, deleted_name(db)) == 0;
	pfree(name);
	return deleted;
}

char *
ab_deleted_old_name(Oid db)
{
	AbRegistryRow row;

	if (!ab_registry_get(db, &row) || row.isnull[AB_REGISTRY_DELETED_NAME])
		return deleted_name(db);
	return TextDatumGetCString(row.value[AB_REGISTRY_DELETED_NAME]);
}

char *
ab_name_or_old_name(Oid db)
{
	return ab_database_is_deleted(db) ? ab_deleted_old_name(db) : ab_database_name(db);
}

void
ab_raise_deleted(Oid db)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("branch \"%s\" is deleted", ab_deleted_old_name(db)),
			 errhint("Bring it back first, with branch.recover() in database \"%s\".",
					 ab_control_database)));
}

static void
report(const char *event, Oid db, const char *name, const char *detail)
{
	AbOriginHeader header;
	char	   *parent = NULL;

	if (ab_storage_read_origin(db, &header))
		parent = ab_name_or_old_name(header.parent_db);
	ab_event(event, db, name, parent, detail);
}

/* ---- deleting ---- */

static void
set_text(AbRegistryRow *row, AbRegistryField field, const char *text)
{
	row->value[field] = CStringGetTextDatum(text);
	row->isnull[field] = false;
}

#define DELETED_FIELDS (AB_REGISTRY_BIT(AB_REGISTRY_DELETED_AT) | \
						AB_REGISTRY_BIT(AB_REGISTRY_DELETED_BY) | \
						AB_REGISTRY_BIT(AB_REGISTRY_DELETED_NAME) | \
						AB_REGISTRY_BIT(AB_REGISTRY_DELETED_ALLOWCONN))

static void
remember_deletion(Oid db, const char *name, bool allowconn)
{
	AbRegistryRow row;

	row.value[AB_REGISTRY_DELETED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	row.isnull[AB_REGISTRY_DELETED_AT] = false;
	set_text(&row, AB_REGISTRY_DELETED_BY, GetUserNameFromId(GetUserId(), false));
	set_text(&row, AB_REGISTRY_DELETED_NAME, name);
	row.value[AB_REGISTRY_DELETED_ALLOWCONN] = BoolGetDatum(allowconn);
	row.isnull[AB_REGISTRY_DELETED_ALLOWCONN] = false;
	ab_registry_put(db, &row, DELETED_FIELDS);
}

/* The event first: it names the branch. */
void
ab_soft_delete(Oid db, const char *name)
{
	bool		closed = false;
	bool		allowconn;

	report("deleted", db, name, "{\"hard\": false}");
	ab_quota_gone(db);
	allowconn = ab_change_database(db, deleted_name(db), &closed);
	AB_FAILPOINT("delete-renamed");
	remember_deletion(db, name, allowconn);
}

/* ---- finding ---- */

static void
add_owned(List **owned, bool *others, Oid db)
{
	if (pg_database_ownercheck(db, GetUserId()))
		*owned = lappend_oid(*owned, db);
	else
		*others = true;
}

/* Of those that had the name, the newest first. */
static void
find_by_old_name(const char *name, List **owned, bool *others)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("SELECT r.db FROM branch.registry AS r"
						  " WHERE r.deleted_name = $1 AND r.deleted_at IS NOT NULL"
						  " ORDER BY r.deleted_at DESC, r.db DESC",
						  1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			db = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc, 1, &isnull));
		AbRegistryRow row;
		MemoryContext old = MemoryContextSwitchTo(caller);

		/* what is true now: the statement's snapshot may be older */
		if (ab_database_is_deleted(db) && ab_registry_get(db, &row) &&
			!row.isnull[AB_REGISTRY_DELETED_NAME] &&
			strcmp(TextDatumGetCString(row.value[AB_REGISTRY_DELETED_NAME]), name) == 0)
			add_owned(owned, others, db);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}

Oid
ab_find_deleted(const char *name, bool raise)
{
	List	   *owned = NIL;
	bool		others = false;
	Oid			db = get_database_oid(name, true);

	if (OidIsValid(db) && ab_database_is_deleted(db))
		add_owned(&owned, &others, db);
	else
		find_by_old_name(name, &owned, &others);
	if (owned == NIL && others && raise)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of deleted branch \"%s\"", name)));
	return owned != NIL ? linitial_oid(owned) : InvalidOid;
}

Oid
ab_lock_deleted(const char *name)
{
	for (;;)
	{
		Oid			db = ab_find_deleted(name, false);

		if (!OidIsValid(db))
			return InvalidOid;
		LockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);

		/* it may have been recovered, purged or given away while we waited */
		if (ab_database_is_deleted(db) && ab_find_deleted(name, false) == db)
			return db;
		UnlockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	}
}

/* ---- recovering ---- */

/*
 * What was remembered of its deletion goes; so does an expiration that has passed
 * meanwhile, which would delete it again.
 */
static bool
forget_deletion(Oid db)
{
	AbRegistryRow row;
	uint32		fields = DELETED_FIELDS;
	bool		allowconn;

	if (!ab_registry_get(db, &row))
		return true;
	allowconn = row.isnull[AB_REGISTRY_DELETED_ALLOWCONN] ||
		DatumGetBool(row.value[AB_REGISTRY_DELETED_ALLOWCONN]);
	if (!row.isnull[AB_REGISTRY_EXPIRES_AT] &&
		DatumGetTimestampTz(row.value[AB_REGISTRY_EXPIRES_AT]) <= GetCurrentTimestamp())
		fields |= AB_REGISTRY_BIT(AB_REGISTRY_EXPIRES_AT);
	for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
		row.isnull[i] = true;
	ab_registry_put(db, &row, fields);
	return allowconn;
}

static void
report_recovered(Oid db, const char *old_name, const char *name)
{
	StringInfoData detail;

	initStringInfo(&detail);
	appendStringInfoString(&detail, "{\"deleted_name\": ");
	escape_json(&detail, old_name);
	appendStringInfoChar(&detail, '}');
	report("recovered", db, name, detail.data);
}

/* What is recovered counts again. */
static void
check_quota(Oid db)
{
	AbOriginHeader header;

	if (ab_storage_read_origin(db, &header))
		ab_quota_check_create(ab_database_owner(db), header.parent_db, 1);
}

/* Rights come first: who has none must not be able to hold a name. */
Oid
ab_recover_branch(const char *name, const char *new_name)
{
	const char *target = new_name ? new_name : name;
	char	   *old_name;
	bool		allowconn;
	Oid			db;

	ab_prevent_read_only("branch recovery");
	db = ab_find_deleted(name, true);
	if (OidIsValid(db))
	{
		ab_check_branch_name(target);
		if (new_name)
			ab_check_may_name("recover", name);
		ab_lock_branch_name(target);
		db = ab_lock_deleted(name);
	}
	if (!OidIsValid(db))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("there is no deleted branch \"%s\"", name),
				 errhint("The view branch.branches lists those that can be recovered, with current_state \"deleted\".")));
	if (OidIsValid(get_database_oid(target, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_DATABASE),
				 errmsg("database \"%s\" already exists", target),
				 errhint("Recover the branch under another name, with argument new_name.")));
	check_quota(db);
	old_name = ab_deleted_old_name(db);
	allowconn = forget_deletion(db);
	(void) ab_change_database(db, target, &allowconn);
	report_recovered(db, old_name, target);
	return db;
}

/* ---- deleting for good ---- */

void
ab_report_purged(Oid db)
{
	report("purged", db, ab_deleted_old_name(db), NULL);
}

void
ab_purge(Oid db)
{
	ab_check_unused(db, ab_deleted_old_name(db));
	ab_report_purged(db);
	ab_delete_for_good(db);
}

/*
 * Autovacuum freezes deleted branches like all others.  Should it fail to for so long
 * that the server itself is in a hurry (the age of VACUUM's failsafe, computed as VACUUM
 * does), the branch goes before its time.
 */
static bool
is_too_old(Form_pg_database form)
{
	double		xid_limit = Max(vacuum_failsafe_age, autovacuum_freeze_max_age * 1.05);
	double		multi_limit = Max(vacuum_multixact_failsafe_age,
								  autovacuum_multixact_freeze_max_age * 1.05);
	int32		xids = 0;
	int32		multis = 0;

	if (TransactionIdIsNormal(form->datfrozenxid))
		xids = (int32) (ReadNextTransactionId() - form->datfrozenxid);
	if (MultiXactIdIsValid(form->datminmxid))
		multis = (int32) (ReadNextMultiXactId() - form->datminmxid);
	return xids > xid_limit || multis > multi_limit;
}

/* Is the time to recover it over? */
static bool
is_over(Oid db)
{
	AbRegistryRow row;

	return ab_registry_get(db, &row) && !row.isnull[AB_REGISTRY_DELETED_AT] &&
		DatumGetTimestampTz(row.value[AB_REGISTRY_DELETED_AT]) +
		ab_branchsetting(db, AB_BRANCH_RECOVERY_WINDOW) * USECS_PER_SEC <= GetCurrentTimestamp();
}

typedef struct Candidate
{
	Oid			db;
	bool		too_old;
} Candidate;

static List *
list_candidates(void)
{
	List	   *list = NIL;
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		Candidate  *c;

		if (!ab_deleted_name_is_reserved(NameStr(form->datname)))
			continue;
		c = palloc(sizeof(Candidate));
		c->db = form->oid;
		c->too_old = is_too_old(form);
		list = lappend(list, c);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return list;
}

/* Lock one that is due if nobody else does and nobody is in it. */
static bool
lock_due(const Candidate *c)
{
	int			nsessions;
	int			nprepared;

	if (ab_try_lock_database(c->db) != AB_LOCKED_NOW)
		return false;
	if (ab_database_is_deleted(c->db) && (c->too_old || is_over(c->db)) &&
		!CountOtherDBBackends(c->db, &nsessions, &nprepared))
		return true;
	UnlockSharedObject(DatabaseRelationId, c->db, 0, AccessExclusiveLock);
	return false;
}

static void
warn_too_old(Oid db)
{
	ereport(WARNING,
			(errmsg("deleted branch \"%s\" cannot be recovered any more", ab_deleted_old_name(db)),
			 errdetail("Its transaction ids were about to wrap around: autovacuum has not frozen them."),
			 errhint("See why it could not: replication slots keep old transaction ids, too.")));
}

/* What its removal gives back: nothing yet, if others read its files. */
static AbGcItem *
purged_item(AbPinsNeeded *needed, Oid db)
{
	AbGcItem   *item = palloc0(sizeof(AbGcItem));
	int64		files;

	item->kind = "deleted branch";
	item->name = ab_deleted_old_name(db);
	if (!ab_pins_storage_needed(needed, db))
		ab_storage_usage(db, &item->bytes, &files);
	return item;
}

List *
ab_purge_due(bool dry_run)
{
	List	   *items = NIL;
	AbPinsNeeded needed = {0};
	ListCell   *lc;

	if (!ab_tables_installed())
		return NIL;
	foreach(lc, list_candidates())
	{
		Candidate  *c = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (list_length(items) == AB_PURGE_BATCH)
			break;
		if (!ab_database_is_deleted(c->db) || !(c->too_old || is_over(c->db)))
			continue;
		if (!dry_run && !lock_due(c))
			continue;
		if (!dry_run && !is_over(c->db))
			warn_too_old(c->db);
		items = lappend(items, purged_item(&needed, c->db));
		if (!dry_run)
			ab_purge(c->db);
	}
	return items;
}
