/*
 * ab_events.c
 *	  Events: kept in memory until the transaction commits, then written into
 *	  branch.event_log; in other databases noted for the keeper.
 *
 * Backends, the keeper and its sweeper.  Rows are written by the pre-commit callback and
 * not before, for three reasons: a transaction that makes many branches writes them in
 * one go; their ids are then close to the order of commits; and the control database may
 * itself be the parent of what is created next, which must not have been written by
 * this transaction.  The table is written without the executor, since a creation has
 * to cost little more than a committed INSERT: no trigger on it fires.
 *
 * Notifications are the keeper's (ab_eventsync.c): whoever sends one holds a lock of the
 * whole cluster until its commit is on disk, so creations would commit one by one.
 *
 * Locks: RowExclusiveLock on the table, the gate of the control database.  A crash
 * leaves nothing that is not committed.
 */
#include "ab_events.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "executor/tuptable.h"
#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "ab_catalogrows.h"
#include "ab_eventnotes.h"
#include "ab_eventorder.h"
#include "ab_eventtold.h"
#include "ab_gate.h"
#include "ab_request.h"
#include "ab_settings.h"
#include "ab_shmem.h"
#include "ab_softdelete.h"

#define EVENTS_TABLE "event_log"
#define EVENTS_SEQUENCE "event_log_id_seq"

#define DETAIL_SHORTENED "{\"shortened\": true}"

/* Of the columns of branch.event_log. */
static const Oid column_types[AB_EVENT_COLS] = {
	INT8OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, OIDOID, TEXTOID, TEXTOID, OIDOID,
	JSONBOID
};

typedef struct AbEvent
{
	dlist_node	node;
	SubTransactionId subid;		/* that it came from */
	TimestampTz at;
	Oid			db;
	Oid			owner;			/* whose database it is or was */
	const char *event;
	const char *branch;
	const char *parent;			/* may be NULL */
	const char *by;
	bool		found;			/* somebody else's, who left a note or nothing */
	bool		if_untold;		/* "created", for those who do not know the branch */
	const char *detail_text;
	Datum		detail;
} AbEvent;

/* Of this transaction, in order; in TopTransactionContext. */
static dlist_head pending = DLIST_STATIC_INIT(pending);
static int	npending = 0;

/* From pre-commit to commit or abort, outside the control database. */
static bool notes_are_put = false;
static bool notes_are_lost = false; /* some of them: there was no room */

static bool rows_are_written = false;	/* the same, in the control database */

static bool comparison_wanted = false;	/* by this transaction, when it has committed */

/* ---- where ---- */

static bool
in_control_database(void)
{
	static int	answer = -1;	/* nobody renames a database that has sessions */

	if (answer < 0)
	{
		char	   *here = get_database_name(MyDatabaseId);

		answer = here != NULL && strcmp(here, ab_control_database) == 0;
	}
	return answer == 1;
}

/* The extension's table of that name; InvalidOid if it is not installed. */
static Oid
own_relation(const char *name, Oid *checked)
{
	Oid			schema = get_namespace_oid("branch", true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;

	if (!OidIsValid(relid) || relid == *checked)
		return relid;
	if (get_rel_relkind(relid) != RELKIND_RELATION ||
		!OidIsValid(get_extension_oid("agent_branch", true)) ||
		getExtensionOfObject(RelationRelationId, relid) !=
		get_extension_oid("agent_branch", true))
		return InvalidOid;
	*checked = relid;
	return relid;
}

Oid
ab_events_table(void)
{
	static Oid	checked = InvalidOid;

	return own_relation(EVENTS_TABLE, &checked);
}

Oid
ab_events_sequence(void)
{
	Oid			sequence = get_relname_relid(EVENTS_SEQUENCE,
											 get_namespace_oid("branch", false));

	if (!OidIsValid(sequence))
		elog(ERROR, "sequence \"branch.%s\" is missing", EVENTS_SEQUENCE);
	return sequence;
}

bool
ab_events_writable(void)
{
	return in_control_database() && OidIsValid(ab_events_table());
}

static void
check_layout(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		same = desc->natts == AB_EVENT_COLS;

	for (int i = 0; i < AB_EVENT_COLS && same; i++)
		same = TupleDescAttr(desc, i)->atttypid == column_types[i];
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"branch.%s\" is not of this version of agent_branch",
						EVENTS_TABLE),
				 errhint("Run ALTER EXTENSION agent_branch UPDATE.")));
}

/* ---- writing ---- */

