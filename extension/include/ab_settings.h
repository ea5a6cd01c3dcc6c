/*
 * ab_settings.h
 *	  The agent_branch.* settings (ab_settings.c defines and documents them).
 */
#ifndef AB_SETTINGS_H
#define AB_SETTINGS_H

#include "ab_compat.h"

#include "utils/guc.h"

typedef enum AbSnapshotMethod
{
	AB_METHOD_AUTO,				/* before-images of a plain database */
	AB_METHOD_BEFORE_IMAGE,		/* the same, by name */
	AB_METHOD_CLONE,			/* FICLONERANGE or an error */
	AB_METHOD_COPY
} AbSnapshotMethod;

extern char *ab_control_database;	/* agent_branch.control_database, postmaster */
extern char *ab_default_parent; /* agent_branch.default_parent, user; ab_default.h has
								 * what counts */
extern int	ab_snapshot_timeout;	/* agent_branch.snapshot_timeout, ms, user */
extern int	ab_snapshot_method; /* AbSnapshotMethod, superuser */
extern int	ab_max_snapshots;	/* agent_branch.max_snapshots, postmaster */
extern int	ab_gather_after;	/* agent_branch.gather_after, sighup */
extern int	ab_sweep_interval;	/* agent_branch.sweep_interval, s, sighup */
extern int	ab_event_retention;	/* agent_branch.event_retention, s, sighup */
extern bool ab_log_events;		/* agent_branch.log_events, sighup */
extern int	ab_session_grace;	/* agent_branch.session_grace, ms, user */
extern int	ab_cleanup_after;	/* agent_branch.cleanup_after, s; 0: never */
extern int	ab_recovery_window; /* agent_branch.recovery_window, s */
extern int	ab_max_branches;	/* agent_branch.max_branches, sighup; 0: any number */
extern int	ab_max_quotas;		/* agent_branch.max_quotas, postmaster */
extern char *ab_connection_template;	/* agent_branch.connection_template */
extern bool ab_agent_roles;		/* agent_branch.agent_roles, superuser */

extern int	ab_max_tracked_branches;	/* agent_branch.max_tracked_branches, postmaster */
extern int	ab_activity_flush_interval; /* agent_branch.activity_flush_interval, s, sighup */
extern int	ab_auto_suspend_seconds;	/* agent_branch.auto_suspend_seconds */
extern int	ab_suspend_idle_in_transaction; /* agent_branch.suspend_idle_in_transaction,
											 * s; -1: for ever */
extern bool ab_auto_resume_enabled; /* agent_branch.auto_resume_enabled, superuser */

extern void ab_settings_define(void);

/*
 * Where the present value of a setting comes from, the server's or ours.  *setting: the
 * caller's, static, NULL at first; by it the setting is found at once the next time.
 */
struct config_generic;
extern GucSource ab_setting_source(const char *name, const struct config_generic **setting);

/* Does agent_branch.default_parent have a value of this session or of its role? */
extern bool ab_default_parent_is_own(void);

/*
 * Keep full_page_writes on while there are branches: FATAL if it is off now, an
 * invalid value from then on.  Called once, in the postmaster.
 */
extern void ab_settings_guard_full_page_writes(void);

/* Raises 55000 with the setting to change unless the library was preloaded. */
extern void ab_require_preloaded(void);

extern bool ab_in_control_database(void);

/* Raises 0A000 unless this session is in the control database. */
extern void ab_require_control_database(void);

#endif							/* AB_SETTINGS_H */
