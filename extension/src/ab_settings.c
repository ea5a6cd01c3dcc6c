/*
 * ab_settings.c
 *	  Definition of the agent_branch.* settings, the guard on the one server setting
 *	  that branches need, and the two checks that every SQL function begins with.
 */
#include "ab_settings.h"

#include "access/parallel.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

#include "ab_diskspace.h"
#include "ab_file.h"
#include "ab_originpack.h"
#include "ab_shmem.h"

char	   *ab_control_database;
char	   *ab_default_parent;
int			ab_snapshot_timeout = 5000;
int			ab_snapshot_method = AB_METHOD_AUTO;
int			ab_max_snapshots = 1024;
int			ab_sweep_interval = 60;
int			ab_gather_after = 256;
int			ab_event_retention = 30 * 24 * 3600;
bool		ab_log_events = false;
int			ab_max_branches = 0;
int			ab_max_quotas = 1000;
int			ab_session_grace = 5000;
int			ab_recovery_window = 7 * 24 * 3600;
int			ab_cleanup_after = 30 * 24 * 3600;
char	   *ab_connection_template;
bool		ab_agent_roles = false;
int			ab_max_tracked_branches = 20000;
int			ab_activity_flush_interval = 10;
int			ab_auto_suspend_seconds = 300;
int			ab_suspend_idle_in_transaction = -1;
bool		ab_auto_resume_enabled = true;

/* Read by SQL, as numeric. */
static char *price_per_compute_hour;
static char *price_per_gb_month;
static char *price_per_pinned_gb_month;
static int	usage_retention;
static int	usage_day_retention;
static int	merge_retention;

static char *min_free_disk;		/* ab_diskspace.c has what it means */

static const struct config_enum_entry method_options[] = {
	{"auto", AB_METHOD_AUTO, false},
	{"before_image", AB_METHOD_BEFORE_IMAGE, false},
	{"clone", AB_METHOD_CLONE, false},
	{"copy", AB_METHOD_COPY, false},
	{NULL, 0, false}
};

