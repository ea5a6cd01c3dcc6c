/*
 * ab_agentready.c
 *	  Which databases have what agents need, as long as nobody changes their catalogs.
 *
 * Any process counts; backends in the control database ask.  The counts are atomic,
 * what was seen is protected by ready_lock, a leaf.  Statements are counted when their
 * transaction has committed and still holds its locks, the gate's among them.  A crash
 * forgets everything, and every database is looked at again.
 */
#include "ab_agentready.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"

#include "ab_shmem.h"

static bool counts_here = false;	/* this transaction changes catalogs */
static bool counts_roles = false;	/* or who is a member of what */

/* ---- counting ---- */

static pg_atomic_uint32 *
counter(Oid db)
{
	return &ab_shared->catalog_changes[(db * 2654435761u) >> 20];
}

uint32
ab_catalog_changes(Oid db)
{
	return pg_atomic_read_u32(counter(db));
}

void
ab_agentready_void(Oid db)
{
	pg_atomic_fetch_add_u32(counter(db), 1);
}

static void
at_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:	/* snapshots refuse while it is prepared */
			if (counts_here)
				ab_agentready_void(MyDatabaseId);
			if (counts_roles)
				ab_agentready_void(InvalidOid);
			counts_here = counts_roles = false;
			break;
		case XACT_EVENT_ABORT:
			counts_here = counts_roles = false;
			break;
		default:
			break;
	}
}

static bool
is_temporary(Node *stmt)
{
	if (IsA(stmt, CreateStmt))
		return ((CreateStmt *) stmt)->relation->relpersistence == RELPERSISTENCE_TEMP;
	if (IsA(stmt, CreateTableAsStmt))
		return ((CreateTableAsStmt *) stmt)->into->rel->relpersistence == RELPERSISTENCE_TEMP;
	return false;
}

void
ab_agentready_statement(Node *stmt)
{
	static bool registered = false;

	if (ab_shared == NULL)
		return;
	if (IsA(stmt, TransactionStmt))
	{
		/* what it commits was counted when it was prepared, and may have been seen since */
		if (((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED)
		{
			ab_agentready_void(MyDatabaseId);
			ab_agentready_void(InvalidOid);
			counts_here = counts_roles = true;
		}
		else
			return;
	}
	else if (GetCommandLogLevel(stmt) != LOGSTMT_DDL || is_temporary(stmt))
		return;
	if (!registered)
		RegisterXactCallback(at_end, NULL);
	registered = true;
	counts_here = true;
	if (IsA(stmt, GrantRoleStmt) || IsA(stmt, AlterRoleStmt) || IsA(stmt, DropRoleStmt))
		counts_roles = true;
}

/* ---- what was seen ---- */

#define WAYS 4

static AbReadyDatabase *
set_of(Oid db)
{
	StaticAssertStmt(AB_READY_DATABASES % WAYS == 0, "a whole number of sets");
	return &ab_shared->ready[(db % (AB_READY_DATABASES / WAYS)) * WAYS];
}

void
ab_agentready_begin(AbAgentLook *look, Oid db, Oid owner, bool roles)
{
	look->db = db;
	look->owner = owner;
	look->roles = roles;
	look->changes = ab_catalog_changes(db);
	look->role_changes = ab_catalog_changes(InvalidOid);
	pg_memory_barrier();
}

/* The oldest of a set makes room. */
void
ab_agentready_done(const AbAgentLook *look)
{
	AbReadyDatabase *set = set_of(look->db);
	AbReadyDatabase *slot = &set[0];

	LWLockAcquire(ab_shared->ready_lock, LW_EXCLUSIVE);
	for (int i = 0; i < WAYS; i++)
	{
		if (set[i].db == look->db)
		{
			slot = &set[i];
			break;
		}
		if (set[i].age < slot->age)
			slot = &set[i];
	}
	slot->db = look->db;
	slot->owner = look->owner;
	slot->roles = look->roles;
	slot->changes = look->changes;
	slot->role_changes = look->role_changes;
	slot->age = ++ab_shared->ready_age;
	LWLockRelease(ab_shared->ready_lock);
}

static bool
is_good(const AbReadyDatabase *slot, Oid db, Oid owner, bool roles)
{
	if (slot->db != db || slot->owner != owner)
		return false;
	if (roles && (!slot->roles || slot->role_changes != ab_catalog_changes(InvalidOid)))
		return false;
	return slot->changes == ab_catalog_changes(db);
}

bool
ab_agentready(Oid db, Oid owner, bool roles, uint32 *changes)
{
	AbReadyDatabase *set = set_of(db);
	bool		found = false;

	LWLockAcquire(ab_shared->ready_lock, LW_SHARED);
	for (int i = 0; i < WAYS && !found; i++)
	{
		found = is_good(&set[i], db, owner, roles);
		*changes = set[i].changes;
	}
	LWLockRelease(ab_shared->ready_lock);
	return found;
}
