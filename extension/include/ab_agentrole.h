/*
 * ab_agentrole.h
 *	  Roles of agents (agent_branch.agent_roles).
 *
 * An agent's role is a direct member of the group role agent_branch_agents, and named
 * as its branch is.  It may log in to databases whose grants name it with CONNECT, its
 * branch, and to no other: what PUBLIC and the roles it is a member of may do does not
 * count for that (ab_agentlogin.c).  What it may do inside is granted to the group, in
 * the parent, and inherited by the branches with its pages (ab_agenttable.c).
 *
 * Why not the obvious: membership in the platform's role would bring more than tables,
 * the right to drop the platform's databases and to end its sessions among it, and all
 * of a superuser's.  An agent that owns its database would not be the platform's to
 * manage, unless that is made a member of every agent's role; PostgreSQL 15 cannot bear
 * 100,000 of these.  Rights granted in each branch would have to be written after the
 * commit that makes it visible, relation by relation.
 *
 * Who gets in is written in pg_database, so that it moves with a reset, can be seen and
 * changed by whom it concerns, and has nothing to be mended after a crash.  Whose role it
 * is stands in branch.registry, where nobody can write.
 */
#ifndef AB_AGENTROLE_H
#define AB_AGENTROLE_H

#include "ab_compat.h"

#include "nodes/parsenodes.h"
#include "utils/acl.h"

#define AB_AGENT_GROUP "agent_branch_agents"

/* Who called, while this backend acts as the bootstrap superuser for it. */
typedef struct AbSuperuser
{
	Oid			user;
	int			context;
	int			guc_level;
} AbSuperuser;

/* In between, what runs is fixed here and checked by the caller. */
extern void ab_become_superuser(AbSuperuser *caller);
extern void ab_become_caller(const AbSuperuser *caller);

/* The group; InvalidOid while no agent has had a role. */
extern Oid	ab_agent_group(void);

/* Is it there, and what it must be?  55000 if it is something else. */
extern bool ab_agent_group_is_sound(void);

extern bool ab_agent_is_role(Oid role);

/*
 * A login role of that name for an agent, on behalf of who may create the branch.
 * password: clear text, a SCRAM verifier, or NULL.  One that a deleted branch has left
 * behind is taken again.  42710 if somebody else's role has the name, 42939, 22023.
 */
extern Oid	ab_agent_role_make(const char *name, const char *password);

/*
 * Roles that have been made (invalid ones are passed over): no other will ever be
 * changed or dropped, whatever group it is put into.
 */
extern void ab_agent_roles_remember(int n, const Oid *roles);

/*
 * Let go of the lock that naming it in grants has taken, if this transaction has created
 * it: nobody else can see it, and a batch needs the room.
 */
extern void ab_agent_role_unlock(Oid role);

/*
 * The role of that name is that of the agent of a branch, whose superuser says so: nobody
 * knows it any more.  55000 if it cannot be.  It is remembered.
 */
extern Oid	ab_agent_role_adopt(const char *name, Oid db);

extern void ab_agent_role_set_password(Oid role, const char *password);

/* The role of its agent's own that a branch has; InvalidOid: none.  Control database only. */
extern Oid	ab_agent_role_of(Oid db);

/*
 * A database is going to be renamed: its agent's role, which has its name, is now, unless
 * another role has that name.  login: whether it can log in from then on; NULL: as it is.
 */
extern void ab_agent_role_follow(Oid db, const char *new_name, const bool *login);

/*
 * The agent of a role is gone.  If the role owns something in a snapshot or in a branch
 * of the agent's branch it cannot be dropped, but nobody can log in as it any more.
 */
extern void ab_agent_role_drop(Oid role);

/* The branch becomes a plain database: its role stays, as a plain role that gets in. */
extern void ab_agent_role_release(Oid db);

/*
 * Without the group its members could connect anywhere: 2BP01 for who drops it while there
 * are any, or branches; 42939 for a statement that gives it another name.
 */
extern void ab_agent_check_drop_role(Oid role);
extern void ab_agent_check_statement(const Node *stmt);

/* Somebody drops a database: does it leave an agent's role? */
extern void ab_agent_note_drop_database(Oid db);

/* Drop roles whose branches are gone, and nothing else.  Needs a transaction and a snapshot. */
extern void ab_agent_roles_sweep(void);

/* ---- ab_agentgrants.c ---- */

/* Do the grants of a database (NULL: the default) name the role with CONNECT? */
extern bool ab_agent_may_connect(Oid role, const Acl *acl);

/*
 * Grants of a new branch: what it inherits (NULL: the default), but of other agents'
 * roles.  With a role, that one and not PUBLIC may connect.  The argument is not changed.
 */
extern Acl *ab_agent_acl(const Acl *acl, Oid owner, Oid role);

/* Change the grants of a database that is there in that way. */
extern void ab_agent_give_database(Oid db, Oid role);

/* Take the role out of the grants of all databases. */
extern void ab_agent_revoke_databases(Oid role);

/* Do its grants, as they are now, name the role with CONNECT? */
extern bool ab_agent_is_let_in(Oid role, Oid db);

/* Do its grants name the role of any agent? */
extern bool ab_agent_is_named(Oid db);

/* copyTemplateDependencies(), but for those of grants to the group. */
extern void ab_agent_copy_dependencies(Oid from, Oid to);

/* ---- ab_agentlogin.c ---- */

/* Install the check at login. */
extern void ab_agent_login_install(void);

#endif							/* AB_AGENTROLE_H */
