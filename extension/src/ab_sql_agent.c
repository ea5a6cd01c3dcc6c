/*
 * ab_sql_agent.c
 *	  What the agents' functions (PL/Python) need from C: the branches of agents, many
 *	  at once, and where this server listens.
 *
 * Backends in the control database.  Names are locked in their order, so that two
 * batches that have some in common take turns; all else is as for branch.create.
 */
#include "ab_compat.h"

#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "ab_agentrole.h"
#include "ab_agenttable.h"
#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_lifecycle.h"
#include "ab_quota.h"
#include "ab_registry.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_registry.h"

PG_FUNCTION_INFO_V1(ab_sql_ensure_agents);
PG_FUNCTION_INFO_V1(ab_sql_adopt_agent_role);
PG_FUNCTION_INFO_V1(ab_sql_endpoint);

#define PREFIX "agent_"

/* Branches between two messages about progress. */
#define PROGRESS 1000

typedef struct Agent
{
	char	   *id;
	char	   *name;			/* of its branch */
	char	   *password;		/* NULL: none */
	Oid			db;				/* of its branch, invalid: to be created */
	Oid			role;			/* who logs in; invalid: no role of its own */
	bool		made;			/* by this call */
	bool		complete;		/* it has what agents need */
	struct Agent *same;			/* NULL, or the one that stands for this, too */
} Agent;

typedef struct Batch
{
	Agent	   *agents;			/* as asked for */
	Agent	  **sorted;			/* by name */
	int			n;
	const char *parent;
} Batch;

/* ---- arguments ---- */

static int
compare_names(const void *a, const void *b)
{
	const Agent *x = *(Agent *const *) a;
	const Agent *y = *(Agent *const *) b;
	int			order = strcmp(x->name, y->name);

	if (order == 0)
		order = x < y ? -1 : 1;
	return order;
}

static Datum *
read_array(FunctionCallInfo fcinfo, int arg, const char *argument, bool **nulls, int *n)
{
	Datum	   *values;

	ab_sql_require(fcinfo, arg, argument);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false, TYPALIGN_INT,
					  &values, nulls, n);
	return values;
}

static void
raise_lengths(const char *argument, int n, int expected)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there must be as many %s as agents", argument),
			 errdetail("There are %d of them for %d agents.", n, expected)));
}

static void
read_passwords(FunctionCallInfo fcinfo, Batch *batch)
{
	bool	   *nulls;
	Datum	   *values;
	int			n;

	if (PG_ARGISNULL(3))
		return;
	values = read_array(fcinfo, 3, "passwords", &nulls, &n);
	if (n != batch->n)
		raise_lengths("passwords", n, batch->n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			continue;
		if (!ab_agent_roles)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a password was given, but agents have no roles of their own"),
					 errhint("Leave it out, or have a superuser set agent_branch.agent_roles to \"on\".")));
		batch->agents[i].password = TextDatumGetCString(values[i]);
	}
}

/* One agent may be asked for twice; it is made once. */
static void
sort_agents(Batch *batch)
{
	batch->sorted = palloc(batch->n * sizeof(Agent *));
	for (int i = 0; i < batch->n; i++)
		batch->sorted[i] = &batch->agents[i];
	qsort(batch->sorted, batch->n, sizeof(Agent *), compare_names);
	for (int i = 1; i < batch->n; i++)
	{
		Agent	   *before = batch->sorted[i - 1];
		Agent	   *a = batch->sorted[i];

		if (strcmp(before->name, a->name) != 0)
			continue;
		a->same = before->same ? before->same : before;
		if (a->password && (!a->same->password ||
							strcmp(a->password, a->same->password) != 0))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("agent \"%s\" is given two passwords", a->id)));
	}
}

/* Roles are made of these names: nobody must get one of another kind. */
static void
check_name(const Agent *a)
{
	ab_check_branch_name(a->name);
	if (strncmp(a->name, PREFIX, strlen(PREFIX)) != 0 ||
		strcmp(a->name + strlen(PREFIX), a->id) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not the name of a branch of agent \"%s\"", a->name, a->id),
				 errhint("Use create_agent_branch().")));
}

