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
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* The tuple is locked against VACUUM, which changes frozen ids in place. */
bool
ab_change_database(Oid db, const char *name, bool allow_connections)
{
	Relation	rel = table_open(DatabaseRelationId, RowExclusiveLock);
	HeapTuple	tup = SearchSysCacheLockedCopy1(DATABASEOID, ObjectIdGetDatum(db));
	ItemPointerData tid;
	Form_pg_database form;
	bool		before;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for database %u", db);
	tid = tup->t_self;
	form = (Form_pg_database) GETSTRUCT(tup);
	before = form->datallowconn;
	namestrcpy(&form->datname, name);
	form->datallowconn = allow_connections;
	CatalogTupleUpdate(rel, &tid, tup);
	UnlockTuple(rel, &tid, InplaceUpdateTupleLock);
	InvokeObjectPostAlterHook(DatabaseRelationId, db, 0);
	heap_freetuple(tup);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	return before;
}
