/*
 * ab_complete.h
 *	  Making a branch's own files complete, so that it can do without its snapshot.
 */
#ifndef AB_COMPLETE_H
#define AB_COMPLETE_H

#include "ab_format.h"
#include "ab_wal.h"

/*
 * What there is to know of a branch whose files are complete, to detach it.
 */
typedef struct AbComplete
{
	Oid			db;
	AbOriginHeader origin;
	uint64		pages;			/* below the limits, those that are zeros included */
	uint64		copied;			/* of these now, in this run */
	char		relmap[AB_RELMAP_SIZE];
} AbComplete;

/*
 * Copy what the branch still inherits into its own files, log it, and compare.  When
 * this returns everything of the branch is durable, in its files and in WAL; until then
 * nothing has changed that anybody could tell, and it may be tried again.  The caller
 * holds AccessExclusiveLock on the database object; no sessions and no live snapshots
 * of it are of use to anybody.  name: for messages.
 */
extern void ab_complete_files(Oid db, const char *name, AbComplete *c);

/*
 * Make it a plain database: logged, then its origin goes.  Nothing has happened to the
 * branch since ab_complete_files().  Raises nothing that the caller could mend.
 */
extern void ab_complete_detach(const AbComplete *c);

/* The same from WAL; relmap: AB_RELMAP_SIZE bytes. */
extern void ab_complete_detach_redo(const xl_ab_branch_detach *rec, const char *relmap);

/* ---- for both (ab_complete_files.c) ---- */

/* Own files of their full length for all forks that the branch inherits. */
extern void ab_complete_make_files(Oid db, const AbOriginHeader *origin, bool log);

/* Sync every file and directory of the database, and their names. */
extern void ab_complete_sync(Oid db);

#endif							/* AB_COMPLETE_H */
