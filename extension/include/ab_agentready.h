/*
 * ab_agentready.h
 *	  Which databases have what agents need, as long as nobody changes their catalogs.
 *
 * To look into another database takes a process of its own, and creating an agent's
 * branch must not.  So what was seen is kept in shared memory beside the count of the
 * transactions that have changed catalogs there, and is good while that stands still.
 * Each snapshot has the count of its moment: if that is the same, it has what was seen.
 */
#ifndef AB_AGENTREADY_H
#define AB_AGENTREADY_H

#include "ab_types.h"

#include "nodes/parsenodes.h"

/* A utility statement is about to run in this database. */
extern void ab_agentready_statement(Node *stmt);

/* All that is known about a database is void, as if its catalogs had changed. */
extern void ab_agentready_void(Oid db);

/* The count; that of a snapshot from before the server's start is not known. */
#define AB_CHANGES_UNKNOWN PG_UINT32_MAX
extern uint32 ab_catalog_changes(Oid db);

/* Taken before a look, given back after it. */
typedef struct AbAgentLook
{
	Oid			db;
	Oid			owner;			/* of the database: agents have that role's rights */
	bool		roles;			/* what agents with roles of their own need, too */
	uint32		changes;		/* of catalogs in that database */
	uint32		role_changes;	/* in the whole cluster: who is a member of what */
} AbAgentLook;

extern void ab_agentready_begin(AbAgentLook *look, Oid db, Oid owner, bool roles);

/* It has all of it: what was begun is true now. */
extern void ab_agentready_done(const AbAgentLook *look);

/* Does it have all of it?  *changes: the count for which that is true, if it is. */
extern bool ab_agentready(Oid db, Oid owner, bool roles, uint32 *changes);

#endif							/* AB_AGENTREADY_H */
