/*
 * ab_base.c
 *	  Bases: databases in which the state that two databases have in common is read.
 *
 * Backends in the control database open them; the keeper makes them, so that they are
 * committed while the transaction that wants one runs; the sweeper, branch.gc() and whoever
 * drops what they hang on drops them.
 *
 * Who reads in a base holds AccessShareLock on its database object to the end of the
 * transaction; who drops it takes AccessExclusiveLock, conditionally.  While it is made the
 * requester holds AccessShareLock on a branch that hangs on the same snapshot, so that the
 * snapshot is in use all the time (ab_gc.c), or on its hidden row.  A crash leaves a base
 * that is swept like others.
 */
#include "ab_base.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_agentrole.h"
#include "ab_catalogrows.h"
#include "ab_failpoint.h"
#include "ab_lineage.h"
#include "ab_manifest.h"
#include "ab_request.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_storagefiles.h"

#define BASE_PREFIX "agent_branch_base_"

/* To drop one costs a checkpoint, and who merges once may do it again. */
#define BASE_KEEP_MS (5 * 60 * 1000)

/* So often is one swept before its lock is had. */
#define MAX_ROUNDS 5

/* ---- names ---- */

static char *
base_name(AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	return psprintf(BASE_PREFIX "%s", text);
}

bool
ab_base_name_is_reserved(const char *datname)
{
	return strncmp(datname, BASE_PREFIX, strlen(BASE_PREFIX)) == 0;
}

bool
ab_is_base(Oid db)
{
	char	   *name = ab_database_name(db);
	bool		is_base = name != NULL && ab_base_name_is_reserved(name);

	if (name != NULL)
		pfree(name);
	return is_base;
}

/* ---- opening ---- */

static void
raise_unreadable(AbSnapId id, const char *why)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the state of snapshot %s cannot be read any more", text),
			 errdetail_internal("%s", why),
			 errhint("Reset the branch to its parent as it is now; a snapshot that is kept under a name can be read for longer.")));
}

static void
check_may_connect(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	bool		allowed;
	bool		isnull;
	Datum		acl;

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", db)));
	allowed = superuser() || pg_database_aclcheck(db, GetUserId(), ACL_CONNECT) == ACLCHECK_OK;
	if (allowed && !superuser() && ab_agent_is_role(GetUserId()))
	{
		acl = SysCacheGetAttr(DATABASEOID, tup, Anum_pg_database_datacl, &isnull);
		allowed = ab_agent_may_connect(GetUserId(), isnull ? NULL : DatumGetAclP(acl));
	}
	if (!allowed)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"",
						NameStr(((Form_pg_database) GETSTRUCT(tup))->datname)),
				 errdetail("Role \"%s\" may not connect to it.",
						   GetUserNameFromId(GetUserId(), true))));
	ReleaseSysCache(tup);
}

/* The state among those that a database was in; the head of its manifest in *m. */
static AbAncestor
find_state(AbSnapId id, Oid of, AbManifestHeader *m)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];
	AbAncestor	own = {of, id, InvalidOid};
	ListCell   *lc;

	ab_snapid_format(id, text);
	if (!ab_manifest_read_header(id, m))
		raise_unreadable(id, "The snapshot has been given back.");
	if (m->source_db == of)
		return own;
	foreach(lc, ab_lineage(of))
	{
		AbAncestor *a = lfirst(lc);

		if (AbSnapIdEquals(a->at, id))
			return *a;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("database \"%s\" does not descend from snapshot %s",
					ab_database_name(of), text)));
}

/* Keep the snapshot, until the lock is released that is returned, or the transaction ends. */
static Oid
hold_snapshot(const AbAncestor *state)
{
	AbOriginHeader origin;

	if (OidIsValid(state->holder))
	{
		LockSharedObject(DatabaseRelationId, state->holder, 0, AccessShareLock);
		if (ab_storage_read_origin(state->holder, &origin) &&
			AbSnapIdEquals(origin.snapshot, state->at))
			return state->holder;
		UnlockSharedObject(DatabaseRelationId, state->holder, 0, AccessShareLock);
	}
	ab_snapshot_get_at(state->at);
	return InvalidOid;
}

/*
 * Are its transaction ids still known?  The row of a base that is committed keeps them;
 * who counted rows before that has removed what it will when the lock is had.
 */
