/*
 * ab_unseen.h
 *	  Blocks that the newest living snapshot of a database sees in the database's own
 *	  files, and the next one will not (README.before_images, E9).
 */
#ifndef AB_UNSEEN_H
#define AB_UNSEEN_H

#include "ab_manifest.h"

/*
 * Save these blocks for the newest living snapshot of db: "next", the manifest of the
 * one that is about to be live, lists the files as they are since.  NULL: it cannot be read
 * (errno), and whoever would need them is poisoned.
 *
 * Without the guard.  By the backend whose turn it is to take a snapshot of db, or by
 * the startup process; raises 53200 in the former only.
 */
extern void ab_unseen_save(Oid db, const AbManifest *next);

#endif							/* AB_UNSEEN_H */