static TupleTableSlot *
make_row(Relation rel, const AbEvent *e, int64 id)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsHeapTuple);
	Datum		values[AB_EVENT_COLS];
	bool		nulls[AB_EVENT_COLS] = {false};

	values[AB_EVENT_COL_ID] = Int64GetDatum(id);
	values[AB_EVENT_COL_AT] = TimestampTzGetDatum(e->at);
	values[AB_EVENT_COL_EVENT] = CStringGetTextDatum(e->event);
	values[AB_EVENT_COL_BRANCH] = CStringGetTextDatum(e->branch);
	values[AB_EVENT_COL_BRANCH_ID] = ObjectIdGetDatum(e->db);
	nulls[AB_EVENT_COL_PARENT] = e->parent == NULL;
	values[AB_EVENT_COL_PARENT] = nulls[AB_EVENT_COL_PARENT] ? (Datum) 0 : CStringGetTextDatum(e->parent);
	values[AB_EVENT_COL_BY] = CStringGetTextDatum(e->by);
	values[AB_EVENT_COL_OWNER_ID] = ObjectIdGetDatum(e->owner);
	values[AB_EVENT_COL_DETAIL] = e->detail;
	ExecStoreHeapTuple(heap_form_tuple(RelationGetDescr(rel), values, nulls),
					   slot, true);
	return slot;
}

/* As many rows as are written at once. */
#define BATCH 500

static void
write_rows(Relation rel, TupleTableSlot **slots, int n)
{
	CatalogIndexState indexes = CatalogOpenIndexes(rel);

	CatalogTuplesMultiInsertWithInfo(rel, slots, n, indexes);
	CatalogCloseIndexes(indexes);
	for (int i = 0; i < n; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
}

/* Creations that were told come out of the list; mostly there are none in it. */
static void
leave_out_told(Relation rel)
{
	HTAB	   *in_question = ab_eventtold_set();
	HTAB	   *told;
	dlist_mutable_iter it;
	bool		any = false;

	dlist_foreach_modify(it, &pending)
	{
		AbEvent    *e = dlist_container(AbEvent, node, it.cur);

		if (!e->if_untold)
			continue;
		ab_eventtold_add(in_question, e->db);
		any = true;
	}
	if (!any)
		return;
	told = ab_eventtold_read(rel, in_question);
	dlist_foreach_modify(it, &pending)
	{
		AbEvent    *e = dlist_container(AbEvent, node, it.cur);

		if (e->if_untold && ab_eventtold_in(told, e->db))
		{
			dlist_delete(it.cur);
			npending--;
		}
		else if (ab_eventtold_appears(e->event))
			ab_eventtold_add(told, e->db);
	}
}

static void
write_pending(void)
{
	TupleTableSlot *slots[BATCH];
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext,
											   "agent_branch events",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	Relation	rel;
	Oid			sequence;
	dlist_iter	it;
	int			n = 0;

	ab_gate_enter();
	rel = table_open(ab_events_table(), RowExclusiveLock);
	check_layout(rel);
	leave_out_told(rel);
	sequence = ab_events_sequence();

	/* the statements' own are gone, and a wide row is put into a TOAST table */
	PushActiveSnapshot(GetTransactionSnapshot());
	dlist_foreach(it, &pending)
	{
		slots[n++] = make_row(rel, dlist_container(AbEvent, node, it.cur),
							  ab_eventorder_next(sequence));
		if (n == BATCH)
		{
			write_rows(rel, slots, n);
			MemoryContextReset(work);
			n = 0;
		}
	}
	if (n > 0)
		write_rows(rel, slots, n);
	PopActiveSnapshot();
	table_close(rel, NoLock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	rows_are_written = true;
}

/* ---- transactions ---- */

static void
forget_all(void)
{
	dlist_init(&pending);		/* the memory goes with the transaction */
	npending = 0;
}

static bool
put_note(const AbEvent *e)
{
	AbNote		note = {0};

	note.at = e->at;
	note.db = e->db;
	note.owner = e->owner;
	note.if_untold = e->if_untold;
	strlcpy(note.event, e->event, sizeof(note.event));
	strlcpy(note.branch, e->branch, sizeof(note.branch));
	if (e->parent)
		strlcpy(note.parent, e->parent, sizeof(note.parent));
	strlcpy(note.by, e->by, sizeof(note.by));
	if (strlen(e->detail_text) < sizeof(note.detail))
		strcpy(note.detail, e->detail_text);
	else
		strcpy(note.detail, DETAIL_SHORTENED);
	notes_are_put = true;
	return ab_eventnotes_put(&note);
}

/*
 * Events of a database that has no table for them become notes for the keeper.  None
 * comes after one that is lost: a later event must not be told before it.
 */
static void
put_notes(void)
{
	dlist_iter	it;

	dlist_foreach(it, &pending)
	{
		if (!put_note(dlist_container(AbEvent, node, it.cur)))
		{
			notes_are_lost = true;
			break;
		}
	}
}

static bool
fits_a_note(const AbEvent *e)
{
	return strlen(e->event) < AB_NOTE_EVENT_LEN &&
		strlen(e->detail_text) < AB_NOTE_DETAIL_LEN;
}

/* What has to come after notes that the keeper has not written yet becomes one, too. */
static void
follow_notes(void)
{
	dlist_mutable_iter it;

	dlist_foreach_modify(it, &pending)
	{
		AbEvent    *e = dlist_container(AbEvent, node, it.cur);

		if (!e->found && !ab_eventnotes_wait(e->db) && fits_a_note(e) && put_note(e))
		{
			dlist_delete(it.cur);
			npending--;
		}
	}
}

static void
settle_notes(bool committed)
{
	ab_eventnotes_settle(committed);
	comparison_wanted |= notes_are_lost;
	if (committed)
		ab_request_poke_keeper();
	notes_are_put = false;
	notes_are_lost = false;
}

static void
write_or_note(void)
{
	if (!ab_events_writable())
	{
		put_notes();
		return;
	}
	follow_notes();
	if (npending > 0)
		write_pending();
}

/* The keeper is to send notifications; once is enough for all until it looks. */
static void
settle_rows(bool committed)
{
	ab_eventorder_end();
	rows_are_written = false;
	if (committed && pg_atomic_exchange_u32(&ab_shared->events_poked, 1) == 0)
		ab_request_poke_keeper();
}

static void
settle_comparison(bool committed)
{
	if (committed && comparison_wanted)
	{
		ab_eventnotes_want_comparison();
		ab_request_wake_keeper();
	}
	comparison_wanted = false;
}

static void
settle(bool committed)
{
	if (notes_are_put)
		settle_notes(committed);
	settle_comparison(committed);
	if (rows_are_written)
		settle_rows(committed);
	else
		ab_eventorder_end();
	forget_all();
}

/*
 * All later events would have to wait until a prepared transaction is finished, by
 * another process.
 */
static void
refuse_prepare(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot prepare a transaction that has changed branches"),
			 errhint("Change them in a transaction of their own.")));
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (npending > 0)
				write_or_note();
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (npending > 0)
				refuse_prepare();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			settle(event == XACT_EVENT_COMMIT);
			break;
		default:
			break;
	}
}

