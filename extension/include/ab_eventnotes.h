/*
 * ab_eventnotes.h
 *	  Notes about events in databases that cannot write branch.events.
 *
 * CREATE DATABASE ... STRATEGY branch and DROP DATABASE work from any database.  What
 * they do is noted in shared memory, and the keeper writes the event as soon as the
 * transaction has committed.  Notes that are lost, by a crash or because there are too
 * many, are made up for by a comparison of all branches with all events
 * (ab_eventsync.c).
 */
#ifndef AB_EVENTNOTES_H
#define AB_EVENTNOTES_H

#include "ab_types.h"

#include "datatype/timestamp.h"

#define AB_NOTES 128
#define AB_NOTE_EVENT_LEN 16
#define AB_NOTE_DETAIL_LEN 96

/*
 * FREE -> PENDING (pre-commit of who made it) -> READY (committed) -> TAKEN (the
 * keeper writes it) -> FREE (written), or READY again.  PENDING -> FREE: aborted.
 * Whoever sees a database sees its note in one of these states, or its event.
 */
typedef enum AbNoteState
{
	AB_NOTE_FREE,
	AB_NOTE_PENDING,
	AB_NOTE_READY,
	AB_NOTE_TAKEN
} AbNoteState;

typedef struct AbNote
{
	AbNoteState state;			/* event_lock, as all of it */
	pid_t		pid;			/* of who made it, while PENDING */
	uint64		seq;			/* order in which they are written */
	TimestampTz at;
	Oid			db;
	Oid			owner;
	bool		if_untold;		/* a creation: only if the log does not have it */
	char		event[AB_NOTE_EVENT_LEN];
	char		branch[NAMEDATALEN];
	char		parent[NAMEDATALEN];	/* empty: none */
	char		by[NAMEDATALEN];
	char		detail[AB_NOTE_DETAIL_LEN]; /* a JSON object */
} AbNote;

/* Pre-commit: false if there is no room. */
extern bool ab_eventnotes_put(const AbNote *note);

/* After commit or abort: this process's notes become READY or go. */
extern void ab_eventnotes_settle(bool committed);

extern bool ab_eventnotes_any_ready(void);

/* The keeper: copy up to max READY notes in order, which are TAKEN now. */
extern int	ab_eventnotes_take(AbNote *notes, int max);

/* The keeper: they are written, or are to be taken again. */
extern void ab_eventnotes_done(bool written);

/* Is there a note about this database, in any state? */
extern bool ab_eventnotes_has(Oid db);

/*
 * Wait until there is none, so that events of one database are written in order.
 * False: given up after a while, for the keeper may be away.
 */
extern bool ab_eventnotes_wait(Oid db);

/*
 * Have all branches compared with all events.  Each wish has a number; the second
 * function gives the last one if no comparison was begun since, else 0; the third
 * says that one begun then has been committed.
 */
extern void ab_eventnotes_want_comparison(void);
extern uint64 ab_eventnotes_comparison_wanted(void);
extern void ab_eventnotes_compared(uint64 wanted);

#endif							/* AB_EVENTNOTES_H */
