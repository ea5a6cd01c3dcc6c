/*
 * ab_snapnames.c
 *	  Names of snapshots: their events, and the end of those whose time is over.
 *
 * Backends and the sweeper, in the control database.  Row locks of the table only; a
 * crash leaves what was committed.
 */
#include "ab_snapnames.h"

#include "executor/spi.h"
#include "utils/json.h"

#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_softdelete.h"
#include "ab_tables.h"

/* Databases are renamed, and deleted recoverably. */
static const char *
name_now(Oid source, const char *then)
{
	const char *now = ab_name_or_old_name(source);

	return now ? now : then;
}

void
ab_snapnames_report(const char *event, const char *name, Oid source,
					const char *source_name)
{
	StringInfoData detail;

	initStringInfo(&detail);
	appendStringInfoString(&detail, "{\"snapshot\": ");
	escape_json(&detail, name);
	appendStringInfoChar(&detail, '}');
	ab_event(event, source, name_now(source, source_name), NULL, detail.data);
}

static bool
any_name(const char *condition)
{
	char	   *sql = psprintf("SELECT 1 FROM branch." AB_NAMED_TABLE " AS n WHERE %s LIMIT 1",
							   condition);

	return ab_tables_execute(sql, 0, NULL, NULL, NULL) > 0;
}

/*
 * Look first: a statement that writes would wait at the gate for nothing.  Names that
 * somebody is changing are left for another time, so that nobody holds up a sweep.
 */
static void
change_names(const char *event, const char *change, const char *condition)
{
	uint64		n;

	if (!any_name(condition))
		return;
	n = ab_tables_execute(psprintf("%s WHERE name IN"
								   " (SELECT n.name FROM branch." AB_NAMED_TABLE " AS n"
								   " WHERE %s FOR UPDATE SKIP LOCKED)"
								   " RETURNING name, source_id, source_name",
								   change, condition),
						  0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		ab_snapnames_report(event, SPI_getvalue(tuple, desc, 1),
							DatumGetObjectId(SPI_getbinval(tuple, desc, 2, &isnull)),
							SPI_getvalue(tuple, desc, 3));
	}
}

/*
 * Whoever gives a name has the hidden row in sight before and keeps it until the name
 * is committed, so a name without the row is one of a closed snapshot.
 */
void
ab_snapnames_expire(void)
{
	if (!ab_tables_installed())
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	change_names("snapshot_expired",
				 "DELETE FROM branch." AB_NAMED_TABLE,
				 "n.keep_until <= clock_timestamp()");
	change_names("snapshot_closed",
				 "UPDATE branch." AB_NAMED_TABLE " SET closed_at = clock_timestamp()",
				 "n.closed_at IS NULL"
				 " AND n.created_at < now()"	/* not this transaction's, which may see less */
				 " AND NOT EXISTS (SELECT 1 FROM pg_database AS d"
				 " WHERE d.datname = ('agent_branch_snapshot_' || n.id)::name)");
	SPI_finish();
}
