/*
 * ab_agentlogin.c
 *	  Where agents may log in: to databases whose grants name them, and nowhere else.
 *
 * Every backend, when its client has been authenticated, before it has a database;
 * shared catalogs can be read then.  The server's own check of CONNECT, by OID and
 * under the database's lock, comes after it and refuses more, never less; it alone
 * would let agents into every database that is open to PUBLIC, as new ones are, their
 * parents among them.  To close all of these to PUBLIC would lock out others.
 *
 * Sessions never change their database, so this is the only place.  Background workers
 * do not come by here; ab_remote.c asks the same of those that it starts.
 */
#include "ab_agentrole.h"

/*
 * Port has the same offsets whether or not these are defined, and the headers they call
 * for are not needed by who builds for a server package.
 */
#undef ENABLE_GSS
#undef USE_OPENSSL

#include "catalog/pg_database.h"
#include "fmgr.h"
#include "libpq/auth.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "utils/syscache.h"

#include "ab_firstuse.h"

static ClientAuthentication_hook_type prev_client_authentication = NULL;

/*
 * Do the grants of the database let the role in?  True if there is no such database: the
 * server says so.
 */
static bool
is_let_in(Oid role, const char *name)
{
	HeapTuple	tup = ab_firstuse_database(name);
	Datum		acl;
	bool		isnull;

	if (!HeapTupleIsValid(tup))
		return true;
	acl = SysCacheGetAttr(DATABASEOID, tup, Anum_pg_database_datacl, &isnull);
	return ab_agent_may_connect(role, isnull ? NULL : DatumGetAclP(acl));
}

/* The whole cluster is sent to who is connected to no database. */
static void
check_agent(const Port *port)
{
	Oid			role = get_role_oid(port->user_name, true);

	if (!OidIsValid(role) || superuser_arg(role) || !ab_agent_is_role(role))
		return;
	if ((!am_walsender || am_db_walsender) && is_let_in(role, port->database_name))
		return;
	ereport(FATAL,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for database \"%s\"", port->database_name),
			 errdetail("Role \"%s\" is an agent's and can connect to its branch only.",
					   port->user_name),
			 errhint("GRANT CONNECT ON DATABASE to the role by name lets it into another one.")));
}

static void
client_authentication(Port *port, int status)
{
	if (prev_client_authentication)
		prev_client_authentication(port, status);
	if (status == STATUS_OK)
		check_agent(port);
}

void
ab_agent_login_install(void)
{
	prev_client_authentication = ClientAuthentication_hook;
	ClientAuthentication_hook = client_authentication;
}
