/*
 * ab_registry.c
 *	  Table branch.registry: what there is to remember of a branch.
 *
 * Backends and the sweeper, in the control database.  Read directly, with a snapshot
 * of its own, so that who holds the lock of a database sees what was committed about
 * it before; written through SPI as the owner of the tables.  Ordinary table locks
 * only; that a row is not changed while its branch is reset or deleted is up to the
 * callers' locks on the database object.  A crash leaves nothing: this is a table.
 */
#include "ab_registry.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ab_activityflush.h"
#include "ab_file.h"
#include "ab_origin.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

/* In the order of AbRegistryField. */
static const struct
{
	const char *name;
	Oid			type;
}			columns[AB_REGISTRY_FIELDS] = {
	{"created_at", TIMESTAMPTZOID},
	{"reset_at", TIMESTAMPTZOID},
	{"expires_at", TIMESTAMPTZOID},
	{"protected_until", TIMESTAMPTZOID},
	{"suspend_timeout", INTERVALOID},
	{"labels", JSONBOID},
	{"agent_id", TEXTOID},
	{"agent_role", OIDOID},
	{"deleted_at", TIMESTAMPTZOID},
	{"deleted_by", TEXTOID},
	{"deleted_name", TEXTOID},
	{"deleted_allowconn", BOOLOID}
};

/* ---- reading ---- */

static Datum
column_value(HeapTuple tuple, TupleDesc desc, const char *name, bool *isnull)
{
	int			attr = SPI_fnumber(desc, name);
	Datum		value;
	int16		len;
	bool		byval;

	if (attr <= 0)
		elog(ERROR, "table branch.registry has no column \"%s\"", name);
	value = heap_getattr(tuple, attr, desc, isnull);
	if (*isnull)
		return (Datum) 0;
	get_typlenbyval(TupleDescAttr(desc, attr - 1)->atttypid, &len, &byval);
	if (len == -1)
		return PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	return datumCopy(value, byval, len);
}

static void
read_tuple(HeapTuple tuple, TupleDesc desc, AbRegistryRow *row)
{
	bool		isnull;

	row->origin_at = DatumGetTimestampTz(column_value(tuple, desc, "origin_at", &isnull));
	for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
		row->value[i] = column_value(tuple, desc, columns[i].name, &row->isnull[i]);
}

/* The row under an OID, whichever database of that OID it is about. */
static bool
read_row(Oid db, AbRegistryRow *row)
{
	Oid			relid;
	Relation	rel;
	Snapshot	snapshot;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	memset(row, 0, sizeof(*row));
	row->db = db;
	for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
		row->isnull[i] = true;
	if (!ab_tables_installed())
		return false;
	relid = get_relname_relid("registry", get_namespace_oid("branch", false));
	if (!OidIsValid(relid))
		return false;

	rel = table_open(relid, AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyInit(&key, SPI_fnumber(RelationGetDescr(rel), "db"),
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(db));
	scan = systable_beginscan(rel, RelationGetPrimaryKeyIndex(rel), true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		read_tuple(tuple, RelationGetDescr(rel), row);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

bool
ab_registry_get(Oid db, AbRegistryRow *row)
{
	AbOriginHeader origin;

	return read_row(db, row) && ab_storage_read_origin(db, &origin) &&
		origin.created_at == row->origin_at;
}

bool
ab_registry_protected(Oid db, TimestampTz *until)
{
	AbRegistryRow row;

	if (!ab_registry_get(db, &row) || row.isnull[AB_REGISTRY_PROTECTED_UNTIL])
		return false;
	*until = DatumGetTimestampTz(row.value[AB_REGISTRY_PROTECTED_UNTIL]);
	return *until > GetCurrentTimestamp();
}

void
ab_registry_raise_protected(const char *name, const char *verb, TimestampTz until)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot %s branch \"%s\", because it is protected", verb, name),
			 TIMESTAMP_IS_NOEND(until) ?
			 errdetail("Its protection does not end by itself.") :
			 errdetail("Its protection ends at %s.", timestamptz_to_str(until)),
			 errhint("Take the protection away first, with branch.unprotect().")));
}