static void
read_batch(FunctionCallInfo fcinfo, Batch *batch)
{
	bool	   *id_nulls;
	bool	   *name_nulls;
	int			nnames;
	Datum	   *ids = read_array(fcinfo, 0, "agent_ids", &id_nulls, &batch->n);
	Datum	   *names = read_array(fcinfo, 1, "names", &name_nulls, &nnames);

	if (nnames != batch->n)
		raise_lengths("names", nnames, batch->n);
	batch->agents = palloc0(batch->n * sizeof(Agent));
	for (int i = 0; i < batch->n; i++)
	{
		if (id_nulls[i] || name_nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("arguments must not contain nulls")));
		batch->agents[i].id = TextDatumGetCString(ids[i]);
		batch->agents[i].name = TextDatumGetCString(names[i]);
		check_name(&batch->agents[i]);
	}
	batch->parent = ab_sql_text(fcinfo, 2);
	if (batch->parent == NULL)
		batch->parent = ab_default_parent_name();
	read_passwords(fcinfo, batch);
	sort_agents(batch);
}

/* ---- branches ---- */

/* How many have none yet?  lock: of these the names, in order. */
static int
find_living(Batch *batch, bool lock)
{
	int			missing = 0;

	for (int i = 0; i < batch->n; i++)
	{
		Agent	   *a = batch->sorted[i];

		if (a->same || OidIsValid(a->db))
			continue;
		if (lock)
			ab_lock_branch_name(a->name);
		a->db = ab_sql_living_branch(a->name, GetUserId());
		if (!OidIsValid(a->db))
			missing++;
	}
	return missing;
}

static void
create_missing(Batch *batch, AbSnapId snapshot, Oid parent, int missing)
{
	AbCreateOptions opt = {.connection_limit = -1,.allow_connections = true};
	int			done = 0;

	opt.parent = batch->parent;
	opt.at = snapshot;
	opt.at_parent = parent;
	opt.has_place = true;
	for (int i = 0; i < batch->n; i++)
	{
		Agent	   *a = &batch->agents[i];

		if (a->same || OidIsValid(a->db))
			continue;
		CHECK_FOR_INTERRUPTS();
		if (ab_agent_roles)
			a->role = ab_agent_role_make(a->name, a->password);
		opt.name = a->name;
		opt.agent_role = a->role;
		a->db = ab_create_branch(&opt);
		a->made = true;
		ab_agent_role_unlock(a->role);
		if (++done % PROGRESS == 0)
			ereport(NOTICE,
					(errmsg("created %d of %d branches of agents", done, missing)));
	}
}

static void
remember_made(const Batch *batch, int n)
{
	Oid		   *dbs = palloc(n * sizeof(Oid));
	char	  **ids = palloc(n * sizeof(char *));
	Oid		   *roles = palloc(n * sizeof(Oid));
	int			k = 0;

	for (int i = 0; i < batch->n && k < n; i++)
	{
		if (!batch->agents[i].made || batch->agents[i].complete)
			continue;
		dbs[k] = batch->agents[i].db;
		roles[k] = batch->agents[i].role;
		ids[k++] = batch->agents[i].id;
	}
	ab_registry_put_agents(k, dbs, ids, roles);
	if (ab_agent_roles)
		ab_agent_roles_remember(k, roles);
}

/*
 * All of one snapshot of the parent, which is had before anything is written: it may be
 * the parent in which that is.
 */
static void
make_missing(Batch *batch)
{
	Oid			parent = ab_find_parent(batch->parent);
	AbSnapId	snapshot;
	int			missing;

	/* rights come first: who has none must not be able to hold names */
	ab_check_parent_rights(parent, batch->parent);
	missing = find_living(batch, true);
	if (missing == 0)
		return;
	ab_lock_parent(parent, batch->parent);
	ab_quota_check_create(GetUserId(), parent, missing);
	snapshot = ab_agenttable_snapshot(parent, batch->parent, ab_agent_roles);
	create_missing(batch, snapshot, parent, missing);
	remember_made(batch, missing);
}

/* ---- those that are there ---- */

/*
 * Was it made with all that agents need?  A branch that was made by this function has
 * it, until it is reset; others are looked into.
 */
static bool
is_complete(const Agent *a, const AbRegistryRow *row, bool known)
{
	if (!known || row->isnull[AB_REGISTRY_AGENT_ID] || !row->isnull[AB_REGISTRY_RESET_AT])
		return false;
	return OidIsValid(a->role) || !ab_agent_roles;
}

/*
 * One that is somebody else's is handed out as it is.  What is made in it stays if this
 * transaction is rolled back.
 */