/*
 * Numbers of subtransactions grow, so what an aborted one and those inside it have
 * said is the end of the list.
 */
static void
at_subxact_end(SubXactEvent event, SubTransactionId mySubid,
			   SubTransactionId parentSubid, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	while (npending > 0 &&
		   dlist_tail_element(AbEvent, node, &pending)->subid >= mySubid)
	{
		dlist_delete(dlist_tail_node(&pending));
		npending--;
	}
}

static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
	registered = true;
}

/* ---- saying it ---- */

/* A name may come from a database of another encoding; text must not. */
static const char *
as_text(const char *name)
{
	char	   *copy = pstrdup(name);

	if (!pg_verifymbstr(copy, strlen(copy), true))
	{
		for (char *p = copy; *p; p++)
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
	}
	return copy;
}

static Oid
owner_of(Oid db)
{
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	Oid			owner;

	if (!HeapTupleIsValid(tup))
		return GetUserId();
	owner = ((Form_pg_database) GETSTRUCT(tup))->datdba;
	ReleaseSysCache(tup);
	return owner;
}

/* Strings are copied; parent and detail may be NULL. */
static void
remember(const AbEvent *said)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	AbEvent    *e = palloc(sizeof(AbEvent));

	register_callbacks();
	*e = *said;
	e->subid = GetCurrentSubTransactionId();
	e->event = pstrdup(said->event);
	e->branch = as_text(said->branch);
	e->parent = said->parent ? as_text(said->parent) : NULL;
	e->by = as_text(said->by);
	e->detail_text = pstrdup(said->detail_text ? said->detail_text : "{}");
	e->detail = DirectFunctionCall1(jsonb_in, CStringGetDatum(e->detail_text));
	MemoryContextSwitchTo(old);
	dlist_push_tail(&pending, &e->node);
	npending++;
}

/* By this transaction: nobody tells of it meanwhile. */
static bool
is_ours(Oid db)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, db, 0);
	return LockHeldByMe(&tag, AccessExclusiveLock);
}

/* A note about it means that its creation was told, or is noted before. */
void
ab_event_make_known(Oid db, const char *name)
{
	AbNote		note;

	if (ab_eventnotes_comparison_wanted() == 0 || !is_ours(db) ||
		ab_database_is_deleted(db) || ab_eventnotes_has(db) ||
		!ab_eventtold_creation(&note, db, name, owner_of(db)))
		return;
	note.if_untold = true;
	ab_event_from_note(&note);
}

void
ab_event(const char *event, Oid db, const char *branch, const char *parent,
		 const char *detail_json)
{
	AbEvent		e = {0};

	if (in_control_database() && !ab_events_writable())
		return;
	if (!ab_eventtold_appears(event))
		ab_event_make_known(db, branch);
	e.at = GetCurrentTimestamp();
	e.db = db;
	e.owner = owner_of(db);
	e.event = event;
	e.branch = branch;
	e.parent = parent;
	e.by = GetUserNameFromId(GetUserId(), false);
	e.detail_text = detail_json;
	remember(&e);
}

void
ab_event_find_out(void)
{
	register_callbacks();
	comparison_wanted = true;
}

void
ab_event_from_note(const AbNote *note)
{
	AbEvent		e = {0};

	e.found = true;
	e.if_untold = note->if_untold;
	e.at = note->at;
	e.db = note->db;
	e.owner = note->owner;
	e.event = note->event;
	e.branch = note->branch;
	e.parent = note->parent[0] ? note->parent : NULL;
	e.by = note->by;
	e.detail_text = note->detail;
	remember(&e);
}
