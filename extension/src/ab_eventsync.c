/*
 * ab_eventsync.c
 *	  Events in the background: notifications, events of other databases, those that
 *	  were missed, those that are too old.
 *
 * The keeper sends the notifications of what is settled (ab_eventorder.h), in order of
 * id, and writes what notes say (ab_eventnotes.h); its sweeper, or branch.gc(),
 * compares branches with events after each start and when notes were lost, and removes
 * old events.  A comparison must not take a branch for missed whose note is being
 * written: it holds the notes' turn (a lock on the table with sub-object 1) from
 * before its snapshot until it has looked for notes, and the keeper has the turn while
 * it writes; it never waits for it.  Two comparisons exclude each other (sub-object 2).
 * What a comparison tells of a database that is there must come before what others do
 * with that: it locks it, AccessShareLock, to the end of its transaction, and leaves
 * those that somebody is changing to the next one.
 */
#include "ab_eventsync.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ab_base.h"
#include "ab_catalogrows.h"
#include "ab_eventnotes.h"
#include "ab_eventorder.h"
#include "ab_events.h"
#include "ab_eventtold.h"
#include "ab_format.h"
#include "ab_gate.h"
#include "ab_origin.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_shmem.h"
#include "ab_snapshot.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

#define NOTES_TURN 1
#define COMPARISON_TURN 2

#define PRUNE_BATCH 10000
#define PRUNE_EVERY_MS (3600 * 1000L)

/* Databases that a comparison locks: the lock table is shared by everybody. */
#define HELD_AT_ONCE 256

/* ---- turns ---- */

static bool
take_turn(uint16 turn, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, RelationRelationId, ab_events_table(), turn);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

static void
end_turn(uint16 turn)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, RelationRelationId, ab_events_table(), turn);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* ---- notes ---- */

#define NOTES_AT_ONCE 32
#define RETRY_MS 100
#define FAILED_RETRY_MS 10000

static bool failed = false;		/* a step of the keeper's */

/* In a transaction; false: none, or not now. */
static bool
write_notes(void)
{
	AbNote		notes[NOTES_AT_ONCE];
	bool		writable = ab_events_writable();
	int			n;

	if (writable && (!ab_gate_try_enter() || !take_turn(NOTES_TURN, false)))
		return false;
	n = ab_eventnotes_take(notes, NOTES_AT_ONCE);
	for (int i = 0; i < n && writable; i++)
		ab_event_from_note(&notes[i]);
	return n > 0;
}

/* ---- notifications ---- */

/*
 * A payload has to be shorter than 8000 bytes.  Names have at most 63, each of which
 * JSON may need six for.
 */
static const char notify_sql[] =
"SELECT n.id, n.payload, pg_catalog.pg_notify('agent_branch', n.payload)"
" FROM (SELECT e.id, pg_catalog.json_build_object('id', e.id, 'event', e.event,"
" 'branch', e.branch, 'parent', e.parent, 'at', e.at, 'by', e.by, 'detail',"
" CASE WHEN pg_catalog.octet_length(e.detail::pg_catalog.text)"
" OPERATOR(pg_catalog.<=) 5000 THEN e.detail"
" ELSE '{\"shortened\": true}'::pg_catalog.jsonb END)::pg_catalog.text AS payload"
" FROM branch.event_log AS e"
" WHERE e.id OPERATOR(pg_catalog.>) $1 AND e.id OPERATOR(pg_catalog.<=) $2"
" ORDER BY e.id LIMIT 500) AS n";

/* JSON has no line breaks in it, so this is one line. */
static void
log_event(const char *payload)
{
	ereport(LOG,
			(errmsg_internal("branch event: %s", payload),
			 errhidestmt(true), errhidecontext(true)));
}

static int64
notify_some(int64 after, int64 upto)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {INT8OID, INT8OID};
	Datum		values[2];
	int64		last = upto;

	values[0] = Int64GetDatum(after);
	values[1] = Int64GetDatum(upto);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(notify_sql, 2, types);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		plan = made;
	}
	if (SPI_execute_plan(plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_plan failed");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		last = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		if (ab_log_events)
			log_event(SPI_getvalue(tuple, desc, 2));
	}
	SPI_finish();
	return last;
}

/* Up to where this transaction will have notified; the caller remembers it then. */
static int64 notified = 0;

/*
 * In a transaction; false: there is nothing.  The commit need not be waited for: a
 * server that crashes has no listeners left.
 */
static bool
send_notifications(void)
{
	Oid			sequence;
	int64		after;
	int64		upto;

	notified = 0;
	pg_atomic_write_u32(&ab_shared->events_poked, 0);
	pg_memory_barrier();
	if (!ab_events_writable())
		return false;
	sequence = ab_events_sequence();
	after = ab_eventorder_notified(sequence);
	upto = ab_eventorder_settled(sequence);
	if (upto <= after)
		return false;
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
	notified = notify_some(after, upto);
	PopActiveSnapshot();
	return true;
}

/* ---- the keeper ---- */

