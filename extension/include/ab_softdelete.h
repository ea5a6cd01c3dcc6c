/*
 * ab_softdelete.h
 *	  Branches that are deleted and can be recovered.
 *
 * Such a branch is still a database, with its row, its files and all that hangs on
 * it, but under a reserved name and closed to connections; agent_branch_deleted_<OID>.
 * Its old name, and when it was deleted, are in table branch.registry.
 */
#ifndef AB_SOFTDELETE_H
#define AB_SOFTDELETE_H

#include "ab_types.h"

#include "nodes/pg_list.h"

/* Names that begin like this are nobody's. */
extern bool ab_deleted_name_is_reserved(const char *datname);

/* Is this database a deleted branch?  From whatever database; no lock. */
extern bool ab_database_is_deleted(Oid db);

/* The name that a deleted branch had, or its present one if that is not known. */
extern char *ab_deleted_old_name(Oid db);

/* The name of a database, that it had if it is a deleted branch; NULL if it is gone. */
extern char *ab_name_or_old_name(Oid db);

/* Raise 55000: it has to be recovered first. */
extern void ab_raise_deleted(Oid db) pg_attribute_noreturn();

/*
 * Delete a branch that is locked AccessExclusive and that nobody uses, so that it can
 * be recovered; its name is free from now on.  Reports the event.
 */
extern void ab_soft_delete(Oid db, const char *name);

/*
 * The deleted branch that had this name (or has it: the reserved one), the newest one
 * of the caller's; InvalidOid if there is none.  raise: 42501 if there are only others'.
 * Not locked.
 */
extern Oid	ab_find_deleted(const char *name, bool raise);

/* Lock it AccessExclusive to the end of the transaction; InvalidOid if there is none. */
extern Oid	ab_lock_deleted(const char *name);

/* Report "purged" for one that is about to be deleted for good. */
extern void ab_report_purged(Oid db);

/* Delete for good one that is deleted and locked: 55006 if it is used. */
extern void ab_purge(Oid db);

/*
 * Bring the deleted branch of a name back, under a new one if that is not NULL: 3D000,
 * 42501, 42P04 if the name is taken.  Returns its OID.
 */
extern Oid	ab_recover_branch(const char *name, const char *new_name);

/*
 * Delete for good those whose time is over, without waiting for any: returns a list of
 * AbGcItem *, with the space that is given back when that is committed.  At most AB_PURGE_BATCH.  Needs a transaction.
 */
#define AB_PURGE_BATCH 1000
extern List *ab_purge_due(bool dry_run);

#endif							/* AB_SOFTDELETE_H */
