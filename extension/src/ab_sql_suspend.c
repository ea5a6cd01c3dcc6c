/*
 * ab_sql_suspend.c
 *	  branch.suspend, branch.resume, branch.suspend_idle.
 *
 * Backends in the control database.  Each branch is locked only while it is suspended
 * (ab_suspend.c); what was done stays done if the transaction is rolled back.
 */
#include "ab_compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ab_activityflush.h"
#include "ab_branchsetting.h"
#include "ab_catalogrows.h"
#include "ab_dir.h"
#include "ab_origin.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_storagefiles.h"
#include "ab_suspend.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_suspend);
PG_FUNCTION_INFO_V1(ab_sql_suspend_over_budget);
PG_FUNCTION_INFO_V1(ab_sql_resume);
PG_FUNCTION_INFO_V1(ab_sql_suspend_idle);

/* ---- one branch ---- */

static Oid
own_branch(const char *name, const char *verb)
{
	Oid			db = ab_find_own_branch(name, verb);

	if (!OidIsValid(db))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("branch \"%s\" does not exist", name),
				 errhint("The view branch.branches lists those that do.")));
	return db;
}

static void
no_room(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("cannot suspend branch \"%s\", because too many are suspended or in use",
					name),
			 errdetail("agent_branch.max_tracked_branches is %d.", ab_max_tracked_branches),
			 errhint("Raise agent_branch.max_tracked_branches and restart the server.")));
}

/* If there is no place for it, those of branches that are not in use any more make room. */
static AbSuspendOutcome
suspend_making_room(Oid db, const AbSuspendHow *how, bool *made_room, char **why)
{
	AbSuspendOutcome outcome = ab_suspend(db, how, why);

	if (outcome != AB_SUSPEND_NO_ROOM || *made_room)
		return outcome;
	*made_room = true;
	ab_activity_write_now();
	return ab_suspend(db, how, why);
}

static Datum
suspend_one(FunctionCallInfo fcinfo, AbSuspendReason reason)
{
	AbSuspendHow how = {.reason = reason, .wait = true, .check_rights = true};
	char	   *name;
	char	   *why;
	bool		made_room = false;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	ab_prevent_read_only("suspending a branch");
	how.idle_since = GetCurrentTimestamp();
	for (;;)
	{
		db = own_branch(name, "suspend");
		switch (suspend_making_room(db, &how, &made_room, &why))
		{
			case AB_SUSPEND_DONE:
				return ab_sql_branch_row(db, name);
			case AB_SUSPEND_GONE:
				break;			/* another one may have the name */
			case AB_SUSPEND_NO_ROOM:
				no_room(name);
				break;
			case AB_SUSPEND_LOCKED:
			case AB_SUSPEND_BUSY:
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_IN_USE),
						 errmsg("cannot suspend branch \"%s\", because it is in use", name),
						 errdetail("%s", why),
						 errhint("Try again when it is idle.")));
		}
		CHECK_FOR_INTERRUPTS();
	}
}

Datum
ab_sql_suspend(PG_FUNCTION_ARGS)
{
	return suspend_one(fcinfo, AB_SUSPEND_CALLED);
}

/* For job usage. */
Datum
ab_sql_suspend_over_budget(PG_FUNCTION_ARGS)
{
	return suspend_one(fcinfo, AB_SUSPEND_BUDGET);
}

Datum
ab_sql_resume(PG_FUNCTION_ARGS)
{
	AbOriginHeader origin;
	char	   *name;
	Oid			db;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	ab_prevent_read_only("resuming a branch");
	db = own_branch(name, "resume");
	(void) ab_resume(db);

	/* so that any background worker can connect, also if nobody has been in it (ab_firstuse.c) */
	if (ab_storage_read_origin(db, &origin))
		ab_dir_ensure(db, origin.spc);
	PG_RETURN_DATUM(ab_sql_branch_row(db, name));
}

/* ---- all that are idle ---- */

/* What is known of a branch, by OID. */
typedef struct Candidate
{
	Oid			db;				/* hash key */
	TimestampTz origin_at;		/* of what follows */
	TimestampTz last_active;
	TimestampTz suspended_at;
	TimestampTz timeout_of;		/* origin_at of the timeout; 0: it has none */
	double		timeout;		/* seconds; 0: never */
} Candidate;

