/*
 * agent_branch.c
 *	  Loading the library.
 *
 * Preloaded by the postmaster, it attaches to the storage manager and installs
 * everything.  Loaded later, by a session that calls one of its functions, it does
 * nothing: the functions then say what setting to change.
 */
#include "ab_compat.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "ab_activitycount.h"
#include "ab_activityworker.h"
#include "ab_agentrole.h"
#include "ab_attach.h"
#include "ab_firstuse.h"
#include "ab_keeper.h"
#include "ab_lifecycle.h"
#include "ab_settings.h"
#include "ab_shmem.h"
#include "ab_startup.h"
#include "ab_suspend.h"
#include "ab_wal.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;

	ab_settings_define();
	ab_settings_guard_full_page_writes();
	ab_attach();
	ab_shmem_install_hooks();
	ab_startup_install_hook();
	ab_wal_register();
	ab_redo_wrap_builtin();
	ab_hooks_install();
	ab_activitycount_install();
	ab_suspendsession_install();
	ab_agent_login_install();
	ab_firstuse_install();
	ab_keeper_register();
	ab_activityworker_register();
}
