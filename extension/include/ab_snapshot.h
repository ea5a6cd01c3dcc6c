/*
 * ab_snapshot.h
 *	  Taking, finding and retiring snapshots.
 */
#ifndef AB_SNAPSHOT_H
#define AB_SNAPSHOT_H

#include "ab_manifest.h"
#include "ab_shmem.h"

#include "access/xlogreader.h"

/*
 * A usable snapshot of the database as it is now: its newest one if nothing was
 * written since (no file of the source is touched then), else a new one.  Within
 * one transaction the same source gives the same snapshot ("a transaction
 * branches each parent at one moment").  force_new skips the reuse.
 *
 * On return this transaction holds AccessShareLock on the hidden database of the
 * snapshot until it ends (rule 29: its frozen xids cannot be overtaken).  The
 * caller holds AccessShareLock on the source database.
 */
extern AbSnapId ab_snapshot_get(Oid source_db, bool force_new);

/*
 * The same lock for a snapshot of the past.  55000 if no branch can be made of it any
 * more, XX001 if it is poisoned.  The caller holds AccessShareLock on the source
 * database, unless that is gone.
 */
extern void ab_snapshot_get_at(AbSnapId id);

/* Could a branch be made of it now?  Nothing is locked, so the answer may be old. */
extern bool ab_snapshot_is_usable(const AbSnapSlot *slot);

/* Name of the pg_database row that stands for a snapshot, and the inverse. */
extern char *ab_hidden_name(AbSnapId id);
extern bool ab_hidden_name_parse(const char *datname, AbSnapId *id);

/* Names that begin like those are kept from other databases. */
extern bool ab_hidden_name_is_reserved(const char *datname);

/* "<id><suffix>" in agent_branch/snapshots? */
extern bool ab_snapshot_parse_file(const char *name, const char *suffix, AbSnapId *id);

/*
 * ab_snapshot_take.c, for ab_snapshot.c only.  Take a new snapshot and return its id;
 * or false, if in the meantime another session has taken one that is not *known
 * (NULL: take one in any case).
 */
extern bool ab_snapshot_take(Oid source_db, const char *dbname,
							 const AbSnapId *known, AbSnapId *id);

/* A snapshot that another step of taking or redo gave up: its files, not the WAL. */
extern void ab_snapshot_remove_files(AbSnapId id, uint32 what);

/*
 * Remove manifest and/or layer files (AB_RETIRE_*), WAL-logged and durable.  The
 * caller has made sure nobody needs them; the hidden row is gone already.
 */
extern void ab_snapshot_retire(AbSnapId id, uint32 what);

/* The plain database whose before-image snapshot it is; InvalidOid: it is none. */
extern Oid	ab_snapshot_live_source(AbSnapId id);

/*
 * Give back what before-image snapshots of a plain database had kept and no living
 * one needs: saved pages, files of dropped relations.  Bytes.  May be interrupted and
 * repeated.  leaving (AbSnapId *): for a dry run, snapshots to be retired.
 */
extern int64 ab_snapshot_reclaim(Oid db, List *leaving, bool dry_run);

/* Used by ab_redo.c. */
extern void ab_snapshot_redo(XLogReaderState *record);
extern void ab_confirm_redo(XLogReaderState *record);
extern void ab_retire_redo(XLogReaderState *record);
extern void ab_unkeep_redo(XLogReaderState *record);

/* Before each record and when replay is over: give back what had to wait for a backup's end. */
extern void ab_retire_redo_rest(void);

/* Remove tmp.* and .pending files: in the postmaster for tmp.*; pending ones, and
 * those that recovery has not reached, when recovery has ended. */
extern void ab_snapshot_remove_tmp(void);
extern void ab_snapshot_remove_pending(void);

#endif							/* AB_SNAPSHOT_H */