/* A transaction; false: nothing was done. */
static bool
run_step(bool (*step) (void), const char *activity)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	SetCurrentStatementStartTimestamp();
	PG_TRY();
	{
		StartTransactionCommand();
		done = step();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(caller);
		errcontext("%s", activity);
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		QueryCancelPending = false; /* lock_timeout sends one */
		failed = true;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return done && !failed;
}

/*
 * Notes that could not be written stay; should that be for good (a table of another
 * version), later ones find no room, and nobody is held up.
 */
long
ab_eventsync_tend(void)
{
	failed = false;
	while (!failed && ab_eventnotes_any_ready() &&
		   run_step(write_notes, "writing events of other databases"))
		ab_eventnotes_done(true);
	if (failed)
		ab_eventnotes_done(false);
	while (!failed && pg_atomic_read_u32(&ab_shared->events_poked) != 0)
	{
		while (run_step(send_notifications, "sending notifications of events"))
			ab_eventorder_set_notified(notified);
	}
	if (failed)
	{
		pg_atomic_write_u32(&ab_shared->events_poked, 1);
		return FAILED_RETRY_MS;
	}
	return ab_eventnotes_any_ready() ? RETRY_MS : 0;
}

/* ---- comparing ---- */

/*
 * For each database of the log: its last event that made it a branch, its last one by
 * which it was none any more.
 */
#define LAST_EVENTS \
	"WITH told AS (" \
	" SELECT id, branch_id AS db, event IN " AB_EVENTS_APPEARS " AS appears" \
	" FROM branch.event_log WHERE event IN " AB_EVENTS_APPEARS \
	" OR event IN ('purged', 'detached')" \
	" OR (event = 'deleted' AND (detail ->> 'hard')::boolean)" \
	" UNION ALL" \
	" SELECT id, (detail ->> 'old_id')::oid, false" \
	" FROM branch.event_log WHERE event IN ('reset', 'restored')" \
	" AND NOT detail ? 'preserved_as'), " \
	"last AS (SELECT db, max(id) FILTER (WHERE appears) AS seen," \
	" max(id) FILTER (WHERE NOT appears) AS gone FROM told GROUP BY db) "

static const char untold_sql[] =
LAST_EVENTS
"SELECT d.oid, d.datname::text, d.datdba"
" FROM pg_database AS d LEFT JOIN last AS l ON d.oid = l.db"
" WHERE l.seen IS NULL OR l.gone > l.seen ORDER BY d.oid";

static const char vanished_sql[] =
LAST_EVENTS
"SELECT l.db, e.branch, e.owner_id, e.parent"
" FROM last AS l JOIN branch.event_log AS e ON e.id = l.seen"
" WHERE l.seen > coalesce(l.gone, 0)"
" AND NOT EXISTS (SELECT 1 FROM pg_database AS d WHERE d.oid = l.db) ORDER BY l.db";

/*
 * A crash in DROP DATABASE leaves a row that nobody can connect to, marked so before any
 * file went, and if it came late nothing else that would make it a branch.
 */
static const char cut_off_sql[] =
LAST_EVENTS
"SELECT d.oid, d.datname::text, d.datdba, e.parent"
" FROM last AS l JOIN branch.event_log AS e ON e.id = l.seen"
" JOIN pg_database AS d ON d.oid = l.db"
" WHERE l.seen > coalesce(l.gone, 0) AND d.datconnlimit < -1 ORDER BY d.oid";

/* The wish that this transaction fulfils: what it has told is not in the table yet. */
static uint64 comparing = 0;
static SubTransactionId comparing_in;
static int	nheld;				/* databases that it has locked */
static bool more_to_hold;

/* By this transaction, which says so itself: everybody who does has this lock. */
static bool
is_changed_here(Oid db)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	if (!LockHeldByMe(&tag, AccessExclusiveLock))
		return false;
	ab_event_find_out();
	return true;
}

