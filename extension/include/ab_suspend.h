/*
 * ab_suspend.h
 *	  Suspending branches.
 *
 * A suspended branch is merely cold: nobody is connected to it, none of its pages is in
 * shared buffers, and its statistics are put away so that autovacuum's launcher has no
 * reason to look at it; but for its age (F8): its row in pg_database is as ever, and
 * workers against wraparound come and go without resuming it.  Everything about it works as
 * before, and whoever connects resumes it.
 *
 * The state is in shared memory (ab_activity.h) and changes at once, whatever becomes of
 * the transaction; the worker writes it to branch.activity, and the events "suspended" and
 * "resumed" with it.  A crash before that leaves a branch that is cold and called ready.
 */
#ifndef AB_SUSPEND_H
#define AB_SUSPEND_H

#include "ab_activity.h"

typedef enum AbSuspendOutcome
{
	AB_SUSPEND_DONE,			/* or it was already */
	AB_SUSPEND_GONE,			/* it is no branch any more, or deleted */
	AB_SUSPEND_LOCKED,			/* and the caller did not want to wait */
	AB_SUSPEND_BUSY,			/* in use, or used since */
	AB_SUSPEND_NO_ROOM			/* agent_branch.max_tracked_branches */
} AbSuspendOutcome;

typedef enum AbSuspendReason
{
	AB_SUSPEND_CALLED,
	AB_SUSPEND_IDLE,
	AB_SUSPEND_BUDGET
} AbSuspendReason;

typedef struct AbSuspendHow
{
	AbSuspendReason reason;		/* for the event */
	TimestampTz idle_since;		/* sessions that were active after it keep it awake */
	bool		wait;			/* for its lock, and for autovacuum to go */
	bool		check_rights;	/* to end the sessions of other roles: 42501 */
} AbSuspendHow;

/*
 * Takes AccessExclusiveLock on the database object and lets it go.  Sessions leave by
 * themselves, each when it sees that it has not been active since then.  *why: of BUSY,
 * what keeps it awake; palloc'd.
 */
extern AbSuspendOutcome ab_suspend(Oid db, const AbSuspendHow *how, char **why);

/* False: it was not suspended. */
extern bool ab_resume(Oid db);

/* In the postmaster: how sessions leave, and how they resume a branch. */
extern void ab_suspendsession_install(void);

/* In a process that is no session of a branch, once it is in its database. */
extern void ab_suspendsession_uninstall(void);

#endif							/* AB_SUSPEND_H */
