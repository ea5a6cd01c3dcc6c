/*
 * ab_lifecycle.h
 *	  Branches as users see them: pg_database rows, locks, rights.
 */
#ifndef AB_LIFECYCLE_H
#define AB_LIFECYCLE_H

#include "ab_types.h"

#include "datatype/timestamp.h"
#include "nodes/parsenodes.h"

typedef struct AbCreateOptions
{
	const char *name;
	const char *parent;			/* NULL: the default */
	AbSnapId	at;				/* invalid: the parent as it is now */
	Oid			at_parent;		/* of at: the parent; gone if parent is NULL */
	const char *owner;			/* NULL: the caller */
	int			connection_limit;	/* -1: none */
	bool		allow_connections;
	bool		is_template;
	bool		without_settings;	/* no grants and settings of the parent's */
	bool		has_place;		/* ab_quota_check_create() has been called for it */
	Oid			agent_role;		/* who connects to it, of all agents; may be invalid */
} AbCreateOptions;

/*
 * Create a branch; returns its database OID.  42P04 duplicate, 3D000 unknown parent,
 * 42501 rights, 42602/42622 bad name, 55P03 no quiet moment, 25006/25001 wrong
 * transaction state.  Everything is undone by (sub)transaction abort.
 */
extern Oid	ab_create_branch(const AbCreateOptions *opt);

/*
 * Before n branches are created of a parent as it is now: have room for all of them in the quotas.
 * Two who take place after place would wait for each other.  Sets parent and has_place.
 */
extern void ab_create_take_places(AbCreateOptions *opt, int n);

typedef enum AbOnChildren
{
	AB_CHILDREN_ERROR,
	AB_CHILDREN_KEEP,			/* they stay readable */
	AB_CHILDREN_CASCADE			/* they are deleted, too, and theirs */
} AbOnChildren;

typedef struct AbDeleteOptions
{
	const char *name;
	bool		hard;			/* for good */
	AbOnChildren on_children;
	bool		if_exists;
	bool		force;			/* end the sessions in it */
} AbDeleteOptions;

/*
 * Delete a branch: 3D000, 42501, 55006 (sessions, children), 55000 protected, 42809 not
 * a branch.  For good if agent_branch.recovery_window is zero, too; one that is deleted
 * already can only be deleted for good.
 */
extern void ab_delete_branch(const AbDeleteOptions *opt);

/* The same with all descendants, living or (for good) deleted. */
extern void ab_delete_tree(Oid root, const AbDeleteOptions *opt);

/* The event of a branch that goes away for good; its row is still there. */
extern void ab_report_deleted(Oid db, const char *name);

typedef struct AbResetOptions
{
	const char *name;
	const char *preserve_under_name;	/* NULL: the contents of now are given up */
	bool		force;			/* end the sessions in it */
	AbSnapId	at;				/* invalid: the parent as it is now */
	Oid			at_db;			/* of at: the branch for which it was looked up */
	bool		at_own;			/* of at: a snapshot of the branch, not of its parent */
} AbResetOptions;

/* The incarnation that a reset has replaced. */
typedef struct AbReplaced
{
	Oid			db;
	bool		known;			/* its origin file could be read */
	TimestampTz created_at;		/* if so, what that said */
} AbReplaced;

/*
 * Same name, owner, grants and settings; contents of the parent now, or of a
 * snapshot.  New OID.  What was there before (*replaced: under its lock, not what the name
 * meant when the caller looked) is deleted, or lives on under another name with its own
 * OID and its branches.  Restored to a snapshot of itself, a branch keeps its parent, or
 * hangs on what is preserved.
 */
extern Oid	ab_reset_branch(const AbResetOptions *opt, AbReplaced *replaced);

/*
 * OIDs of branches of a database (through any of its snapshots) that have a row.  Bases of it
 * (ab_base.h) are dropped, and are among them only if they are being read; for good even if
 * this transaction aborts, where the database's files are about to go.
 */
extern List *ab_children(Oid db, bool files_go);

/* CREATE DATABASE ... STRATEGY branch. */
extern Oid	ab_create_from_statement(const CreatedbStmt *stmt);

/* Installs ProcessUtility, executor and object access hooks (ab_hooks.c). */
extern void ab_hooks_install(void);

#endif							/* AB_LIFECYCLE_H */
