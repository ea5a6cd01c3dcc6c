/*
 * ab_branchsetting.h
 *	  Settings that a branch can have a value of its own of (ab_branchsetting.c).
 */
#ifndef AB_BRANCHSETTING_H
#define AB_BRANCHSETTING_H

#include "ab_compat.h"

/* All in seconds. */
typedef enum AbBranchSetting
{
	AB_BRANCH_AUTO_SUSPEND,		/* agent_branch.auto_suspend_seconds */
	AB_BRANCH_IDLE_IN_TRANSACTION,	/* agent_branch.suspend_idle_in_transaction */
	AB_BRANCH_RECOVERY_WINDOW,	/* agent_branch.recovery_window */
	AB_BRANCH_CLEANUP_AFTER		/* agent_branch.cleanup_after */
} AbBranchSetting;

#define AB_NBRANCHSETTINGS (AB_BRANCH_CLEANUP_AFTER + 1)

/* By its name without the prefix; one that is not there is an error. */
extern AbBranchSetting ab_branchsetting_find(const char *name);

/*
 * What counts for the branch.  In a transaction; reads a catalog, so not under an LWLock.
 */
extern int	ab_branchsetting(Oid db, AbBranchSetting which);

/*
 * The value of a setting, by its whole name, that ALTER DATABASE has stored for all
 * roles; NULL: none.
 */
extern char *ab_stored_setting(Oid db, const char *name);

#endif							/* AB_BRANCHSETTING_H */
