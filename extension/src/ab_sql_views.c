/*
 * ab_sql_views.c
 *	  What the views branch.branches and branch.snapshots are made of.
 *
 * Backends in the control database.  Everything is read from the control files and
 * pg_database when it is asked for; no locks.  A database may go while it is looked
 * at: then there is no answer, which is right.  The views are for everybody, so each
 * function gives only what ab_sql_may_see() allows.
 */
#include "ab_compat.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ab_branchsetting.h"
#include "ab_file.h"
#include "ab_hidden.h"
#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_settings.h"
#include "ab_size.h"
#include "ab_snapshot.h"
#include "ab_softdelete.h"
#include "ab_sql.h"
#include "ab_sql_at.h"
#include "ab_storage.h"
#include "ab_storagefiles.h"

PG_FUNCTION_INFO_V1(ab_sql_origin);
PG_FUNCTION_INFO_V1(ab_sql_deleted_name);
PG_FUNCTION_INFO_V1(ab_sql_setting_of);
PG_FUNCTION_INFO_V1(ab_sql_own_bytes);
PG_FUNCTION_INFO_V1(ab_sql_logical_bytes);
PG_FUNCTION_INFO_V1(ab_sql_snapshots);
PG_FUNCTION_INFO_V1(ab_sql_may_see_database);
PG_FUNCTION_INFO_V1(ab_sql_current);

static Datum
id_datum(AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	return CStringGetTextDatum(text);
}

/* ---- branches ---- */

/*
 * (snapshot, parent, parent_lsn, parent_timestamp, depth, created_at) of a branch;
 * NULL for any other database and for what the caller may not see.
 */
Datum
ab_sql_origin(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	AbOriginHeader o;
	AbManifestHeader m;
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false, false, false, false, false, false};

	ab_require_control_database();
	if (!ab_storage_read_origin(db, &o) || !ab_sql_may_see(db))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = id_datum(o.snapshot);
	values[1] = ObjectIdGetDatum(o.parent_db);
	values[2] = LSNGetDatum(o.snapshot.lsn);
	if (ab_manifest_read_header(o.snapshot, &m))
		values[3] = TimestampTzGetDatum(m.taken_at);
	else
		nulls[3] = true;
	values[4] = Int32GetDatum((int32) o.depth);
	values[5] = TimestampTzGetDatum(o.created_at);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* The name that a deleted branch had; NULL for any other database. */
Datum
ab_sql_deleted_name(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	Name		name;

	ab_require_control_database();
	if (!ab_database_is_deleted(db))
		PG_RETURN_NULL();
	name = palloc0(NAMEDATALEN);
	namestrcpy(name, ab_deleted_old_name(db));
	PG_RETURN_NAME(name);
}

/* Seconds. */
Datum
ab_sql_setting_of(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(1));

	ab_require_control_database();
	PG_RETURN_INT32(ab_branchsetting(db, ab_branchsetting_find(name)));
}

Datum
ab_sql_own_bytes(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	int64		bytes;

	ab_require_control_database();
	if (!ab_origin_exists(db) || !ab_sql_may_see(db))
		PG_RETURN_NULL();
	bytes = ab_size_own_pages(db);
	PG_RETURN_INT64(bytes);
}

Datum
ab_sql_logical_bytes(PG_FUNCTION_ARGS)
{
	Oid			db = PG_GETARG_OID(0);
	int64		bytes;

	ab_require_control_database();
	if (!ab_origin_exists(db) || !ab_sql_may_see(db) ||
		!ab_size_logical(db, &bytes))
		PG_RETURN_NULL();
	PG_RETURN_INT64(bytes);
}

/* Name of the branch this session is in; NULL in a database that is none. */
Datum
ab_sql_current(PG_FUNCTION_ARGS)
{
	ab_require_preloaded();
	if (!ab_origin_exists(MyDatabaseId))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(get_database_name(MyDatabaseId)));
}

/* ---- snapshots ---- */

#define SNAPSHOT_COLUMNS 12

static void
put_snapshot(ReturnSetInfo *rsinfo, const AbSnapSlot *slot)
{
	AbManifestHeader m;
	AbHiddenAge age;
	Datum		values[SNAPSHOT_COLUMNS];
	bool		nulls[SNAPSHOT_COLUMNS] = {false};
	bool		readable = ab_manifest_read_header(slot->id, &m);
	bool		open = ab_hidden_read_age(slot->id, &age);

	values[0] = id_datum(slot->id);
	values[1] = ObjectIdGetDatum(slot->source_db);
	values[2] = LSNGetDatum(slot->id.lsn);
	nulls[3] = nulls[4] = nulls[5] = !readable;
	if (readable)
	{
		values[3] = TimestampTzGetDatum(m.taken_at);
		values[4] = Int32GetDatum((int32) m.depth);
		values[5] = CStringGetTextDatum(m.flags & AB_MANIFEST_LIVE ?
										"before_image" : "pages");
	}
	values[6] = Int32GetDatum((int32) slot->nbranches);
	values[7] = BoolGetDatum(open);
	values[8] = BoolGetDatum(slot->poisoned ||
							 ab_file_exists(ab_snapshot_path(slot->id, ".poisoned")));
	nulls[9] = nulls[10] = !open;
	if (open)
	{
		values[9] = Int32GetDatum(age.xids);
		values[10] = Int32GetDatum((int32) (age.used * 100));
	}
	values[11] = Int64GetDatum(ab_sql_file_bytes(slot->id, ".pages") +
							   ab_sql_file_bytes(slot->id, ".manifest"));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * (id, source, lsn, taken_at, depth, kind, branches, is_open, poisoned, xid_age,
 * age_percent, bytes) of all usable snapshots.
 */
Datum
ab_sql_snapshots(PG_FUNCTION_ARGS)
{
	AbKnownSnapshot *known;
	int			n;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	known = ab_sql_known_snapshots(&n);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (ab_sql_may_see(known[i].owner))
			put_snapshot((ReturnSetInfo *) fcinfo->resultinfo, &known[i].slot);
	}
	return (Datum) 0;
}

Datum
ab_sql_may_see_database(PG_FUNCTION_ARGS)
{
	ab_require_control_database();
	PG_RETURN_BOOL(ab_sql_may_see(PG_GETARG_OID(0)));
}
