/*
 * ab_storagefiles.h
 *	  The pieces ab_storage.c and ab_storage_redo.c are made of: directories and
 *	  small files of one branch database.  No WAL, no catalogs, no shared state
 *	  except the origin's.
 */
#ifndef AB_STORAGEFILES_H
#define AB_STORAGEFILES_H

#include "ab_manifest.h"
#include "ab_origin.h"
#include "ab_wal.h"

#include "nodes/pg_list.h"

/*
 * Existing directories (or files in their place) of that number in every
 * tablespace, palloc'd names.  elevel: for a pg_tblspc that cannot be read.
 */
extern List *ab_storage_dirs(Oid db, int elevel);

/* The same in two steps: OIDs of all tablespaces, and a look into one. */
extern List *ab_storage_tablespaces(int elevel);
extern bool ab_storage_dir_exists(Oid db, Oid spc);

/* Remove them all; false, after a WARNING, if something is left. */
extern bool ab_storage_remove_dirs(Oid db);

/*
 * Its directory is there.  Nobody makes it but CREATE TABLESPACE and recovery: in the mount point
 * of a filesystem that is not mounted it would make branches pass for such that have no pages of
 * their own in it, and what they write would be hidden when that is mounted again.
 */
extern bool ab_storage_has_tablespace(Oid spc);
extern void ab_storage_require_tablespace(Oid spc);

/* The directory in the default tablespace of the branch; false if there was one. */
extern bool ab_storage_make_dir(Oid db, Oid spc);

/* OIDs of all databases that have a directory in some tablespace; some twice. */
extern List *ab_storage_databases_with_files(void);

/* Each appears under its name whole, not synced, and replaces what has that name. */
extern void ab_storage_write_version(Oid db, Oid spc);
extern void ab_storage_write_relmap(Oid db, Oid spc, const char *relmap);

/* Are the two small files whole, as far as can be told without the manifest? */
extern bool ab_storage_version_sound(Oid db, Oid spc);
extern bool ab_storage_relmap_sound(Oid db, Oid spc);

/* The same at a glance, by their lengths. */
extern bool ab_storage_has_small_files(Oid db, Oid spc);

/*
 * The manifest, or NULL with *missing saying whether there is none at all (as
 * opposed to one that is damaged or poisoned).
 */
extern AbManifest *ab_storage_try_manifest(AbSnapId snapshot, bool *missing);

/*
 * A creation has begun and its origin file is not there yet: without this mark
 * (an empty file agent_branch/branches/<db>.new) nobody could tell after a crash
 * that base/<db> is garbage.
 */
extern void ab_storage_mark(Oid db);
extern void ab_storage_unmark(Oid db);	/* warns, never raises */
extern List *ab_storage_marked(void);	/* OIDs */

/* Are there any?  Their init forks must be there before a crash. */
extern bool ab_storage_has_unlogged(const AbManifest *m);

/* Unlogged relations, empty as their init forks say; synced with directories. */
extern void ab_storage_make_unlogged(Oid db, const AbManifest *m, bool redo);

/* The origin file a creation record stands for, counted as a user of its snapshot. */
extern void ab_storage_write_origin(const xl_ab_branch_create *rec,
									AbSnapId incarnation, bool durably);

/* Header of the origin file; false if there is none, or (WARNING) it is damaged. */
extern bool ab_storage_read_origin(Oid db, AbOriginHeader *header);

/* The same of the i-th of those that have been listed. */
extern bool ab_storage_read_listed(const AbOrigins *origins, int i, AbOriginHeader *header);

/* The origin that a record names, as it is, durably; counted as above. */
extern void ab_storage_restore_origin(const AbOriginHeader *header, bool durably);

/* Remove the origin file, if there is one, and its reference to its snapshot. */
extern void ab_storage_drop_origin(Oid db);

/* The same of one that has been read before: now it is not. */
extern void ab_storage_drop_known_origin(const AbOriginHeader *header);

#endif							/* AB_STORAGEFILES_H */
