/*
 * ab_events.h
 *	  Events: a row of branch.events and a notification on channel "agent_branch" for
 *	  every change of a branch's state.
 */
#ifndef AB_EVENTS_H
#define AB_EVENTS_H

#include "ab_eventnotes.h"

/* Columns of branch.event_log. */
enum
{
	AB_EVENT_COL_ID,
	AB_EVENT_COL_AT,
	AB_EVENT_COL_EVENT,
	AB_EVENT_COL_BRANCH,
	AB_EVENT_COL_BRANCH_ID,
	AB_EVENT_COL_PARENT,
	AB_EVENT_COL_BY,
	AB_EVENT_COL_OWNER_ID,
	AB_EVENT_COL_DETAIL,
	AB_EVENT_COLS
};

/*
 * Say that something has happened to a database, in the caller's transaction:
 * nothing is left of it if that, or the subtransaction, is rolled back.  The row is
 * written when the transaction commits, and the keeper sends the notification then.
 * A transaction that has said something cannot be prepared.
 *
 * event is a past participle in lower case.  branch and parent are names, parent may
 * be NULL; where a database goes away its event has to come before its row in
 * pg_database does.  detail_json is a JSON object or NULL for an empty one, and is
 * checked here.  In another than the control database it is the keeper that writes
 * the event, right after the commit.  Before CREATE EXTENSION nothing is recorded.
 */
extern void ab_event(const char *event, Oid db, const char *branch,
					 const char *parent, const char *detail_json);

/*
 * Before something is said about a branch that this transaction has locked: if it may be
 * that nobody was told of its creation, because a crash or too many notes took that, let
 * event "created" come first.  ab_event() does this by itself; to be called where what it
 * is given is not the branch that has the name until now.
 */
extern void ab_event_make_known(Oid db, const char *name);

/*
 * Something may happen to a database that cannot be told from here: when this
 * transaction has committed, all branches are compared with all events.
 */
extern void ab_event_find_out(void);

/* The event of a note; the caller writes on behalf of others and waits for nobody. */
extern void ab_event_from_note(const AbNote *note);

/* Can events be written here: is this the control database, with the extension? */
extern bool ab_events_writable(void);

/* OID of branch.event_log; InvalidOid without the extension.  Of its sequence. */
extern Oid	ab_events_table(void);
extern Oid	ab_events_sequence(void);

#endif							/* AB_EVENTS_H */
