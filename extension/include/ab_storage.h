/*
 * ab_storage.h
 *	  The files of a branch database: making and removing them.  No catalogs.
 */
#ifndef AB_STORAGE_H
#define AB_STORAGE_H

#include "ab_format.h"
#include "ab_wal.h"

/*
 * Make the origin file (and base/<db>, if there are unlogged relations), and log it.  Registers the removal at (sub)transaction abort and
 * refuses PREPARE (rule 33).  The caller holds a lock on the database object db
 * since before this call, until the end of the transaction.
 */
extern void ab_storage_create(Oid db, Oid spc, Oid parent_db, AbSnapId snapshot);

/* Was database db created by the transaction that runs, as a branch? */
extern bool ab_storage_created_here(Oid db);

/* Same from WAL: wipes a foreign incarnation first (M7), idempotent. */
extern void ab_storage_create_redo(const xl_ab_branch_create *rec, XLogRecPtr end);

/* Any file or origin of that number in any tablespace? */
extern bool ab_storage_exists(Oid db);

/*
 * Remove everything of branch databases that have no pg_database row, in dropdb's
 * order, logged; dbs were locked AccessExclusive by the caller.  One checkpoint for
 * all of them.
 */
extern void ab_storage_remove(Oid *dbs, int n);
extern void ab_storage_remove_redo(const xl_ab_branch_drop *rec);

/*
 * After a crash PG_VERSION and pg_filenode.map of a branch may not have reached the
 * disk although its origin did: make them again.  In the postmaster, before redo.
 */
extern void ab_storage_repair_all(void);

/* Own bytes on disk (st_blocks) and number of own files, all tablespaces. */
extern void ab_storage_usage(Oid db, int64 *bytes, int64 *files);

#endif							/* AB_STORAGE_H */