static Candidate *
candidate(HTAB *known, Oid db)
{
	bool		found;
	Candidate  *c = hash_search(known, &db, HASH_ENTER, &found);

	if (!found)
	{
		memset(c, 0, sizeof(*c));
		c->db = db;
		c->last_active = DT_NOBEGIN;
	}
	return c;
}

static void
read_timeouts(HTAB *known)
{
	uint64		n;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("SELECT r.db, r.origin_at, extract(EPOCH FROM r.suspend_timeout)::float8"
						  " FROM branch.registry AS r WHERE r.suspend_timeout IS NOT NULL",
						  0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		Candidate  *c = candidate(known, DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull)));

		c->timeout_of = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
		c->timeout = DatumGetFloat8(SPI_getbinval(tuple, desc, 3, &isnull));
	}
	SPI_finish();
}

static HTAB *
read_known(void)
{
	HASHCTL		info = {0};
	HTAB	   *known;
	AbActivity *all;
	int			n;

	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(Candidate);
	info.hcxt = CurrentMemoryContext;
	known = hash_create("branches to suspend", 1024, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	all = ab_activityflush_read_all(&n);
	for (int i = 0; i < n; i++)
	{
		Candidate  *c = candidate(known, all[i].db);

		c->origin_at = all[i].origin_at;
		c->last_active = all[i].last_active;
		c->suspended_at = all[i].suspended_at;
	}
	pfree(all);
	read_timeouts(known);
	return known;
}

/* Is its time over?  Then *idle_since is when that began to count. */
static bool
is_due(Oid db, const Candidate *c, const AbOriginHeader *origin, TimestampTz now,
	   TimestampTz *idle_since)
{
	TimestampTz last = origin->created_at;
	double		timeout;

	if (c != NULL && c->timeout_of == origin->created_at)
		timeout = c->timeout;
	else
		timeout = ab_branchsetting(db, AB_BRANCH_AUTO_SUSPEND);
	if (c != NULL && c->origin_at == origin->created_at)
		last = Max(last, c->last_active);
	if (timeout <= 0)
		return false;
	*idle_since = now - (TimestampTz) (timeout * USECS_PER_SEC);
	return last <= *idle_since;
}

static bool
suspend_if_due(HTAB *known, Oid db, TimestampTz now, bool *made_room, bool *no_room_left)
{
	Candidate  *c = hash_search(known, &db, HASH_FIND, NULL);
	AbSuspendHow how = {.reason = AB_SUSPEND_IDLE, .wait = false, .check_rights = false};
	AbOriginHeader origin;
	AbSuspendOutcome outcome;
	char	   *why;

	if (db == MyDatabaseId || (c != NULL && c->suspended_at != 0) ||
		!ab_storage_read_origin(db, &origin) || !is_due(db, c, &origin, now, &how.idle_since))
		return false;
	outcome = suspend_making_room(db, &how, made_room, &why);
	*no_room_left |= outcome == AB_SUSPEND_NO_ROOM;
	return outcome == AB_SUSPEND_DONE;
}

Datum
ab_sql_suspend_idle(PG_FUNCTION_ARGS)
{
	int32		most = PG_ARGISNULL(0) ? INT_MAX : PG_GETARG_INT32(0);
	TimestampTz now = GetCurrentTimestamp();
	int32		nsuspended = 0;
	bool		made_room = false;
	bool		no_room_left = false;
	HTAB	   *known;
	Oid		   *branches;
	int			n;

	ab_require_control_database();
	if (most <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_branches\" must be positive"),
				 errhint("Leave it out, or pass NULL, to suspend all that are due.")));
	ab_prevent_read_only("suspending branches");
	known = read_known();
	branches = ab_origin_list(&n);
	for (int i = 0; i < n && nsuspended < most && !no_room_left; i++)
	{
		CHECK_FOR_INTERRUPTS();
		nsuspended += suspend_if_due(known, branches[i], now, &made_room,
									 &no_room_left);
	}
	if (no_room_left)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("not all idle branches could be suspended"),
				 errdetail("agent_branch.max_tracked_branches is %d.", ab_max_tracked_branches),
				 errhint("Raise agent_branch.max_tracked_branches and restart the server.")));
	hash_destroy(known);
	PG_RETURN_INT32(nsuspended);
}
