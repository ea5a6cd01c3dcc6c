/*
 * ab_sql_changes.c
 *	  branch._changed_blocks: in which blocks tables of two databases may differ.
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.
 */
#include "ab_compat.h"

#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "ab_changes.h"
#include "ab_settings.h"
#include "ab_sql.h"

PG_FUNCTION_INFO_V1(ab_sql_changed_blocks);

/* One of the two databases, and its tables: tablespaces (0: its default) and file numbers. */
typedef struct Side
{
	Oid			db;
	Oid			default_spc;
	Datum	   *spaces;
	Datum	   *files;
	int			n;
} Side;

static Oid
default_tablespace(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Oid			spc;

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database %u does not exist", db)));
	spc = ((Form_pg_database) GETSTRUCT(tup))->dattablespace;
	ReleaseSysCache(tup);
	return spc;
}

static Datum *
oids_of(ArrayType *array, int *n)
{
	Datum	   *oids;

	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays must be one-dimensional and without nulls")));
	deconstruct_array(array, OIDOID, sizeof(Oid), true, TYPALIGN_INT, &oids, NULL, n);
	return oids;
}

/* Arguments number first (a database), first + 1 and first + 2 (arrays). */
static Side
side_of(FunctionCallInfo fcinfo, int first)
{
	Side		side;
	int			n;

	side.db = PG_GETARG_OID(first);
	side.default_spc = default_tablespace(side.db);
	if (!ab_sql_may_see(side.db))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for database \"%s\"", get_database_name(side.db))));
	side.spaces = oids_of(PG_GETARG_ARRAYTYPE_P(first + 1), &side.n);
	side.files = oids_of(PG_GETARG_ARRAYTYPE_P(first + 2), &n);
	if (n != side.n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	return side;
}

static Oid
space_of(const Side *side, int i)
{
	Oid			spc = DatumGetObjectId(side->spaces[i]);

	return OidIsValid(spc) ? spc : side->default_spc;
}

static Oid
file_of(const Side *side, int i)
{
	return DatumGetObjectId(side->files[i]);
}

/* Number of blocks; NULL without a table. */
static void
put_size(const Side *side, int i, Datum *value, bool *null)
{
	*null = !OidIsValid(file_of(side, i));
	if (!*null)
		*value = Int64GetDatum(ab_relation_blocks(side->db, space_of(side, i),
												  file_of(side, i)));
}

static Datum
bounds(const AbBlockRanges *ranges, bool ends)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(ranges->n, 1));

	for (int i = 0; i < ranges->n; i++)
		values[i] = Int64GetDatum(ends ? ranges->range[i].end : ranges->range[i].start);
	return PointerGetDatum(construct_array(values, ranges->n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static void
put_changes(AbKinship *k, const Side *a, const Side *b, int i, Datum *values, bool *nulls)
{
	AbBlockRanges ranges = {NULL, 0, 0};

	nulls[0] = nulls[1] = true;
	if (k == NULL || !OidIsValid(file_of(a, i)) || file_of(a, i) != file_of(b, i) ||
		space_of(a, i) != space_of(b, i) ||
		!ab_kinship_changes(k, space_of(a, i), file_of(a, i), &ranges))
		return;
	values[0] = bounds(&ranges, false);
	values[1] = bounds(&ranges, true);
	nulls[0] = nulls[1] = false;
}

static void
put_table(ReturnSetInfo *rsinfo, AbKinship *k, const Side *a, const Side *b, int i)
{
	Datum		values[5] = {0};
	bool		nulls[5] = {false};

	CHECK_FOR_INTERRUPTS();
	values[0] = Int32GetDatum(i + 1);
	put_size(a, i, &values[1], &nulls[1]);
	put_size(b, i, &values[2], &nulls[2]);
	put_changes(k, a, b, i, &values[3], &nulls[3]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * (number from 1, size in a, size in b, first blocks, blocks behind the last ones) of
 * each table; the last two are NULL if it cannot be told.
 */
Datum
ab_sql_changed_blocks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Side		a;
	Side		b;
	AbKinship  *k;

	ab_require_control_database();
	InitMaterializedSRF(fcinfo, 0);
	a = side_of(fcinfo, 0);
	b = side_of(fcinfo, 3);
	if (a.n != b.n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays differ in length")));
	k = ab_kinship(a.db, b.db);
	PG_TRY();
	{
		for (int i = 0; i < a.n; i++)
			put_table(rsinfo, k, &a, &b, i);
	}
	PG_FINALLY();
	{
		if (k != NULL)
			ab_kinship_release(k);
	}
	PG_END_TRY();
	return (Datum) 0;
}
