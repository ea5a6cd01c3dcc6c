/*
 * ab_snapshot.c
 *	  Finding the snapshot a branch is to hang on.
 *
 * Backends.  ab_snapshot_take.c makes new snapshots, ab_snapshot_redo.c replays them,
 * ab_retire.c removes them.
 *
 * Whoever is given a snapshot holds AccessShareLock on its hidden database to the
 * end of the transaction; the keeper, which needs AccessExclusiveLock to retire
 * it, does not get it until then (rule 29).
 */
#include "ab_snapshot.h"

#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "ab_file.h"
#include "ab_layer.h"
#include "ab_origin.h"
#include "ab_settings.h"
#include "ab_snaptable.h"
#include "ab_wal.h"
#include "ab_walscan.h"

#define HIDDEN_PREFIX "agent_branch_snapshot_"

/* To take another live snapshot is cheaper than to look through so much WAL. */
#define WORTH_A_SCAN (16 * 1024 * 1024)

/* Sub-object number of the lock on a source whose WAL is looked through. */
#define SCAN_SUBID 3

/* So often do others take a snapshot away, or one first, before we complain. */
#define MAX_ROUNDS 5

/* ---- names ---- */

char *
ab_hidden_name(AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	return psprintf(HIDDEN_PREFIX "%s", text);
}

bool
ab_hidden_name_parse(const char *datname, AbSnapId *id)
{
	size_t		prefix = strlen(HIDDEN_PREFIX);

	return strncmp(datname, HIDDEN_PREFIX, prefix) == 0 &&
		strlen(datname) == prefix + AB_SNAPID_TEXT_LEN &&
		ab_snapid_parse(datname + prefix, id);
}

bool
ab_hidden_name_is_reserved(const char *datname)
{
	return strncmp(datname, HIDDEN_PREFIX, strlen(HIDDEN_PREFIX)) == 0;
}

bool
ab_snapshot_parse_file(const char *name, const char *suffix, AbSnapId *id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	if (strlen(name) != AB_SNAPID_TEXT_LEN + strlen(suffix) ||
		strcmp(name + AB_SNAPID_TEXT_LEN, suffix) != 0)
		return false;
	memcpy(text, name, AB_SNAPID_TEXT_LEN);
	text[AB_SNAPID_TEXT_LEN] = '\0';
	return ab_snapid_parse(text, id);
}

/* ---- what this transaction has already got ---- */

typedef struct Given
{
	Oid			source_db;
	AbSnapId	id;
} Given;

static List *given = NIL;		/* of Given *, in TopTransactionContext */

static void
forget_given(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			given = NIL;
			break;
		default:
			break;
	}
}

static void
remember_given(Oid source_db, AbSnapId id)
{
	static bool registered = false;
	MemoryContext oldcontext;
	ListCell   *lc;
	Given	   *g;

	if (!registered)
	{
		RegisterXactCallback(forget_given, NULL);
		registered = true;
	}
	foreach(lc, given)
	{
		g = lfirst(lc);
		if (g->source_db == source_db)
		{
			g->id = id;
			return;
		}
	}
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	g = palloc(sizeof(Given));
	g->source_db = source_db;
	g->id = id;
	given = lappend(given, g);
	MemoryContextSwitchTo(oldcontext);
}

static bool
already_given(Oid source_db, AbSnapId *id)
{
	ListCell   *lc;

	foreach(lc, given)
	{
		Given	   *g = lfirst(lc);

		if (g->source_db == source_db)
		{
			*id = g->id;
			return true;
		}
	}
	return false;
}

/* ---- the hidden database ---- */

/*
 * Lock the hidden database of a snapshot for this transaction.  InvalidOid: the
 * snapshot was never finished, or is being retired.
 */
static Oid
lock_hidden(AbSnapId id)
{
	char	   *name = ab_hidden_name(id);
	Oid			oid;

	/* the row is another process's; our catalog snapshot may be older */
	AcceptInvalidationMessages();
	oid = get_database_oid(name, true);
	if (OidIsValid(oid))
	{
		LockSharedObject(DatabaseRelationId, oid, 0, AccessShareLock);

		/* it may have gone while we waited */
		if (get_database_oid(name, true) != oid)
		{
			UnlockSharedObject(DatabaseRelationId, oid, 0, AccessShareLock);
			oid = InvalidOid;
		}
	}
	pfree(name);
	return oid;
}

bool
ab_snapshot_is_usable(const AbSnapSlot *slot)
{
	char	   *hidden;
	bool		open;

	if (!slot->confirmed || slot->ahead || ab_snaptable_is_poisoned(slot->id))
		return false;
	hidden = ab_hidden_name(slot->id);
	open = OidIsValid(get_database_oid(hidden, true));
	pfree(hidden);
	return open;
}

/* ---- finding ---- */

