/*
 * ab_lifecycle.h
 *	  Branches as users see them: pg_database rows, locks, rights.
 */
#ifndef AB_LIFECYCLE_H
#define AB_LIFECYCLE_H

#include "ab_types.h"

#include "nodes/parsenodes.h"

typedef struct AbCreateOptions
{
	const char *name;
	const char *parent;
	const char *owner;			/* NULL: the caller */
	int			connection_limit;	/* -1: none */
	bool		allow_connections;
	bool		is_template;
} AbCreateOptions;

/*
 * Create a branch; returns its database OID.  42P04 duplicate, 3D000 unknown parent,
 * 42501 rights, 42602/42622 bad name, 55P03 no quiet moment, 25006/25001 wrong
 * transaction state.  Everything is undone by (sub)transaction abort.
 */
extern Oid	ab_create_branch(const AbCreateOptions *opt);

/* Hard delete: 3D000, 42501, 55006 (sessions, children), 42809 not a branch. */
extern void ab_delete_branch(const char *name, bool if_exists, bool force);

/* Same name, owner, grants and settings; contents of the parent now.  New OID. */
extern Oid	ab_reset_branch(const char *name, bool force);

/* OIDs of living branches of a database (through any of its snapshots). */
extern List *ab_children(Oid db);

/* CREATE DATABASE ... STRATEGY branch. */
extern Oid	ab_create_from_statement(const CreatedbStmt *stmt);

/* Installs ProcessUtility, executor and object access hooks (ab_hooks.c). */
extern void ab_hooks_install(void);

#endif							/* AB_LIFECYCLE_H */
