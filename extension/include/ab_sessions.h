/*
 * ab_sessions.h
 *	  Getting the sessions of a database out of it.
 */
#ifndef AB_SESSIONS_H
#define AB_SESSIONS_H

#include "ab_types.h"

/*
 * End the other sessions of a database: idle ones at once, those in a transaction when
 * that is over, or when agent_branch.session_grace is.  The caller holds
 * AccessExclusiveLock on it, so no others come.  42501 without the right to end one of
 * them, 55006 if it has prepared transactions; then none is ended.
 */
extern void ab_sessions_end(Oid db, const char *name);

/* Raise 55006 if there are sessions or prepared transactions; waits 5 s for their end. */
extern void ab_sessions_check(Oid db, const char *name);

#endif							/* AB_SESSIONS_H */
