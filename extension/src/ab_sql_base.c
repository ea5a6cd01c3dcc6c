/*
 * ab_sql_base.c
 *	  branch._merge_base, _snapshot_at, _base_open: states that databases were in, and
 *	  reading them.
 *
 * Backends in the control database.  Locks: ab_base.c.
 */
#include "ab_compat.h"

#include "access/htup_details.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/pg_lsn.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_base.h"
#include "ab_catalogrows.h"
#include "ab_lineage.h"
#include "ab_manifest.h"
#include "ab_settings.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_sql_at.h"
#include "ab_tables.h"

PG_FUNCTION_INFO_V1(ab_sql_merge_base);
PG_FUNCTION_INFO_V1(ab_sql_snapshot_at);
PG_FUNCTION_INFO_V1(ab_sql_base_open);

static void
check_may_see(Oid db)
{
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", db)));
	if (!ab_sql_may_see(db))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", ab_database_name(db))));
}

static char *
name_of_snapshot(AbSnapId id)
{
	ListCell   *lc;

	foreach(lc, ab_tables_names())
	{
		AbNamedSnapshot *s = lfirst(lc);

		if (AbSnapIdEquals(s->id, id))
			return s->name;
	}
	return NULL;
}

static void
put_text(const char *text, Datum *value, bool *null)
{
	*null = text == NULL;
	if (text != NULL)
		*value = CStringGetTextDatum(text);
}

/*
 * (snapshot_id, snapshot_name, database_id, database_name, lsn, taken_at, via_id) of the
 * nearest state that two databases have in common; NULL if there is none.  via_id: the one
 * of the two that branch._base_open() is to be told.
 */
Datum
ab_sql_merge_base(PG_FUNCTION_ARGS)
{
	Oid			a = PG_GETARG_OID(0);
	Oid			b = PG_GETARG_OID(1);
	char		text[AB_SNAPID_TEXT_LEN + 1];
	AbAncestor	base;
	Oid			via;
	AbManifestHeader m;
	TupleDesc	desc;
	Datum		values[7] = {0};
	bool		nulls[7] = {false};

	ab_require_control_database();
	AcceptInvalidationMessages();
	check_may_see(a);
	check_may_see(b);
	if (!ab_merge_base(a, b, &base, &via) || !AbSnapIdIsValid(base.at) ||
		!ab_manifest_read_header(base.at, &m))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	ab_snapid_format(base.at, text);
	values[0] = CStringGetTextDatum(text);
	put_text(name_of_snapshot(base.at), &values[1], &nulls[1]);
	values[2] = ObjectIdGetDatum(base.db);
	put_text(ab_name_or_old_name(base.db), &values[3], &nulls[3]);
	values[4] = LSNGetDatum(base.at.lsn);
	values[5] = TimestampTzGetDatum(m.taken_at);
	values[6] = ObjectIdGetDatum(via);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* The snapshot of a database that a name, id, position or time means. */
Datum
ab_sql_snapshot_at(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	char		id[AB_SNAPID_TEXT_LEN + 1];

	ab_require_control_database();
	AcceptInvalidationMessages();
	check_may_see(db);
	ab_snapid_format(ab_sql_find_snapshot(text_to_cstring(PG_GETARG_TEXT_PP(1)), db,
										  ab_database_name(db)), id);
	PG_RETURN_TEXT_P(cstring_to_text(id));
}

/* A database that has the state of a snapshot, to be read until the transaction ends. */
Datum
ab_sql_base_open(PG_FUNCTION_ARGS)
{
	char	   *given = text_to_cstring(PG_GETARG_TEXT_PP(0));
	AbSnapId	id;

	ab_require_control_database();
	if (!ab_snapid_parse(given, &id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not the id of a snapshot", given)));
	PG_RETURN_TEXT_P(cstring_to_text(ab_base_open(id, PG_GETARG_OID(1))));
}