static void
check_transactions(AbSnapId id, const AbManifestHeader *m)
{
	TransactionId oldest;
	MultiXactId oldest_multi;
	MultiXactId next_multi;

	LWLockAcquire(WrapLimitsVacuumLock, LW_SHARED);
	LWLockRelease(WrapLimitsVacuumLock);
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	oldest = ShmemVariableCache->oldestClogXid;
	LWLockRelease(XactTruncationLock);
	ReadMultiXactIdRange(&oldest_multi, &next_multi);
	if ((TransactionIdIsNormal(m->frozen_xid) && TransactionIdPrecedes(m->frozen_xid, oldest)) ||
		MultiXactIdPrecedes(m->min_multi, oldest_multi))
		raise_unreadable(id, "Its transaction ids are too old: what became of them is not known any more.");
}

/* Lock the base of that name; false if it is gone. */
static bool
lock_base(const char *name)
{
	Oid			db;

	AcceptInvalidationMessages();
	db = get_database_oid(name, true);
	if (!OidIsValid(db))
		return false;
	LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	if (get_database_oid(name, true) == db)
		return true;
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	return false;
}

char *
ab_base_open(AbSnapId id, Oid of)
{
	char	   *name = base_name(id);
	AbManifestHeader m;
	AbAncestor	state;
	Oid			held;

	PreventCommandDuringRecovery("reading the state of a snapshot");
	check_may_connect(of);
	state = find_state(id, of, &m);
	LockSharedObject(DatabaseRelationId, of, 0, AccessShareLock);
	held = hold_snapshot(&state);
	check_transactions(id, &m);
	for (int round = 0;; round++)
	{
		if (round == MAX_ROUNDS)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("could not make database \"%s\"", name),
					 errdetail("Each time it had gone before it could be used."),
					 errhint("Try again.")));
		ab_request_add_base(id, of);
		if (lock_base(name))
			break;
		CHECK_FOR_INTERRUPTS();
	}
	check_transactions(id, &m);

	/* from now on the base itself keeps the snapshot */
	if (OidIsValid(held))
		UnlockSharedObject(DatabaseRelationId, held, 0, AccessShareLock);
	UnlockSharedObject(DatabaseRelationId, of, 0, AccessShareLock);
	return name;
}

bool
ab_base_is_open(Oid db)
{
	LOCKTAG		tag;

	if (!ab_is_base(db))
		return false;
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	return LockHeldByMe(&tag, AccessShareLock);
}

/* ---- making ---- */

void
ab_base_add(AbSnapId id, Oid pattern)
{
	AbNewBranch nb = {0};
	AbManifest *m;

	nb.name = base_name(id);
	if (OidIsValid(get_database_oid(nb.name, true)))
		return;
	m = ab_manifest_acquire(id);
	nb.parent = m->h->source_db;
	ab_manifest_release(m);
	nb.snapshot = id;
	nb.pattern = pattern;
	nb.owner = BOOTSTRAP_SUPERUSERID;
	nb.connection_limit = -1;
	(void) ab_insert_branch(&nb);
	AB_FAILPOINT("base-added");
}

/* ---- dropping ---- */

static List *
list_bases(void)
{
	List	   *list = NIL;
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (ab_base_name_is_reserved(NameStr(form->datname)))
			list = lappend_oid(list, form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return list;
}

bool
ab_base_drop(Oid db)
{
	AbTryLock	locked = ab_try_lock_database(db);
	int			nsessions;
	int			nprepared;

	/* "before": dropped by this very transaction */
	if (locked != AB_LOCKED_NOW)
		return locked == AB_LOCKED_BEFORE;
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db)))
		return true;
	if (!CountOtherDBBackends(db, &nsessions, &nprepared))
	{
		ab_delete_rows(db);
		return true;
	}
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessExclusiveLock);
	return false;
}

static bool
is_young(Oid db)
{
	AbOriginHeader origin;

	return ab_storage_read_origin(db, &origin) &&
		!TimestampDifferenceExceeds(origin.created_at, GetCurrentTimestamp(), BASE_KEEP_MS);
}

/* Does nothing else need its snapshot? */
static bool
is_alone(Oid db)
{
	AbOriginHeader origin;
	AbSnapSlot	slot;

	return ab_storage_read_origin(db, &origin) &&
		ab_snaptable_get(origin.snapshot, &slot) && slot.nbranches <= 1;
}

void
ab_base_sweep(bool all)
{
	ListCell   *lc;

	foreach(lc, list_bases())
	{
		CHECK_FOR_INTERRUPTS();
		if (all || is_alone(lfirst_oid(lc)) || !is_young(lfirst_oid(lc)))
			(void) ab_base_drop(lfirst_oid(lc));
	}
}
