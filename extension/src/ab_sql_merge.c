/*
 * ab_sql_merge.c
 *	  branch._merge_snapshot: the state of a database that is merged into another one.
 *
 * Backends in the control database.  The snapshot is taken as the owner of the extension's
 * tables would take it: who merges needs no right to branch, only those that are checked
 * here.  The lock on its hidden row, which lasts until the transaction ends, keeps it until
 * the row of the merge names it (ab_tables.c).
 */
#include "ab_compat.h"

#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_snapshot.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_merge_snapshot);

/* Is the caller let in, and does it own the database? */
static bool
check_side(Oid db, char **name)
{
	Oid			user = GetUserId();

	*name = get_database_name(db);
	if (*name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", db)));
	if (pg_database_aclcheck(db, user, ACL_CONNECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", *name),
				 errdetail("Role \"%s\" may not connect to it.",
						   GetUserNameFromId(user, true))));
	return pg_database_ownercheck(db, user);
}

static void
check_may_merge(Oid source, Oid target, char **source_name)
{
	char	   *target_name;
	bool		owns_target = check_side(target, &target_name);
	bool		owns_source = check_side(source, source_name);

	if (!owns_source && !owns_target)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to merge database \"%s\" into database \"%s\"",
						*source_name, target_name),
				 errdetail("Role \"%s\" owns neither of them.",
						   GetUserNameFromId(GetUserId(), true)),
				 errhint("Have the owner of one of them merge, or a superuser.")));
}

Datum
ab_sql_merge_snapshot(PG_FUNCTION_ARGS)
{
	Oid			source = PG_GETARG_OID(0);
	char		text[AB_SNAPID_TEXT_LEN + 1];
	char	   *name;
	AbSnapId	id;
	Oid			user;
	int			context;

	ab_require_control_database();
	ab_prevent_read_only("branch.merge()");
	check_may_merge(source, PG_GETARG_OID(1), &name);

	/* the abort of the (sub)transaction puts the user id back, too */
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(ab_tables_owner(), context | SECURITY_LOCAL_USERID_CHANGE);
	id = ab_sql_take_snapshot(source, name, true);
	SetUserIdAndSecContext(user, context);
	ab_snapid_format(id, text);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}
