/*
 * ab_firstuse.c
 *	  Whoever connects to a branch finds its directory there (ab_dir.c).
 *
 * Clients: when they have been authenticated, and not before (M35), as they would be for a
 * plain database, whatever it says to them then.  Our own background workers: by those who
 * start them (ab_remote.c).  Others', autovacuum's and single-user mode come by no hook
 * before the server looks for the directory; after one has failed it makes the directory
 * on its way out, for the next; branch.resume() makes it beforehand.  Autovacuum comes to databases that have statistics, hence
 * have been connected to, or that are at risk of wraparound: the directories of branches
 * are made well before that.  Those of branches in which pg_cron has jobs are made when the
 * sweeper sees these.
 *
 * Every backend, in its first transaction; the sweeper.  Locks: RowExclusiveLock on
 * the database object, which the server takes next, for a client to the end of that
 * transaction, so that the name stands for no other branch when the server looks it up.  It is waited for only if the
 * directory is missing: who waits here may do so no longer than authentication_timeout.
 */
#include "ab_firstuse.h"

/*
 * Port has the same offsets whether or not these are defined, and the headers they call
 * for are not needed by who builds for a server package.
 */
#undef ENABLE_GSS
#undef USE_OPENSSL

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_database.h"
#include "executor/spi.h"
#include "libpq/auth.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "ab_dir.h"
#include "ab_failpoint.h"
#include "ab_originpack.h"
#include "ab_hidden.h"
#include "ab_originfile.h"
#include "ab_shmem.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

/* Of the age at which autovacuum comes. */
#define OLD_AGE 0.5

static ClientAuthentication_hook_type prev_client_authentication = NULL;
static emit_log_hook_type prev_emit_log = NULL;

/* ---- clients ---- */

/* Without the shared relation cache file no index is open yet. */
HeapTuple
ab_firstuse_database(const char *name)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tup;

	ScanKeyInit(&key, Anum_pg_database_datname,
				BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum(name));
	scan = systable_beginscan(rel, DatabaseNameIndexId, criticalSharedRelcachesBuilt,
							  NULL, 1, &key);
	tup = systable_getnext(scan);
	if (HeapTupleIsValid(tup))
		tup = heap_copytuple(tup);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return tup;
}

static bool
find_database(const char *name, Oid *db, Oid *spc)
{
	HeapTuple	tup = ab_firstuse_database(name);

	if (!HeapTupleIsValid(tup))
		return false;
	*db = ((Form_pg_database) GETSTRUCT(tup))->oid;
	*spc = ((Form_pg_database) GETSTRUCT(tup))->dattablespace;
	heap_freetuple(tup);
	return true;
}

static bool
lock_database(Oid db, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	return LockAcquire(&tag, RowExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* As the server has it for who has waited for a database that then was replaced. */
static void
raise_replaced(const char *name)
{
	ereport(FATAL,
			(errcode(ERRCODE_UNDEFINED_DATABASE),
			 errmsg("database \"%s\" does not exist", name),
			 errdetail("It seems to have just been dropped or renamed.")));
}

static void
prepare_for_client(const char *name)
{
	Oid			db;
	Oid			spc;

	while (find_database(name, &db, &spc) && ab_origin_exists(db))
	{
		bool		whole = ab_dir_is_whole(db, spc);
		Oid			now;

		/* dropped or detached just now? the server waits, and sees to it */
		if (!lock_database(db, !whole))
			return;
		AcceptInvalidationMessages();
		if (find_database(name, &now, &spc) && now == db)
		{
			ab_dir_ensure(db, spc);
			return;
		}
		if (!whole)
			raise_replaced(name);
		UnlockSharedObject(DatabaseRelationId, db, 0, RowExclusiveLock);
	}
}

static void
client_authentication(Port *port, int status)
{
	if (prev_client_authentication)
		prev_client_authentication(port, status);
	if (status == STATUS_OK && ab_shared != NULL && (!am_walsender || am_db_walsender))
		prepare_for_client(port->database_name);
}

/* ---- who has failed ---- */

static bool
holds_database_lock(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	return LockHeldByMe(&tag, RowExclusiveLock);
}

/* While the transaction that failed still has its locks.  An error ends the process, too. */
static void
prepare_for_next(int code, Datum arg)
{
	if (holds_database_lock())
		ab_dir_ensure(MyDatabaseId, MyDatabaseTableSpace);
}

/* Raises nothing, and changes no state but that of a process that is about to end. */
static void
emit_log(ErrorData *edata)
{
	static bool noted = false;

	if (prev_emit_log)
		prev_emit_log(edata);
	if (edata->elevel != FATAL || noted || !IsInitProcessingMode() ||
		!OidIsValid(MyDatabaseId) || ab_shared == NULL || proc_exit_inprogress ||
		ab_dir_is_whole(MyDatabaseId, MyDatabaseTableSpace))
		return;
	noted = true;
	before_shmem_exit(prepare_for_next, (Datum) 0);
	if (edata->hint == NULL)
		edata->hint = pstrdup("If it is a branch that was never connected to, the next attempt finds its directory.");
}

/* ---- who comes uninvited ---- */

/* Unless somebody is just removing it; a damaged one stays as it is, as does one not mounted. */
static void
prepare_uninvited(Oid db, Oid spc)
{
	if (ab_dir_is_whole(db, spc) || !ab_origin_exists(db) || !ab_storage_has_tablespace(spc) ||
		!lock_database(db, false))
		return;
	ab_dir_try(db);
	UnlockSharedObject(DatabaseRelationId, db, 0, RowExclusiveLock);
}

/* A table of that name may be anybody's. */
static bool
has_jobs(void)
{
	static const char query[] =
	"SELECT 1 FROM pg_extension AS e INNER JOIN pg_depend AS d ON e.oid = d.refobjid"
	" INNER JOIN pg_class AS c ON d.objid = c.oid"
	" INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid"
	" WHERE e.extname = 'pg_cron' AND d.refclassid = 'pg_extension'::regclass"
	" AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'"
	" AND n.nspname = 'cron' AND c.relname = 'job' AND c.relkind = 'r'";

	return ab_tables_execute(query, 0, NULL, NULL, NULL) > 0;
}

void
ab_firstuse_prepare_jobs(void)
{
	if (!ab_tables_installed())
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (has_jobs())
	{
		uint64		n = ab_tables_execute("SELECT DISTINCT d.oid, d.dattablespace FROM cron.job AS j"
										  " INNER JOIN pg_database AS d ON j.database = d.datname"
										  " WHERE j.active", 0, NULL, NULL, NULL);

		for (uint64 i = 0; i < n; i++)
		{
			HeapTuple	tup = SPI_tuptable->vals[i];
			bool		isnull;

			CHECK_FOR_INTERRUPTS();
			prepare_uninvited(DatumGetObjectId(SPI_getbinval(tup, SPI_tuptable->tupdesc, 1,
															 &isnull)),
							  DatumGetObjectId(SPI_getbinval(tup, SPI_tuptable->tupdesc, 2,
															 &isnull)));
		}
	}
	SPI_finish();
}

void
ab_firstuse_prepare_old(void)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tup;

	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tup);

		CHECK_FOR_INTERRUPTS();
		if (ab_hidden_age(form->datfrozenxid, form->datminmxid) >= OLD_AGE)
			prepare_uninvited(form->oid, form->dattablespace);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

void
ab_firstuse_install(void)
{
	prev_client_authentication = ClientAuthentication_hook;
	ClientAuthentication_hook = client_authentication;
	prev_emit_log = emit_log_hook;
	emit_log_hook = emit_log;
}