/* Let a database stay as it is; NULL: it cannot be told of now, or is gone. */
static char *
hold_database(Oid db)
{
	LOCKTAG		tag;

	if (is_changed_here(db))
		return NULL;
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	more_to_hold = nheld == HELD_AT_ONCE;
	if (more_to_hold ||
		LockAcquire(&tag, AccessShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		ab_event_find_out();
		return NULL;
	}
	nheld++;
	AcceptInvalidationMessages();
	return ab_database_name(db);
}

static Oid
oid_column(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;

	return DatumGetObjectId(SPI_getbinval(tuple, desc, column, &isnull));
}

static void
start_note(AbNote *note, const char *event, HeapTuple tuple, TupleDesc desc)
{
	memset(note, 0, sizeof(*note));
	strlcpy(note->event, event, sizeof(note->event));
	note->db = oid_column(tuple, desc, 1);
	strlcpy(note->branch, SPI_getvalue(tuple, desc, 2), sizeof(note->branch));
	note->owner = oid_column(tuple, desc, 3);
}

/* A database without an event; most are no branches. */
static void
tell_created(HeapTuple tuple, TupleDesc desc)
{
	AbNote		note;
	Oid			db = oid_column(tuple, desc, 1);
	char	   *name = SPI_getvalue(tuple, desc, 2);

	if (!ab_hidden_name_is_reserved(name) && !ab_base_name_is_reserved(name) &&
		!ab_eventnotes_has(db) && ab_origin_exists(db) &&
		(name = hold_database(db)) != NULL &&
		ab_eventtold_creation(&note, db, name, oid_column(tuple, desc, 3)))
		ab_event_from_note(&note);
}

static void
tell_gone(AbNote *note, HeapTuple tuple, TupleDesc desc)
{
	char	   *parent = SPI_getvalue(tuple, desc, 4);

	note->at = GetCurrentTimestamp();
	strlcpy(note->by, GetUserNameFromId(GetUserId(), false), sizeof(note->by));
	strlcpy(note->parent, parent ? parent : "", sizeof(note->parent));
	strcpy(note->detail, "{\"hard\": true, \"found\": true}");
	ab_event_from_note(note);
}

static void
tell_deleted(HeapTuple tuple, TupleDesc desc)
{
	AbNote		note;

	start_note(&note, "deleted", tuple, desc);
	if (!ab_eventnotes_has(note.db) && !is_changed_here(note.db))
		tell_gone(&note, tuple, desc);
}

/* Whoever drops it again says nothing then. */
static void
tell_cut_off(HeapTuple tuple, TupleDesc desc)
{
	AbNote		note;

	start_note(&note, "deleted", tuple, desc);
	if (!ab_eventnotes_has(note.db) && !ab_origin_exists(note.db) &&
		hold_database(note.db) != NULL &&
		ab_database_is_invalid(note.db) && !ab_origin_exists(note.db))
		tell_gone(&note, tuple, desc);
}

static void
at_xact_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && comparing > 0)
		ab_eventnotes_compared(comparing);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		comparing = 0;			/* of one that is prepared nobody knows the end */
}

/* What it has told goes with the subtransaction (numbers of later ones are higher). */
static void
at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
			   SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && comparing_in >= mySubid)
		comparing = 0;
}

static void
begin_comparison(void)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		RegisterSubXactCallback(at_subxact_end, NULL);
	}
	registered = true;
	comparing = ab_eventnotes_comparison_wanted();
	comparing_in = GetCurrentSubTransactionId();
	nheld = 0;
	more_to_hold = false;
}

static void
tell_all(const char *sql, void (*tell) (HeapTuple tuple, TupleDesc desc))
{
	uint64		n = ab_tables_execute(sql, 0, NULL, NULL, NULL);
	SPITupleTable *rows = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		tell(rows->vals[i], rows->tupdesc);
	}
	SPI_freetuptable(rows);
}

/* What the comparison sees must be newer than its turn. */
bool
ab_eventsync_compare(void)
{
	if (comparing > 0 || ab_eventnotes_comparison_wanted() == 0 ||
		!ab_events_writable() || IsolationUsesXactSnapshot())
		return false;
	(void) take_turn(COMPARISON_TURN, true);
	begin_comparison();
	if (comparing == 0)
		return false;
	(void) take_turn(NOTES_TURN, true);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	tell_all(untold_sql, tell_created);
	tell_all(vanished_sql, tell_deleted);
	tell_all(cut_off_sql, tell_cut_off);
	SPI_finish();
	end_turn(NOTES_TURN);
	ab_request_poke_keeper();
	return more_to_hold;
}

/* ---- removing old events ---- */

static bool
prune_is_due(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		every = Min(PRUNE_EVERY_MS, ab_event_retention * 100L);
	bool		due;

	LWLockAcquire(ab_shared->event_lock, LW_EXCLUSIVE);
	due = TimestampDifferenceExceeds(ab_shared->events_pruned_at, now, every);
	if (due)
		ab_shared->events_pruned_at = now;
	LWLockRelease(ab_shared->event_lock);
	return due;
}

#define OLD_EVENTS \
	"FROM branch.event_log AS e WHERE e.at < $1 AND NOT (e.event IN " AB_EVENTS_APPEARS \
	" AND EXISTS (SELECT 1 FROM pg_database AS d WHERE d.oid = e.branch_id))"

/* Looks first: who writes waits at the gate of the control database. */
uint64
ab_eventsync_prune(bool now)
{
	Oid			types[2] = {TIMESTAMPTZOID, INT4OID};
	Datum		values[2];
	uint64		n;

	if (ab_event_retention == 0 || !ab_events_writable() || !(now || prune_is_due()))
		return 0;
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp() -
									ab_event_retention * USECS_PER_SEC);
	values[1] = Int32GetDatum(PRUNE_BATCH);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	n = ab_tables_execute("SELECT 1 " OLD_EVENTS " LIMIT 1", 1, types, values, NULL);
	if (n > 0)
		n = ab_tables_execute("DELETE FROM branch.event_log WHERE id IN (SELECT e.id "
							  OLD_EVENTS " ORDER BY e.id LIMIT $2 FOR UPDATE SKIP LOCKED)",
							  2, types, values, NULL);
	SPI_finish();
	return n;
}
