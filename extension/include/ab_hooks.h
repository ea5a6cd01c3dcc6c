/*
 * ab_hooks.h
 *	  What the hooks of ab_hooks.c ask about statements and databases.
 */
#ifndef AB_HOOKS_H
#define AB_HOOKS_H

#include "ab_compat.h"

#include "nodes/parsenodes.h"

/* How a utility statement meets the gate (ab_gate.h). */
typedef enum AbUtilityKind
{
	AB_UTILITY_QUIET,			/* writes nothing in this database by itself */
	AB_UTILITY_WRITES,			/* in the transaction that runs */
	AB_UTILITY_WRITES_MANY		/* perhaps in several transactions of its own */
} AbUtilityKind;

/* ab_hooks_utility.c */
extern AbUtilityKind ab_utility_kind(Node *stmt);

/* ---- ab_hooks_database.c ---- */

/* CREATE DATABASE ... STRATEGY branch? */
extern bool ab_statement_is_branch(const CreatedbStmt *stmt);

/* Raise if a statement about databases would harm branches or snapshots (M17). */
extern void ab_check_database_statement(Node *stmt);

/*
 * Raise if database db stands for a snapshot; or, if its files go at once, as DROP
 * DATABASE has it, if it has branches or is protected, or a snapshot needs them.
 */
extern void ab_check_drop_database(Oid db, bool files_go);

/* May databases change hands by this statement? */
extern bool ab_changes_owners(Node *stmt);

/* The event of a branch that DROP DATABASE is about to drop; none for others. */
extern void ab_report_drop_database(Oid db);

/*
 * A new database has got its number.  Raises 55006 if before-images of an older one of
 * that number are still there: its files would pass for that one's.
 */
extern void ab_check_created_database(Oid db);

/*
 * Warn if it is this one, in the control database, and there are branches: who removes the
 * library next must not start the server without it.
 */
extern void ab_warn_drop_extension(Oid extension);

/* Raise if a branch or an open snapshot has relations in the tablespace. */
extern void ab_check_drop_tablespace(Oid spc, const char *name);

#endif							/* AB_HOOKS_H */
