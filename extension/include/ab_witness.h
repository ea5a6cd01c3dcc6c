/*
 * ab_witness.h
 *	  Has the server run without this library, or do its files come from somewhere
 *	  where before-images were not kept?  Then snapshots that rely on them are void.
 */
#ifndef AB_WITNESS_H
#define AB_WITNESS_H

#include "ab_format.h"

#include "access/xlogreader.h"
#include "catalog/pg_control.h"
#include "nodes/pg_list.h"

/* In the postmaster, first of all: FATAL if the library has run here and its directories are gone. */
extern void ab_witness_expect_dirs(void);

/*
 * In the postmaster, before anything reads manifests: judge (at its own start only)
 * what was done to the data directory since we last saw it, poison the live snapshots
 * if they cannot be trusted, and take note that a run begins.
 */
extern void ab_witness_begin(const ControlFileData *control);

/* In the postmaster: poison the live snapshots of one database, durably. */
extern void ab_witness_poison_database(Oid db, const char *reason);

/*
 * The startup process, when replay begins: put the tripwires up.  Never raises.
 */
extern void ab_witness_replay_begins(void);

/* The keeper, first of all: the same if need be; recovery is over.  Never raises. */
extern void ab_witness_recovered(void);

/*
 * The keeper, in its loop: log a WITNESS record after each new redo pointer while
 * there are live snapshots.  Returns in how many ms to call it again; -1: when woken.
 */
extern long ab_witness_tend(void);

/* The startup process, after the redo of one of our records. */
extern void ab_witness_note_redo(XLogReaderState *record);

/* The same, when the end of a base backup was replayed. */
extern void ab_witness_backup_ends(void);

/* ---- ab_trust.c, for ab_witness.c only ---- */

/* A snapshot whose pages are in its parent's files. */
typedef struct AbLiveSnapshot
{
	AbSnapId	id;
	Oid			source_db;
} AbLiveSnapshot;

/* What backup_label says, if there is one. */
typedef struct AbBackupLabel
{
	bool		there;
	bool		from_primary;	/* the only kind that can be trusted */
	bool		rewound;		/* made by pg_rewind */
	XLogRecPtr	checkpoint;
} AbBackupLabel;

extern void ab_trust_read_label(AbBackupLabel *label);

/* Why the live snapshots cannot be trusted; NULL if they can. */
extern const char *ab_trust_judge(const AbWitness *last, const ControlFileData *control,
								  const AbBackupLabel *label, const List *live);

#endif							/* AB_WITNESS_H */
