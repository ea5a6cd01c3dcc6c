/*
 * ab_suspendevents.c
 *	  Events "suspended" and "resumed" (ab_suspendevents.h).
 *
 * The activity worker.  What was told of a branch is in table branch.activity: it is
 * asleep if suspended_at is not null there.  What has come since is in its row: how often
 * it was resumed, and whether it is suspended now.  No locks of its own.
 */
#include "ab_suspendevents.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/timestamp.h"

#include "ab_catalogrows.h"
#include "ab_events.h"
#include "ab_format.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

/* A branch that the table says is asleep. */
typedef struct Sleeper
{
	Oid			db;
	TimestampTz origin_at;
	TimestampTz suspended_at;
} Sleeper;

static const char *const reasons[] = {"called", "idle", "budget"};

/* ---- what the table says ---- */

static Datum
databases_of(const AbActivity *rows, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		values[i] = ObjectIdGetDatum(rows[i].db);
	return PointerGetDatum(construct_array(values, n, OIDOID, sizeof(Oid), true,
										   TYPALIGN_INT));
}

static int
by_database(const void *a, const void *b)
{
	Oid			x = ((const Sleeper *) a)->db;
	Oid			y = ((const Sleeper *) b)->db;

	return x < y ? -1 : x > y;
}

/* Palloc'd, in order. */
static Sleeper *
read_sleepers(const AbActivity *rows, int n, int *nsleepers)
{
	Oid			types[1] = {OIDARRAYOID};
	Datum		values[1] = {databases_of(rows, n)};
	Sleeper    *sleepers;

	*nsleepers = (int)
		ab_tables_execute("SELECT a.db, a.origin_at, a.suspended_at FROM branch.activity AS a"
						  " WHERE a.db = ANY ($1) AND a.suspended_at IS NOT NULL",
						  1, types, values, NULL);
	sleepers = palloc(sizeof(Sleeper) * Max(*nsleepers, 1));
	for (int i = 0; i < *nsleepers; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		sleepers[i].db = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		sleepers[i].origin_at = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
		sleepers[i].suspended_at = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 3, &isnull));
	}
	qsort(sleepers, *nsleepers, sizeof(Sleeper), by_database);
	return sleepers;
}

/* Since when the log has this branch asleep; 0: it has it awake. */
static TimestampTz
told_asleep_since(const AbActivity *row, const Sleeper *sleepers, int n)
{
	Sleeper		key = {.db = row->db};
	const Sleeper *found = bsearch(&key, sleepers, n, sizeof(Sleeper), by_database);

	return found != NULL && found->origin_at == row->origin_at ? found->suspended_at : 0;
}

/* ---- saying it ---- */

/* False: there is nobody to whom it could be of interest any more. */
static bool
start_note(AbNote *note, const AbActivity *row)
{
	AbOriginHeader origin;
	char	   *name = ab_database_name(row->db);
	char	   *parent;

	memset(note, 0, sizeof(*note));
	if (name == NULL || ab_database_is_deleted(row->db) ||
		!ab_storage_read_origin(row->db, &origin) || origin.created_at != row->origin_at)
		return false;
	note->db = row->db;
	note->owner = ab_database_owner(row->db);
	strlcpy(note->branch, name, sizeof(note->branch));
	parent = ab_database_name(origin.parent_db);
	strlcpy(note->parent, parent ? parent : "", sizeof(note->parent));
	return true;
}

/* The role that did it is known of the last one of several. */
static void
say(AbNote *note, const char *event, const AbActivity *row, bool last)
{
	char	   *by = OidIsValid(row->moved_by) && last ?
		GetUserNameFromId(row->moved_by, true) : NULL;

	strlcpy(note->event, event, sizeof(note->event));
	strlcpy(note->by, by ? by : GetUserNameFromId(GetUserId(), false), sizeof(note->by));
	ab_event_from_note(note);
}

static void
say_suspended(AbNote *note, const AbActivity *row, bool last)
{
	note->at = last ? row->suspended_at : GetCurrentTimestamp();
	snprintf(note->detail, sizeof(note->detail), "{\"reason\": \"%s\"}",
			 reasons[row->suspended_for]);
	say(note, "suspended", row, last);
}

static void
say_resumed(AbNote *note, const AbActivity *row, TimestampTz asleep_since, bool last)
{
	note->at = GetCurrentTimestamp();
	if (asleep_since != 0)
		snprintf(note->detail, sizeof(note->detail), "{\"asleep_seconds\": %.3f}",
				 Max(note->at - asleep_since, 0) / (double) USECS_PER_SEC);
	else
		strcpy(note->detail, "{}");
	say(note, "resumed", row, last);
}

/* In turns, from what was told last to what is so now. */
static void
tell(const AbActivity *row, TimestampTz asleep_since)
{
	bool		asleep = row->suspended_at != 0;
	int			resumed = row->naps;
	AbNote		note;

	if (asleep_since != 0 && asleep_since != row->suspended_at)
		resumed = Max(resumed, 1);	/* it was not seen, after a restart */
	if (resumed == 0 && asleep == (asleep_since != 0))
		return;
	if (!start_note(&note, row))
		return;
	for (int i = 0; i < resumed; i++)
	{
		if (i > 0 || asleep_since == 0)
			say_suspended(&note, row, false);
		say_resumed(&note, row, i == 0 ? asleep_since : 0, i == resumed - 1 && !asleep);
	}
	if (asleep)
		say_suspended(&note, row, true);
}

void
ab_suspendevents_tell(const AbActivity *rows, int n)
{
	Sleeper    *sleepers;
	int			nsleepers;

	if (!ab_events_writable())
		return;
	sleepers = read_sleepers(rows, n, &nsleepers);
	for (int i = 0; i < n; i++)
		if (OidIsValid(rows[i].db))
			tell(&rows[i], told_asleep_since(&rows[i], sleepers, nsleepers));
	pfree(sleepers);
}