static void
complete_living(Agent *a)
{
	AbRegistryRow row;
	bool		known;

	a->role = ab_agent_role_of(a->db);
	if (!pg_database_ownercheck(a->db, GetUserId()))
	{
		if (a->password)
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_DATABASE, a->name);
		return;
	}
	known = ab_registry_get(a->db, &row);
	if (!is_complete(a, &row, known))
		ab_agenttable_prepare(a->db, a->name, ab_agent_roles || OidIsValid(a->role));
	if (!known || row.isnull[AB_REGISTRY_AGENT_ID])
		ab_registry_put_field(a->db, AB_REGISTRY_AGENT_ID, CStringGetTextDatum(a->id), false);

	if (OidIsValid(a->role))
	{
		if (a->password)
			ab_agent_role_set_password(a->role, a->password);
		return;
	}
	if (!ab_agent_roles)
		return;
	a->role = ab_agent_role_make(a->name, a->password);
	ab_agent_give_database(a->db, a->role);
	ab_registry_put_field(a->db, AB_REGISTRY_AGENT_ROLE, ObjectIdGetDatum(a->role), false);
	ab_agent_roles_remember(1, &a->role);
}

/*
 * Is it still there?  Whoever is just deleting, renaming or resetting it is waited for.  The
 * lock is not kept: a worker may have to connect to the branch, past others who wait for the
 * lock, and there may be more agents than locks.
 */
static bool
is_still_there(Agent *a)
{
	Oid			db = a->db;

	LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	UnlockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	a->db = ab_sql_living_branch(a->name, GetUserId());
	if (a->db != db)
		a->db = InvalidOid;
	return a->db == db;
}

/* How many have to be looked for again? */
static int
complete_all(Batch *batch)
{
	int			gone = 0;

	for (int i = 0; i < batch->n; i++)
	{
		Agent	   *a = batch->sorted[i];

		if (a->same || a->complete)
			continue;
		CHECK_FOR_INTERRUPTS();
		a->complete = a->made || is_still_there(a);
		if (!a->complete)
			gone++;
		else if (!a->made)
			complete_living(a);
	}
	return gone;
}

static ArrayType *
roles_array(const Batch *batch)
{
	Datum	   *values = palloc(batch->n * sizeof(Datum));
	bool	   *nulls = palloc0(batch->n * sizeof(bool));
	int			lower = 1;

	for (int i = 0; i < batch->n; i++)
	{
		const Agent *a = &batch->agents[i];
		Oid			role = a->same ? a->same->role : a->role;

		nulls[i] = !OidIsValid(role);
		if (!nulls[i])
			values[i] = CStringGetTextDatum(GetUserNameFromId(role, false));
	}
	return construct_md_array(values, nulls, 1, (int *) &batch->n, &lower,
							  TEXTOID, -1, false, TYPALIGN_INT);
}

/* branch._ensure_agents(agent_ids, names, parent, passwords) */
Datum
ab_sql_ensure_agents(PG_FUNCTION_ARGS)
{
	Batch		batch = {0};

	ab_require_control_database();
	ab_prevent_read_only("branch creation");
	read_batch(fcinfo, &batch);
	do
	{
		if (find_living(&batch, false) > 0)
			make_missing(&batch);
	} while (complete_all(&batch) > 0);
	PG_RETURN_ARRAYTYPE_P(roles_array(&batch));
}

/* branch.adopt_agent_role(name): superusers only, as the rights of the function are. */
Datum
ab_sql_adopt_agent_role(PG_FUNCTION_ARGS)
{
	char	   *name;
	Oid			db;
	Oid			role;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	db = ab_sql_lock_branch(name, "adopt a role for");
	if (OidIsValid(ab_agent_role_of(db)))
		PG_RETURN_VOID();
	role = ab_agent_role_adopt(name, db);
	ab_registry_put_field(db, AB_REGISTRY_AGENT_ROLE, ObjectIdGetDatum(role), false);
	PG_RETURN_VOID();
}

/*
 * (socket_directories, listen_addresses, port).  The first is a setting that only some
 * may read; whoever calls this is connected already and may know where to.
 */
Datum
ab_sql_endpoint(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	const char *sockets;
	const char *addresses;

	ab_require_control_database();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	sockets = GetConfigOption("unix_socket_directories", false, false);
	addresses = GetConfigOption("listen_addresses", false, false);
	values[0] = CStringGetTextDatum(sockets ? sockets : "");
	values[1] = CStringGetTextDatum(addresses ? addresses : "");
	values[2] = Int32GetDatum(PostPortNumber);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
