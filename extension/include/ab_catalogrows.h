/*
 * ab_catalogrows.h
 *	  What creating, deleting and resetting a branch have in common: locks,
 *	  rights and catalog rows.  Used by ab_create.c, ab_createstmt.c, ab_delete.c and
 *	  ab_reset.c.
 */
#ifndef AB_CATALOGROWS_H
#define AB_CATALOGROWS_H

#include "ab_types.h"

#include "nodes/pg_list.h"
#include "utils/acl.h"

/* Raise 25006 or 25000 where nothing can be written. */
extern void ab_prevent_read_only(const char *what);

/* Refuse names a branch cannot have: 42602, 42622, 42939. */
extern void ab_check_branch_name(const char *name);

/* Lock the name to the end of the transaction (README.locking, 1). */
extern void ab_lock_branch_name(const char *name);

/* Raises 42809 for a snapshot's hidden row and for the base that it is read in. */
extern void ab_check_no_snapshot(const char *name);

/* The parent's OID, not locked yet: 3D000, 42809 as above. */
extern Oid	ab_find_parent(const char *name);

/* Is this user a superuser, or does it have CREATEDB?  (The server's own is not exported by all.) */
extern bool ab_have_createdb(void);

/* The HINT of an error that says that it has not. */
extern int	ab_errhint_createdb(void);

/* May this user branch that database?  42501 if not. */
extern void ab_check_parent_rights(Oid parent, const char *name);

/* AccessShareLock, and a look whether it is still what it was: 3D000, 55000, 42501. */
extern void ab_lock_parent(Oid parent, const char *name);

/*
 * AccessExclusiveLock on a database's object if nobody else has any lock on it, not waiting,
 * and what others have committed is seen then (UnlockSharedObject() gives it back).
 * AB_LOCKED_BEFORE: this very transaction has it, for a creation or deletion of its own that
 * may still be rolled back; nothing was added to that.
 */
typedef enum AbTryLock
{
	AB_LOCK_NOT_FREE,
	AB_LOCKED_BEFORE,
	AB_LOCKED_NOW
} AbTryLock;

extern AbTryLock ab_try_lock_database(Oid db);

/* ab_snapshot_get(), with the parent locked. */
extern AbSnapId ab_parent_snapshot(Oid parent);

extern Oid	ab_database_owner(Oid db);

/* A copy of a database's name, or NULL if there is no such row (any more). */
extern char *ab_database_name(Oid db);

/* Is it marked so, as by a DROP DATABASE that was interrupted?  False without a row, too. */
extern bool ab_database_is_invalid(Oid db);

typedef struct AbNewBranch
{
	const char *name;
	Oid			parent;			/* locked by ab_lock_parent(), or gone */
	AbSnapId	snapshot;		/* by ab_parent_snapshot() or ab_snapshot_get_at() */
	Oid			owner;
	int			connection_limit;
	bool		allow_connections;
	bool		is_template;
	Acl		   *acl;			/* NULL: none */
	Oid			pattern;		/* database with the encoding and so on of the parent then;
								 * InvalidOid: the snapshot's hidden row */
} AbNewBranch;

/* Row, dependencies and files of a new branch; its name is locked and free. */
extern Oid	ab_insert_branch(const AbNewBranch *nb);

/*
 * OID of the branch of that name, to be deleted by this user: InvalidOid if there
 * is no database of the name, or it is deleted already; 42501, 42809 not a branch, 55006 current database.
 */
extern Oid	ab_find_own_branch(const char *name, const char *verb);

/*
 * Lock it AccessExclusive and make sure that it is not protected (55000, "cannot
 * <verb> ...") and that nobody uses it, and, unless with_children, that it has no
 * living branches: 55006.  force: other sessions are terminated.  False if it is gone
 * by now.
 */
extern bool ab_lock_for_delete(Oid db, const char *name, const char *verb,
							   bool with_children, bool force);

/* 42809 if it is one. */
extern void ab_check_not_template(Oid db, const char *name);

/* 55006 if sessions, prepared transactions, slots or subscriptions use it. */
extern void ab_check_unused(Oid db, const char *name);

/* Delete one that is locked like that, recoverably or for good, and report it. */
extern void ab_delete_locked(Oid db, const char *name, bool hard);

/* "a", "b" and N more: for DETAIL. */
extern char *ab_name_list(List *dbs);

/* Row and everything in shared catalogs that hangs on it; files are swept. */
extern void ab_delete_rows(Oid db);

/* The same, and the role of its agent, if it had one. */
extern void ab_delete_for_good(Oid db);

#endif							/* AB_CATALOGROWS_H */
