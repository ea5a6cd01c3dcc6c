/*
 * ab_sql_lifecycle.c
 *	  branch.create, ensure, create_many, delete, recover, expire, rename, reset,
 *	  restore, detach.
 *
 * Backends in the control database.  Arguments are checked and translated here;
 * rights, locks and everything else are ab_lifecycle.h's.
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_catalogrows.h"
#include "ab_detach.h"
#include "ab_default.h"
#include "ab_expire.h"
#include "ab_file.h"
#include "ab_lifecycle.h"
#include "ab_origin.h"
#include "ab_registry.h"
#include "ab_rename.h"
#include "ab_settings.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_sql_at.h"
#include "ab_sql_quota.h"
#include "ab_sql_registry.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_check_installable);
PG_FUNCTION_INFO_V1(ab_sql_create);
PG_FUNCTION_INFO_V1(ab_sql_ensure);
PG_FUNCTION_INFO_V1(ab_sql_create_many);
PG_FUNCTION_INFO_V1(ab_sql_delete);
PG_FUNCTION_INFO_V1(ab_sql_recover);
PG_FUNCTION_INFO_V1(ab_sql_expire);
PG_FUNCTION_INFO_V1(ab_sql_rename);
PG_FUNCTION_INFO_V1(ab_sql_reset);
PG_FUNCTION_INFO_V1(ab_sql_restore);
PG_FUNCTION_INFO_V1(ab_sql_detach);

typedef enum IfExists
{
	IF_EXISTS_ERROR,
	IF_EXISTS_RETURN,
	IF_EXISTS_RESET
} IfExists;

/* First statement of the install script: is this server and database the place? */
Datum
ab_sql_check_installable(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	PG_RETURN_VOID();
}

/* ---- resetting, and remembering it ---- */

static void
execute_for(const char *sql, Oid new_db, Oid old_db)
{
	Oid			types[2] = {OIDOID, OIDOID};
	Datum		values[2];

	values[0] = ObjectIdGetDatum(new_db);
	values[1] = ObjectIdGetDatum(old_db);
	(void) ab_tables_execute(sql, 2, types, values, NULL);
}

/*
 * A reset branch is a new database.  What was remembered of it, its named snapshots
 * and their schedules are the new one's, unless the old one lives on.
 */
static void
remember_reset(Oid new_db, const AbReplaced *old, bool preserved)
{
	ab_registry_move(old->db, old->created_at, new_db, preserved);
	if (preserved)
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	execute_for("UPDATE branch.named_snapshots SET source_id = $1 WHERE source_id = $2",
				new_db, old->db);
	execute_for("UPDATE branch.schedules SET parent_id = $1 WHERE parent_id = $2",
				new_db, old->db);
	execute_for("UPDATE branch.accounts SET db = $1, origin_at ="
				" (SELECT o.created_at FROM branch._origin($1) AS o)"
				" WHERE db = $2 AND closed_at IS NULL",
				new_db, old->db);
	SPI_finish();
	ab_sql_move_quotas(old->db, new_db);
}

static Oid
reset_branch(const AbResetOptions *opt)
{
	AbReplaced	old;
	Oid			db = ab_reset_branch(opt, &old);

	if (old.known)
		remember_reset(db, &old, opt->preserve_under_name != NULL);
	return db;
}

/* ---- creating ---- */

static IfExists
parse_if_exists(const char *value)
{
	if (value == NULL || strcmp(value, "error") == 0)
		return IF_EXISTS_ERROR;
	if (strcmp(value, "return") == 0)
		return IF_EXISTS_RETURN;
	if (strcmp(value, "reset") == 0)
		return IF_EXISTS_RESET;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"if_exists\": \"%s\"", value),
			 errhint("It can be error, return or reset.")));
}

static Oid
branch_of_name(const char *name)
{
	Oid			db = get_database_oid(name, true);

	if (OidIsValid(db) && !ab_origin_exists(db))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_DATABASE),
				 errmsg("database \"%s\" already exists and is not a branch", name),
				 errhint("Choose another name.")));
	return db;
}

Oid
ab_sql_living_branch(const char *name, Oid wanted)
{
	Oid			db = branch_of_name(name);
	Oid			owner;

	if (!OidIsValid(db))
		return InvalidOid;
	owner = ab_database_owner(db);
	if (owner != wanted && !superuser_arg(owner))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_DATABASE),
				 errmsg("branch \"%s\" already exists", name),
				 errdetail("It is owned by role \"%s\".", GetUserNameFromId(owner, true)),
				 errhint("Choose another name, or name that role as the owner.")));
	return db;
}

/* Who resets one must be its owner anyway. */
static Oid
existing_branch(const AbCreateOptions *opt, IfExists if_exists)
{
	if (if_exists != IF_EXISTS_RETURN)
		return branch_of_name(opt->name);
	return ab_sql_living_branch(opt->name, opt->owner ?
								get_role_oid(opt->owner, false) : GetUserId());
}

/*
 * One that is returned is still there when its row is read, and until the end of the
 * transaction: it may be just being reset, renamed or deleted.
 */
