/*
 * ab_keptnotes.h
 *	  The notes of which dropped relations' files are kept for snapshots (ab_kept.h):
 *	  agent_branch/images/<db>/dropped, and files of the same format.
 *
 * capture_lock protects the notes of a database.
 */
#ifndef AB_KEPTNOTES_H
#define AB_KEPTNOTES_H

#include "ab_format.h"

/* Durably.  False, and errno, if it fails; raises nothing.  The lock is held, exclusive. */
extern bool ab_keptnotes_add(Oid db, Oid spc, Oid rel);

/*
 * The sound notes, sorted, each relation once; palloc'd.  The lock is held, or
 * nobody else runs yet.
 */
extern AbKeptRelation *ab_keptnotes_read(Oid db, int *n);
extern AbKeptRelation *ab_keptnotes_read_file(const char *path, int *n);

/* A file of them, made anew, durably; raises. */
extern void ab_keptnotes_write(const char *path, const AbKeptRelation *relations, int n);

/* Are they, sorted, with one? */
extern bool ab_keptnotes_have(const AbKeptRelation *relations, int n, AbKeptRelation one);

/* Take sorted ones out of the notes; others may have been added.  Takes the lock; raises. */
extern void ab_keptnotes_forget(Oid db, const AbKeptRelation *gone, int ngone);

#endif							/* AB_KEPTNOTES_H */