static void
define_activity(void)
{
	DefineCustomIntVariable("agent_branch.max_tracked_branches",
							"Databases whose activity is held in shared memory.",
							"Each takes about 110 bytes. Those beyond go through a file; suspended branches need a place.",
							&ab_max_tracked_branches, 20000, 16, 10000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.activity_flush_interval",
							"How often activity is written to table branch.activity.",
							"A crash loses as much of it.",
							&ab_activity_flush_interval, 10, 1, 3600,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.auto_suspend_seconds",
							"Time without activity after which branch.suspend_idle() suspends a branch.",
							"Zero: only branches with a timeout of their own are suspended.",
							&ab_auto_suspend_seconds, 300, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.suspend_idle_in_transaction",
							"How long a session idle in a transaction keeps its branch from being suspended.",
							"-1: as long as it lasts, if it holds a snapshot or has written.",
							&ab_suspend_idle_in_transaction, -1, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomBoolVariable("agent_branch.auto_resume_enabled",
							 "Connecting to a suspended branch resumes it.",
							 "If off, it is refused with 57P03 until branch.resume() is called.",
							 &ab_auto_resume_enabled, true,
							 PGC_SUSET, 0, NULL, NULL, NULL);
}

/* Money: digits, at most one point, no sign; what SQL reads as numeric, exactly. */
static bool
check_price(char **newval, void **extra, GucSource source)
{
	size_t		whole = strspn(*newval, "0123456789");
	const char *rest = *newval + whole;
	size_t		fraction = 0;

	if (*rest == '.')
	{
		fraction = strspn(rest + 1, "0123456789");
		rest += 1 + fraction;
	}
	if (*rest == '\0' && whole + fraction > 0 && whole <= 12 && fraction <= 12)
		return true;
	GUC_check_errdetail("A price is a decimal number like 0.16, with up to 12 digits before and after the point.");
	return false;
}

static void
define_price(const char *name, const char *what, char **variable, const char *value)
{
	DefineCustomStringVariable(name, what,
							   "What was used before a change costs what it did.",
							   variable, value, PGC_SIGHUP, 0, check_price, NULL, NULL);
}

static void
define_cost_settings(void)
{
	define_price("agent_branch.price_per_compute_hour",
				 "Price of an hour in which a branch runs statements.",
				 &price_per_compute_hour, "0.16");
	define_price("agent_branch.price_per_gb_month",
				 "Price of a month of a GB that a branch has written.",
				 &price_per_gb_month, "0.35");
	define_price("agent_branch.price_per_pinned_gb_month",
				 "Price of a month of a GB of old pages that only a branch's snapshot needs.",
				 &price_per_pinned_gb_month, "0");
	DefineCustomIntVariable("agent_branch.usage_retention",
							"How long the use of branches is kept by the hour.",
							"Zero keeps it for ever.",
							&usage_retention, 30 * 24 * 3600, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.usage_day_retention",
							"How long the use of branches is kept by the day.",
							"Also how long deleted branches are remembered. Zero keeps it for ever.",
							&usage_day_retention, 400 * 24 * 3600, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

void
ab_settings_define(void)
{
	define_cost_settings();
	DefineCustomStringVariable("agent_branch.control_database",
							   "Database in which branches are managed.",
							   "CREATE EXTENSION agent_branch works there and nowhere else.",
							   &ab_control_database, "postgres",
							   PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("agent_branch.default_parent",
							   "Database that is branched when no parent is named.",
							   "branch.set_default() sets it for the control database.",
							   &ab_default_parent, "main",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.snapshot_timeout",
							"How long a snapshot waits for the transactions that write in the parent.",
							"It fails with 55P03 and names them afterwards.",
							&ab_snapshot_timeout, 5000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomEnumVariable("agent_branch.snapshot_method",
							 "How the pages of a snapshot are obtained.",
							 "auto and before_image copy nothing; clone needs a filesystem with reflinks; copy always works. Snapshots of branches copy what is new in them.",
							 &ab_snapshot_method, AB_METHOD_AUTO, method_options,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.max_snapshots",
							"Most snapshots that can exist at once in the cluster.",
							"Each takes 72 bytes of shared memory.",
							&ab_max_snapshots, 1024, 16, 1000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.sweep_interval",
							"How often storage that deleted branches left is given back.",
							"Zero leaves it to branch.gc().",
							&ab_sweep_interval, 60, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.gather_after",
							"New branches after which their origin files are gathered into one.",
							"Zero leaves it to branch.gc().",
							&ab_gather_after, 256, 0, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.max_branches",
							"Most branches that can exist at once in the cluster.",
							"Zero sets no limit. Deleted branches that can be recovered do not count.",
							&ab_max_branches, 0, 0, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.max_quotas",
							"Most quotas of roles and parents.",
							"Each takes about 150 bytes of shared memory.",
							&ab_max_quotas, 1000, 0, 1000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("agent_branch.min_free_disk",
							   "Free space in the data directory below which no branch is created.",
							   "A percentage of the filesystem, or bytes with a unit. Zero sets no limit.",
							   &min_free_disk, "0",
							   PGC_SIGHUP, 0, ab_diskspace_check_setting,
							   ab_diskspace_assign_setting, NULL);
	DefineCustomIntVariable("agent_branch.event_retention",
							"How long events are kept.",
							"Zero keeps them for ever. How a living branch came to be is kept as long as it lives.",
							&ab_event_retention, 30 * 24 * 3600, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.merge_retention",
							"How long what a merge changed is kept for branch.revert().",
							"Zero keeps it for ever.",
							&merge_retention, 30 * 24 * 3600, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.session_grace",
							"How long force => true lets transactions go on before it ends their sessions.",
							"Idle sessions are ended at once.",
							&ab_session_grace, 5000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.recovery_window",
							"How long a deleted branch can be recovered.",
							"Zero: deleted branches cannot be recovered.",
							&ab_recovery_window, 7 * 24 * 3600, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("agent_branch.cleanup_after",
							"How long branches go unused before cleanup_inactive_branches() deletes them.",
							"Zero: they are kept.",
							&ab_cleanup_after, 30 * 24 * 3600, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomStringVariable("agent_branch.connection_template",
							   "Connection string given to agents; {database}, {host}, {port} and {role} are replaced.",
							   "Empty: a libpq URI for this server.",
							   &ab_connection_template, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("agent_branch.log_events",
							 "Writes each event to the server's log, as a line of JSON.",
							 "What notifications say, with level LOG, by the keeper.",
							 &ab_log_events, false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("agent_branch.agent_roles",
							 "Gives each new agent a login role of its own.",
							 "It can connect to the agent's branch and to no other database.",
							 &ab_agent_roles, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	define_activity();
	MarkGUCPrefixReserved("agent_branch");
}

/* The array moves when settings are added; what it points to stays. */
GucSource
ab_setting_source(const char *name, const struct config_generic **setting)
{
	struct config_generic **vars = get_guc_variables();

	for (int i = 0; *setting == NULL && i < GetNumConfigOptions(); i++)
		if (strcmp(vars[i]->name, name) == 0)
			*setting = vars[i];
	return *setting != NULL ? (*setting)->source : PGC_S_DEFAULT;
}

bool
ab_default_parent_is_own(void)
{
	static const struct config_generic *setting = NULL;

	return ab_setting_source("agent_branch.default_parent", &setting) > PGC_S_DATABASE;
}

/* ---- full_page_writes (rule 5) ---- */

static GucBoolCheckHook prev_check_full_page_writes = NULL;

/* A standby may receive branches at any time, and be promoted. */
static bool
full_page_writes_must_stay(void)
{
	return ab_origin_any() || ab_file_exists(STANDBY_SIGNAL_FILE) ||
		ab_file_exists(RECOVERY_SIGNAL_FILE);
}

/*
 * Runs wherever settings are read, the postmaster included: looks at files only.  A
 * parallel worker merely repeats what its leader has.
 */
static bool
check_full_page_writes(bool *newval, void **extra, GucSource source)
{
	if (!*newval && !InitializingParallelWorker && full_page_writes_must_stay())
	{
		GUC_check_errmsg("full_page_writes cannot be turned off while there are branches");
		GUC_check_errdetail("Nor on a standby, which may receive some.");
		GUC_check_errhint("Delete the branches first, and call branch.gc().");
		return false;
	}
	return prev_check_full_page_writes == NULL ||
		prev_check_full_page_writes(newval, extra, source);
}

void
ab_settings_guard_full_page_writes(void)
{
	struct config_generic **vars = get_guc_variables();

	for (int i = 0; i < GetNumConfigOptions(); i++)
	{
		struct config_bool *var = (struct config_bool *) vars[i];

		if (strcmp(vars[i]->name, "full_page_writes") != 0)
			continue;
		prev_check_full_page_writes = var->check_hook;
		var->check_hook = check_full_page_writes;
	}
	if (!fullPageWrites && full_page_writes_must_stay())
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("branches need full_page_writes"),
				 errdetail("There are branches in this cluster, or it is a standby that may receive some, and the setting is off."),
				 errhint("Set full_page_writes to \"on\"; it can be turned off when there are no branches any more.")));
}

void
ab_require_preloaded(void)
{
	if (ab_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("agent_branch is not preloaded"),
				 errdetail("Branches need the library in every process of the server."),
				 errhint("Add agent_branch to shared_preload_libraries and restart the server.")));
}

bool
ab_in_control_database(void)
{
	char	   *here = get_database_name(MyDatabaseId);

	return here != NULL && strcmp(here, ab_control_database) == 0;
}

void
ab_require_control_database(void)
{
	char	   *here;

	ab_require_preloaded();
	if (ab_in_control_database())
		return;
	here = get_database_name(MyDatabaseId);
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("agent_branch is managed in database \"%s\", not in \"%s\"",
					ab_control_database, here ? here : "?"),
			 errhint("Connect to database \"%s\", or change agent_branch.control_database and restart the server.",
					 ab_control_database)));
}