static Oid
find_existing(const AbCreateOptions *opt, IfExists if_exists)
{
	for (;;)
	{
		Oid			db = existing_branch(opt, if_exists);

		if (!OidIsValid(db) || if_exists != IF_EXISTS_RETURN)
			return db;
		LockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
		if (existing_branch(opt, if_exists) == db)
			return db;
		UnlockSharedObject(DatabaseRelationId, db, 0, AccessShareLock);
	}
}

/* branch.create(..., if_exists => 'reset') of a branch that is there. */
static Oid
reset_existing(const AbCreateOptions *opt, const char *at)
{
	AbResetOptions reset = {.name = opt->name};

	if (at != NULL)
		ab_sql_find_restore_point(at, &reset);
	return reset_branch(&reset);
}

/* What is said about a new branch; one that is there already keeps its own. */
typedef struct NewBranch
{
	AbCreateOptions opt;
	AbRegistryRow row;
	uint32		fields;			/* of row: to be remembered */
} NewBranch;

static void
remember_new(Oid db, const NewBranch *new)
{
	if (new->fields != 0)
		ab_registry_put(db, &new->row, new->fields);
}

static Oid
create_new(const NewBranch *new)
{
	Oid			db = ab_create_branch(&new->opt);

	remember_new(db, new);
	return db;
}

/*
 * Rights come first: who has none must not be able to hold a name.  Then the name
 * is locked and looked for again, so that two sessions that ensure the same branch
 * take turns, and the second finds the first one's.
 */
static Oid
create_branch(NewBranch *new, const char *at, IfExists if_exists)
{
	AbCreateOptions *opt = &new->opt;
	const char *parent;
	Oid			db;

	if (if_exists != IF_EXISTS_ERROR)
	{
		ab_prevent_read_only("branch creation");
		ab_check_branch_name(opt->name);
		db = find_existing(opt, if_exists);
		if (OidIsValid(db))
			return if_exists == IF_EXISTS_RETURN ? db : reset_existing(opt, at);
	}
	if (at != NULL)
		ab_sql_find_at(at, opt);
	if (if_exists == IF_EXISTS_ERROR)
		return create_new(new);

	if (opt->parent == NULL && AbSnapIdIsValid(opt->at) && !superuser())
		return create_new(new);	/* which says why not */
	parent = opt->parent ? opt->parent : ab_default_parent_name();
	if (opt->parent != NULL || !AbSnapIdIsValid(opt->at))
		ab_check_parent_rights(ab_find_parent(parent), parent);
	ab_lock_branch_name(opt->name);
	db = find_existing(opt, if_exists);
	if (!OidIsValid(db))
		return create_new(new);
	return if_exists == IF_EXISTS_RETURN ? db : reset_existing(opt, at);
}

/* Arguments 0-7 are the same for branch.create and branch.ensure; 2 is "at". */
static void
read_create_arguments(FunctionCallInfo fcinfo, NewBranch *new)
{
	AbCreateOptions *opt = &new->opt;

	MemSet(new, 0, sizeof(*new));
	opt->connection_limit = -1;
	opt->allow_connections = true;
	opt->name = ab_sql_required_text(fcinfo, 0, "name");
	opt->parent = ab_sql_text(fcinfo, 1);
	if (!PG_ARGISNULL(3))
		opt->owner = pstrdup(NameStr(*PG_GETARG_NAME(3)));
	new->fields = ab_sql_registry_arguments(fcinfo, 4, &new->row);
}

Datum
ab_sql_create(PG_FUNCTION_ARGS)
{
	NewBranch	new;
	IfExists	if_exists;

	ab_require_control_database();
	read_create_arguments(fcinfo, &new);
	if_exists = parse_if_exists(ab_sql_text(fcinfo, 8));
	new.opt.without_settings = !ab_sql_bool(fcinfo, 9, true);
	PG_RETURN_DATUM(ab_sql_branch_row(create_branch(&new, ab_sql_text(fcinfo, 2), if_exists),
									  new.opt.name));
}

Datum
ab_sql_ensure(PG_FUNCTION_ARGS)
{
	NewBranch	new;

	ab_require_control_database();
	read_create_arguments(fcinfo, &new);
	new.opt.without_settings = !ab_sql_bool(fcinfo, 8, true);
	PG_RETURN_DATUM(ab_sql_branch_row(create_branch(&new, ab_sql_text(fcinfo, 2),
													IF_EXISTS_RETURN),
									  new.opt.name));
}

static void
put_branch_row(ReturnSetInfo *rsinfo, Oid db, const char *name)
{
	HeapTupleHeader row = DatumGetHeapTupleHeader(ab_sql_branch_row(db, name));
	HeapTupleData tuple;

	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = row;
	tuplestore_puttuple(rsinfo->setResult, &tuple);
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* In one order, so that batches that have some in common take turns. */
static void
lock_names(const Datum *names, int n)
{
	char	  **sorted = palloc(Max(n, 1) * sizeof(char *));

	for (int i = 0; i < n; i++)
		sorted[i] = TextDatumGetCString(names[i]);
	qsort(sorted, n, sizeof(char *), compare_names);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		ab_lock_branch_name(sorted[i]);
	}
	pfree(sorted);
}