static void
check_server(void)
{
	ab_require_preloaded();
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot branch databases during recovery"),
				 errhint("Connect to the primary server.")));

	/* rule 5: without it, branches do not survive a crash */
	if (!fullPageWrites)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("branches need full_page_writes"),
				 errhint("Set full_page_writes to \"on\" and reload the configuration.")));
}

static void
check_preconditions(Oid source_db, const char *dbname)
{
	check_server();
	if (dbname == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("database with OID %u does not exist", source_db)));
	if (database_is_invalid_oid(source_db))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot branch invalid database \"%s\"", dbname),
				 errhint("Use DROP DATABASE to drop invalid databases.")));
	ab_branch_require_sound(source_db, dbname);
}

/* Look through the WAL since the snapshot that nobody has looked through yet. */
static void
scan_on(const AbSnapSlot *slot)
{
	XLogRecPtr	upto = GetXLogInsertRecPtr();

	if (slot->live && upto - slot->clean_upto > WORTH_A_SCAN)
		ab_snaptable_outdated(slot->id);
	else if (ab_walscan(slot->source_db, slot->clean_upto, upto, true, NULL) == AB_SCAN_CLEAN)
		ab_snaptable_clean(slot->id, upto);
	else
		ab_snaptable_outdated(slot->id);
}

/*
 * Is the source still what it was?  One at a time looks, as far as WAL goes by then, and
 * those who have come meanwhile are content with that: a thousand who want a branch at
 * once do not read the same WAL a thousand times.  The snapshot's hidden row is locked.
 */
static bool
is_current(AbSnapId id)
{
	XLogRecPtr	now = GetXLogInsertRecPtr();
	AbSnapSlot	slot;
	LOCKTAG		tag;

	while (ab_snaptable_get(id, &slot) && !slot.outdated)
	{
		if (slot.clean_upto >= now)
			return true;
		SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, slot.source_db, SCAN_SUBID);
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		if (ab_snaptable_get(id, &slot) && !slot.outdated && slot.clean_upto < now)
			scan_on(&slot);
		LockRelease(&tag, ExclusiveLock, false);
	}
	return false;
}

/*
 * The newest snapshot, if the database is still what it was then.  *id is set to
 * the newest one in any case, or invalid.
 */
static bool
reuse_newest(Oid source_db, AbSnapId *id)
{
	AbSnapSlot	slot;
	Oid			hidden;

	memset(id, 0, sizeof(*id));
	if (!ab_snaptable_newest(source_db, &slot))
		return false;
	*id = slot.id;
	if (ab_snaptable_is_poisoned(slot.id))
		return false;
	hidden = lock_hidden(slot.id);
	if (!OidIsValid(hidden))
		return false;
	if (is_current(slot.id))
		return true;
	UnlockSharedObject(DatabaseRelationId, hidden, 0, AccessShareLock);
	return false;
}

AbSnapId
ab_snapshot_get(Oid source_db, bool force_new)
{
	char	   *dbname = get_database_name(source_db);
	AbSnapId	id;

	check_preconditions(source_db, dbname);

	/* after ROLLBACK TO the lock may be gone, and the snapshot with it */
	if (!force_new && already_given(source_db, &id) && OidIsValid(lock_hidden(id)))
		return id;

	for (int round = 0;; round++)
	{
		AbSnapId	known;

		if (round == MAX_ROUNDS)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("could not get a snapshot of database \"%s\"", dbname),
					 errdetail("Each one that was taken had gone before it could be used."),
					 errhint("Try again.")));

		if (!force_new && reuse_newest(source_db, &known))
		{
			id = known;
			break;
		}

		/* whoever lost the race several times takes one whatever others do */
		if (ab_snapshot_take(source_db, dbname,
							 force_new || round > 2 ? NULL : &known, &id) &&
			OidIsValid(lock_hidden(id)))
			break;
		CHECK_FOR_INTERRUPTS();
	}
	remember_given(source_db, id);
	return id;
}

/*
 * An older snapshot has what it has, whatever became of its source since; only
 * before-images are worth nothing without the source's files.
 */
void
ab_snapshot_get_at(AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];
	AbSnapSlot	slot;

	check_server();
	ab_snapid_format(id, text);
	if (!OidIsValid(lock_hidden(id)) || !ab_snaptable_get(id, &slot) ||
		!slot.confirmed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("snapshot %s is closed: no branch can be made of it any more", text),
				 errdetail("Snapshots without a name are closed when there is a newer one, all of them before their transaction ids wrap around."),
				 errhint("Choose another one from the view branch.snapshots.")));
	if (slot.live && get_database_name(slot.source_db) == NULL &&
		!ab_origin_exists(slot.source_db))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("snapshot %s has no pages any more", text),
				 errdetail("It shared the files of database %u, which has been dropped.",
						   slot.source_db)));
	if (ab_snaptable_is_poisoned(id))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("snapshot %s is damaged", text),
				 errdetail("Some of its pages could not be kept; the server log says why."),
				 errhint("Choose another one from the view branch.snapshots. If the next merge of a branch would begin there, reset or delete the branch.")));
}
