/*
 * ab_hidden.c
 *	  Hidden rows: pg_database rows that stand for snapshots (rules 29, 30).
 *
 * Runs in the keeper only (but for their ages: ab_hidden_age.c), which is why a row is committed although the
 * transaction that wants the snapshot is still running.  It never waits for a lock
 * the requester may hold: the source's row is read without a lock (the requester
 * has one), the hidden database is locked only conditionally.  A crash leaves a
 * row without a snapshot at worst, which ab_gc.c removes.
 */
#include "ab_hidden.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "commands/comment.h"
#include "commands/dbcommands.h"
#include "commands/seclabel.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "ab_agentrole.h"
#include "ab_failpoint.h"
#include "ab_tables.h"
#include "ab_snapshot.h"
#include "ab_storage.h"

/* The source's row with the values that a hidden row has of its own. */
static HeapTuple
form_hidden_row(Relation rel, HeapTuple source, Oid oid, const char *name,
				TransactionId frozen_xid, MultiXactId min_multi)
{
	Datum		values[Natts_pg_database];
	bool		nulls[Natts_pg_database];
	NameData	datname;

	heap_deform_tuple(source, RelationGetDescr(rel), values, nulls);
	namestrcpy(&datname, name);
	values[Anum_pg_database_oid - 1] = ObjectIdGetDatum(oid);
	values[Anum_pg_database_datname - 1] = NameGetDatum(&datname);
	values[Anum_pg_database_datdba - 1] = ObjectIdGetDatum(BOOTSTRAP_SUPERUSERID);
	values[Anum_pg_database_datistemplate - 1] = BoolGetDatum(false);
	values[Anum_pg_database_datallowconn - 1] = BoolGetDatum(false);
	/* never -2: the search for the oldest xid skips such databases (F8) */
	values[Anum_pg_database_datconnlimit - 1] = Int32GetDatum(0);
	values[Anum_pg_database_datfrozenxid - 1] = TransactionIdGetDatum(frozen_xid);
	values[Anum_pg_database_datminmxid - 1] = TransactionIdGetDatum(min_multi);
	nulls[Anum_pg_database_datacl - 1] = true;
	return heap_form_tuple(RelationGetDescr(rel), values, nulls);
}

void
ab_hidden_add(AbSnapId id, Oid source_db,
			  TransactionId frozen_xid, MultiXactId min_multi)
{
	char	   *name = ab_hidden_name(id);
	Relation	rel;
	HeapTuple	source;
	HeapTuple	tuple;
	Oid			oid;

	/* a keeper that was stopped between commit and answer did it already */
	if (OidIsValid(get_database_oid(name, true)))
		return;

	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	source = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(source_db));
	if (!HeapTupleIsValid(source))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("database with OID %u cannot be branched before the transaction that created it commits",
						source_db)));
	do
	{
		oid = GetNewOidWithIndex(rel, DatabaseOidIndexId, Anum_pg_database_oid);
	} while (ab_storage_exists(oid));

	tuple = form_hidden_row(rel, source, oid, name, frozen_xid, min_multi);
	ReleaseSysCache(source);
	CatalogTupleInsert(rel, tuple);

	/* roles and tablespaces the snapshot refers to stay undroppable (M10) */
	ab_agent_copy_dependencies(source_db, oid);
	AB_FAILPOINT("hidden-added");
	table_close(rel, NoLock);

	/*
	 * The snapshot is confirmed on the strength of this row (S3), by a record that the
	 * requester logs after our commit and flushes.
	 */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

bool
ab_hidden_drop(AbSnapId id)
{
	char	   *name = ab_hidden_name(id);
	Oid			oid = get_database_oid(name, true);
	LOCKTAG		tag;
	Relation	rel;
	HeapTuple	tuple;
	Form_pg_database form;

	if (!OidIsValid(oid))
		return true;
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, oid, 0);
	if (LockAcquire(&tag, AccessExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();

	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	tuple = SearchSysCacheCopy1(DATABASEOID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
	{
		table_close(rel, NoLock);
		return true;
	}
	form = (Form_pg_database) GETSTRUCT(tuple);

	/*
	 * Whoever names a snapshot holds a lock on it until the name is committed, so
	 * under our lock the answer is final.
	 */
	if (ab_hidden_age(form->datfrozenxid, form->datminmxid) < AB_HIDDEN_AGE_CLOSE &&
		ab_tables_snapshot_kept(id))
	{
		table_close(rel, NoLock);
		return false;
	}

	DeleteSharedComments(oid, DatabaseRelationId);
	DeleteSharedSecurityLabel(oid, DatabaseRelationId);
	DropSetting(oid, InvalidOid);
	dropDatabaseDependencies(oid);
	CatalogTupleDelete(rel, &tuple->t_self);
	table_close(rel, NoLock);
	AB_FAILPOINT("hidden-dropped");
	ForceSyncCommit();
	return true;
}