/*
 * All are created before anything is remembered: the control database may be the
 * parent, and must not be written before.
 */
Datum
ab_sql_create_many(PG_FUNCTION_ARGS)
{
	NewBranch	new = {.opt = {.connection_limit = -1, .allow_connections = true}};
	Datum	   *names;
	bool	   *nulls;
	Oid		   *dbs;
	int			n;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	ab_sql_require(fcinfo, 0, "names");
	new.opt.parent = ab_sql_text(fcinfo, 1);
	new.fields = ab_sql_registry_arguments(fcinfo, 2, &new.row);
	new.opt.without_settings = !ab_sql_bool(fcinfo, 6, true);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT,
					  &names, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"names\" must not contain nulls")));
	}
	if (n > 0)
		ab_create_take_places(&new.opt, n);
	lock_names(names, n);
	dbs = palloc(Max(n, 1) * sizeof(Oid));
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		new.opt.name = TextDatumGetCString(names[i]);
		dbs[i] = ab_create_branch(&new.opt);
	}
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		remember_new(dbs[i], &new);
		put_branch_row((ReturnSetInfo *) fcinfo->resultinfo, dbs[i],
					   TextDatumGetCString(names[i]));
	}
	return (Datum) 0;
}

/* ---- deleting, resetting ---- */

static AbOnChildren
parse_on_children(const char *value)
{
	if (value == NULL || strcmp(value, "error") == 0)
		return AB_CHILDREN_ERROR;
	if (strcmp(value, "keep") == 0)
		return AB_CHILDREN_KEEP;
	if (strcmp(value, "cascade") == 0)
		return AB_CHILDREN_CASCADE;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"on_children\": \"%s\"", value),
			 errhint("It can be error, keep or cascade.")));
}

Datum
ab_sql_delete(PG_FUNCTION_ARGS)
{
	AbDeleteOptions opt = {0};

	ab_require_control_database();
	opt.name = ab_sql_required_text(fcinfo, 0, "name");
	opt.hard = ab_sql_bool(fcinfo, 1, false);
	opt.on_children = parse_on_children(ab_sql_text(fcinfo, 2));
	opt.if_exists = ab_sql_bool(fcinfo, 3, false);
	opt.force = ab_sql_bool(fcinfo, 4, false);
	ab_delete_branch(&opt);
	PG_RETURN_VOID();
}

Datum
ab_sql_recover(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *new_name;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	new_name = ab_sql_text(fcinfo, 1);
	PG_RETURN_DATUM(ab_sql_branch_row(ab_recover_branch(name, new_name),
									  new_name ? new_name : name));
}

/* Their locks are held to the end of the transaction. */
#define EXPIRE_LIMIT 1000

Datum
ab_sql_expire(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		dry_run;
	ListCell   *lc;

	ab_require_control_database();
	dry_run = ab_sql_bool(fcinfo, 0, false);
	if (!dry_run)
		ab_prevent_read_only("branch.expire()");
	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, ab_expire(dry_run, EXPIRE_LIMIT))
	{
		AbExpired  *e = lfirst(lc);
		Datum		values[3];
		bool		nulls[3] = {false, false, false};

		values[0] = CStringGetTextDatum(e->name);
		values[1] = CStringGetTextDatum(e->deleted ? "delete" : "skip");
		values[2] = CStringGetTextDatum(e->reason);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Datum
ab_sql_rename(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *new_name;

	ab_require_control_database();
	name = ab_sql_required_text(fcinfo, 0, "name");
	new_name = ab_sql_required_text(fcinfo, 1, "new_name");
	PG_RETURN_DATUM(ab_sql_branch_row(ab_rename_branch(name, new_name,
													   ab_sql_bool(fcinfo, 2, false)),
									  new_name));
}

Datum
ab_sql_reset(PG_FUNCTION_ARGS)
{
	AbResetOptions opt = {0};

	ab_require_control_database();
	opt.name = ab_sql_required_text(fcinfo, 0, "name");
	opt.preserve_under_name = ab_sql_text(fcinfo, 1);
	opt.force = ab_sql_bool(fcinfo, 2, false);
	PG_RETURN_DATUM(ab_sql_branch_row(reset_branch(&opt), opt.name));
}

Datum
ab_sql_restore(PG_FUNCTION_ARGS)
{
	AbResetOptions opt = {0};
	char	   *at;

	ab_require_control_database();
	opt.name = ab_sql_required_text(fcinfo, 0, "name");
	at = ab_sql_required_text(fcinfo, 1, "at");
	opt.preserve_under_name = ab_sql_text(fcinfo, 2);
	opt.force = ab_sql_bool(fcinfo, 3, false);
	ab_sql_find_restore_point(at, &opt);
	PG_RETURN_DATUM(ab_sql_branch_row(reset_branch(&opt), opt.name));
}

Datum
ab_sql_detach(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	ab_detach_branch(ab_sql_required_text(fcinfo, 0, "name"), ab_sql_bool(fcinfo, 1, false));
	PG_RETURN_VOID();
}
