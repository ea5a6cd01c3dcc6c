/*
 * ab_agentready.h
 *	  Which databases have what agents need, as long as nobody changes their catalogs.
 *
 * To look into another database takes a process of its own, and creating an agent's
 * branch must not.  So what was seen is kept in shared memory beside a count of the
 * statements that change catalogs there, and is good while that does not move.
 */
#ifndef AB_AGENTREADY_H
#define AB_AGENTREADY_H

#include "ab_types.h"

#include "nodes/parsenodes.h"

/* A utility statement is about to run in this database. */
extern void ab_agentready_statement(Node *stmt);

/* All that is known about a database is void, as if its catalogs had changed. */
extern void ab_agentready_void(Oid db);

/* Taken before a look, given back after it. */
typedef struct AbAgentLook
{
	Oid			db;
	Oid			owner;			/* of the database: agents have that role's rights */
	bool		roles;			/* what agents with roles of their own need, too */
	uint32		statements;		/* in that database */
	uint32		roles_changed;	/* in the whole cluster */
} AbAgentLook;

extern void ab_agentready_begin(AbAgentLook *look, Oid db, Oid owner, bool roles);

/* It has all of it: what was begun is true now. */
extern void ab_agentready_done(const AbAgentLook *look);

/*
 * Does it have all of it, as far as is known?  *since: a snapshot at or after that
 * position has it too, if the answer is still yes after the snapshot was taken:
 * whoever writes is waited for by a snapshot, and counts before letting it go on.
 */
extern bool ab_agentready(Oid db, Oid owner, bool roles, XLogRecPtr *since);

#endif							/* AB_AGENTREADY_H */
