/*
 * ab_hidden_age.c
 *	  How old snapshots get, in transaction ids (F8, M22).
 *
 * A hidden row keeps clog and multixacts back to its frozen ids, for branches that
 * are yet to be made.  It is never vacuumed, and autovacuum counts a database without
 * files as at risk like any other: it would look at nothing else.  So a snapshot is
 * closed before that.  Branches it has already are databases like others, with rows
 * and frozen ids of their own, which autovacuum attends to.
 *
 * Backends and the sweeper, in the control database; the age of a row anywhere.  No
 * locks.
 */
#include "ab_hidden.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "postmaster/autovacuum.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_snapshot.h"
#include "ab_tables.h"

/* So often does the log say the same again. */
#define WARN_AGAIN_MS (24 * 3600 * 1000L)

double
ab_hidden_age(TransactionId frozen_xid, MultiXactId min_multi)
{
	double		xid_age = 0;
	double		multi_age = 0;

	if (TransactionIdIsNormal(frozen_xid))
		xid_age = (int32) (ReadNextTransactionId() - frozen_xid);
	if (MultiXactIdIsValid(min_multi))
		multi_age = (int32) (ReadNextMultiXactId() - min_multi);
	xid_age /= Max(autovacuum_freeze_max_age, 1);
	multi_age /= Max(MultiXactMemberFreezeThreshold(), 1);
	return Max(xid_age, multi_age);
}

bool
ab_hidden_read_age(AbSnapId id, AbHiddenAge *age)
{
	char	   *name = ab_hidden_name(id);
	Oid			oid = get_database_oid(name, true);
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(oid));
	Form_pg_database form;

	pfree(name);
	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_database) GETSTRUCT(tuple);
	age->frozen_xid = form->datfrozenxid;
	age->min_multi = form->datminmxid;
	age->used = ab_hidden_age(form->datfrozenxid, form->datminmxid);
	age->xids = 0;
	if (TransactionIdIsNormal(form->datfrozenxid))
		age->xids = (int32) (ReadNextTransactionId() - form->datfrozenxid);
	ReleaseSysCache(tuple);
	return true;
}

bool
ab_hidden_source_is_younger(Oid source_db, const AbHiddenAge *age)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(source_db));
	Form_pg_database form;
	bool		younger;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_database) GETSTRUCT(tuple);
	younger = form->datfrozenxid != age->frozen_xid || form->datminmxid != age->min_multi;
	ReleaseSysCache(tuple);
	return younger;
}

/* ---- warnings ---- */

static void
warn(const AbNamedSnapshot *s, const AbHiddenAge *age)
{
	char	   *source = get_database_name(s->source_db);

	ereport(WARNING,
			(errmsg("snapshot \"%s\" of database \"%s\" will soon be too old to be branched",
					s->name, source ? source : "(dropped)"),
			 errdetail("Its transaction ids are at %.0f %% of the age that autovacuum allows; at %.0f %% it is closed. Its branches are not affected.",
					   age->used * 100, AB_HIDDEN_AGE_CLOSE * 100),
			 errhint("Make the branches that are still wanted of it, or take a new snapshot after VACUUM (FREEZE) in the database.")));
}

static void
remember_warning(const AbNamedSnapshot *s)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(s->name)};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	(void) ab_tables_execute("UPDATE branch.named_snapshots SET warned_at = clock_timestamp()"
							 " WHERE name IN (SELECT n.name FROM branch.named_snapshots AS n"
							 " WHERE n.name = $1 FOR UPDATE SKIP LOCKED)",
							 1, types, values, NULL);
	SPI_finish();
}

void
ab_hidden_warn(bool all)
{
	TimestampTz now = GetCurrentTimestamp();
	ListCell   *lc;

	foreach(lc, ab_tables_names())
	{
		AbNamedSnapshot *s = lfirst(lc);
		AbHiddenAge age;
		bool		said;

		if (s->closed_at != 0 || !ab_hidden_read_age(s->id, &age) ||
			age.used < AB_HIDDEN_AGE_WARN || age.used >= AB_HIDDEN_AGE_CLOSE)
			continue;
		said = s->warned_at != 0 &&
			!TimestampDifferenceExceeds(s->warned_at, now, WARN_AGAIN_MS);
		if (all || !said)
			warn(s, &age);
		if (!all && !said)
			remember_warning(s);
	}
}