void
ab_registry_check_protection(Oid db, const char *name, const char *verb)
{
	TimestampTz until;

	if (ab_registry_protected(db, &until))
		ab_registry_raise_protected(name, verb, until);
}

/* ---- writing ---- */

static void
connect(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
delete_row(Oid db, TimestampTz origin_at)
{
	Oid			types[2] = {OIDOID, TIMESTAMPTZOID};
	Datum		values[2];

	values[0] = ObjectIdGetDatum(db);
	values[1] = TimestampTzGetDatum(origin_at);
	connect();
	(void) ab_tables_execute("DELETE FROM branch.registry WHERE db = $1 AND origin_at = $2",
							 2, types, values, NULL);
	SPI_finish();
	CommandCounterIncrement();
}

static TimestampTz
origin_of(Oid db)
{
	AbOriginHeader origin;

	if (!ab_origin_read(db, &origin))
		elog(ERROR, "origin of database %u is missing", db);
	return origin.created_at;
}

/* One value for one column of the statement that is being made. */
typedef struct Statement
{
	StringInfoData names;
	StringInfoData params;
	StringInfoData updates;
	int			n;
	Oid			types[AB_REGISTRY_FIELDS + 2];
	Datum		values[AB_REGISTRY_FIELDS + 2];
	char		nulls[AB_REGISTRY_FIELDS + 2];
} Statement;

static void
add_value(Statement *s, const char *name, Oid type, Datum value, bool isnull)
{
	const char *comma = s->n > 0 ? ", " : "";

	appendStringInfo(&s->names, "%s%s", comma, name);
	appendStringInfo(&s->params, "%s$%d", comma, s->n + 1);
	appendStringInfo(&s->updates, "%s%s = excluded.%s", comma, name, name);
	s->types[s->n] = type;
	s->values[s->n] = value;
	s->nulls[s->n] = isnull ? 'n' : ' ';
	s->n++;
}

void
ab_registry_put(Oid db, const AbRegistryRow *row, uint32 fields)
{
	Statement	s = {.n = 0};
	TimestampTz origin_at = origin_of(db);
	AbRegistryRow now;

	if (read_row(db, &now) && now.origin_at != origin_at)
		delete_row(db, now.origin_at);

	initStringInfo(&s.names);
	initStringInfo(&s.params);
	initStringInfo(&s.updates);
	add_value(&s, "db", OIDOID, ObjectIdGetDatum(db), false);
	add_value(&s, "origin_at", TIMESTAMPTZOID, TimestampTzGetDatum(origin_at), false);
	for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
	{
		Datum		value;
		bool		isnull;

		if ((fields & AB_REGISTRY_BIT(i)) == 0)
			continue;			/* not set */
		value = row->value[i];
		isnull = row->isnull[i];
		if (i == AB_REGISTRY_LABELS && isnull)
		{
			value = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
			isnull = false;
		}
		add_value(&s, columns[i].name, columns[i].type, value, isnull);
	}
	connect();
	(void) ab_tables_execute(psprintf("INSERT INTO branch.registry (%s) VALUES (%s)"
									  " ON CONFLICT (db) DO UPDATE SET %s",
									  s.names.data, s.params.data, s.updates.data),
							 s.n, s.types, s.values, s.nulls);
	SPI_finish();
	CommandCounterIncrement();
}

void
ab_registry_put_field(Oid db, AbRegistryField field, Datum value, bool isnull)
{
	AbRegistryRow row;

	row.value[field] = value;
	row.isnull[field] = isnull;
	ab_registry_put(db, &row, AB_REGISTRY_BIT(field));
}

/* Two statements for any number: whatever is there under a new OID is stale. */
void
ab_registry_put_agents(int n, const Oid *dbs, char *const *agent_ids, const Oid *roles)
{
	Oid			types[4] = {OIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, OIDARRAYOID};
	Datum		values[4];
	Datum	   *oids = palloc(n * sizeof(Datum));
	Datum	   *origins = palloc(n * sizeof(Datum));
	Datum	   *ids = palloc(n * sizeof(Datum));
	Datum	   *own = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
	{
		oids[i] = ObjectIdGetDatum(dbs[i]);
		origins[i] = TimestampTzGetDatum(origin_of(dbs[i]));
		ids[i] = CStringGetTextDatum(agent_ids[i]);
		own[i] = ObjectIdGetDatum(roles[i]);
	}
	values[0] = PointerGetDatum(construct_array(oids, n, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(origins, n, TIMESTAMPTZOID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] = PointerGetDatum(construct_array(ids, n, TEXTOID, -1, false, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(own, n, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	connect();
	(void) ab_tables_execute("DELETE FROM branch.registry WHERE db = ANY ($1)",
							 1, types, values, NULL);
	(void) ab_tables_execute("INSERT INTO branch.registry (db, origin_at, agent_id, agent_role)"
							 " SELECT u.db, u.origin_at, u.agent_id, nullif(u.agent_role, 0)"
							 " FROM unnest($1, $2, $3, $4) AS u (db, origin_at, agent_id, agent_role)",
							 4, types, values, NULL);
	SPI_finish();
	CommandCounterIncrement();
}

void
ab_registry_move(Oid old_db, TimestampTz old_origin_at, Oid new_db, bool preserved)
{
	AbRegistryRow row;
	bool		known = read_row(old_db, &row) && row.origin_at == old_origin_at;

	if (!known)
		for (int i = 0; i < AB_REGISTRY_FIELDS; i++)
			row.isnull[i] = true;
	if (row.isnull[AB_REGISTRY_CREATED_AT])
	{
		row.value[AB_REGISTRY_CREATED_AT] = TimestampTzGetDatum(old_origin_at);
		row.isnull[AB_REGISTRY_CREATED_AT] = false;
	}
	row.value[AB_REGISTRY_RESET_AT] = TimestampTzGetDatum(origin_of(new_db));
	row.isnull[AB_REGISTRY_RESET_AT] = false;
	ab_registry_put(new_db, &row, AB_REGISTRY_BIT(AB_REGISTRY_FIELDS) - 1);
	if (!preserved)
		ab_activityflush_move(old_db, old_origin_at, new_db, origin_of(new_db));
	if (known && !preserved)
		delete_row(old_db, old_origin_at);
	else if (known && !row.isnull[AB_REGISTRY_AGENT_ID])
	{
		row.isnull[AB_REGISTRY_AGENT_ID] = row.isnull[AB_REGISTRY_AGENT_ROLE] = true;
		ab_registry_put(old_db, &row, AB_REGISTRY_BIT(AB_REGISTRY_AGENT_ID) |
						AB_REGISTRY_BIT(AB_REGISTRY_AGENT_ROLE));
	}
}

/* ---- forgetting ---- */

/*
 * Is the database that a row is about gone for good?  A damaged origin file says
 * nothing.
 */
static bool
is_stale(Oid db, TimestampTz origin_at)
{
	AbOriginHeader origin;

	if (ab_storage_read_origin(db, &origin))
		return origin.created_at != origin_at;
	return !ab_origin_exists(db);
}

/*
 * Rows are deleted by their whole key: one that has moved to another OID since it was
 * read is left alone.
 */
void
ab_registry_forget(void)
{
	uint64		n;
	SPITupleTable *rows;

	if (!ab_tables_installed())
		return;
	connect();
	n = ab_tables_execute("SELECT r.db, r.origin_at, d.oid IS NULL FROM branch.registry AS r"
						  " LEFT JOIN pg_database AS d ON r.db = d.oid",
						  0, NULL, NULL, NULL);
	rows = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			db = DatumGetObjectId(SPI_getbinval(rows->vals[i], rows->tupdesc, 1, &isnull));
		TimestampTz origin_at = DatumGetTimestampTz(SPI_getbinval(rows->vals[i],
																  rows->tupdesc, 2, &isnull));
		bool		gone = DatumGetBool(SPI_getbinval(rows->vals[i], rows->tupdesc, 3, &isnull));

		CHECK_FOR_INTERRUPTS();
		if (gone || is_stale(db, origin_at))
			delete_row(db, origin_at);
	}
	SPI_finish();
}
