/*
 * ab_keptnames.c
 *	  Names of roles and databases beside their OIDs, in branch.schedules and
 *	  branch.quota_list: another cluster, into which a dump is restored, knows nothing
 *	  but these (ab_sql_restore.c).
 *
 * The sweeper, in the control database.  Renaming is possible in every database, so
 * names are compared now and then; the trigger of the tables writes them.  Ordinary
 * table locks only; a crash leaves nothing.
 */
#include "ab_compat.h"

#include "executor/spi.h"

#include "ab_keptnames.h"
#include "ab_tables.h"

#define OTHER(catalog, column, oid, name) \
	"EXISTS (SELECT 1 FROM " catalog " AS c WHERE c.oid = t." oid \
	" AND c." column " IS DISTINCT FROM t." name "::name)"

static const char *const statements[][2] = {
	{"branch.schedules AS t WHERE " OTHER("pg_database", "datname", "parent_id", "parent_name")
		" OR " OTHER("pg_authid", "rolname", "created_by", "creator_name"),
	"UPDATE branch.schedules AS t SET parent_id = t.parent_id"},
	{"branch.quota_list AS t WHERE " OTHER("pg_database", "datname", "parent_id", "parent_name")
		" OR " OTHER("pg_authid", "rolname", "role_id", "role_name"),
	"UPDATE branch.quota_list AS t SET parent_id = t.parent_id"},
};

/* Looks first: who writes waits at the gate of the control database. */
void
ab_keptnames_refresh(void)
{
	if (!ab_tables_installed())
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	for (int i = 0; i < lengthof(statements); i++)
	{
		const char *rows = statements[i][0];

		if (ab_tables_execute(psprintf("SELECT 1 FROM %s LIMIT 1", rows),
							  0, NULL, NULL, NULL) > 0)
			(void) ab_tables_execute(psprintf("%s %s", statements[i][1], strstr(rows, "WHERE")),
									 0, NULL, NULL, NULL);
	}
	SPI_finish();
}
