/*
 * ab_file.h
 *	  Durable small files.  All paths are relative to the data directory.
 *	  Nothing here uses a VFD: these files are opened, used and closed.
 *	  Errors are raised with the file's name and errno's SQLSTATE.
 */
#ifndef AB_FILE_H
#define AB_FILE_H

#include "ab_format.h"

extern void ab_file_make_dirs(void);	/* agent_branch/ and below, idempotent */

/* Whole file, palloc'd; NULL if it does not exist. */
extern char *ab_file_read(const char *path, size_t *len);

/* Write under a tmp. name, fsync, rename into place, fsync the directory. */
extern void ab_file_write_durably(const char *path, const void *data, size_t len);

/*
 * The same under a given temporary name, synced or not; the directory is left to the
 * caller.
 */
extern void ab_file_write_via(const char *tmp, const char *path,
							  const void *data, size_t len, bool sync);

/* unlink; false if it did not exist. */
extern bool ab_file_remove(const char *path);

/* The same, and fsync the directory. */
extern bool ab_file_remove_durably(const char *path);

/* Sync the directory that holds path. */
extern void ab_file_sync_parent(const char *path);

extern bool ab_file_exists(const char *path);

/* Does the path lead to the file of that descriptor?  Allocates and raises nothing. */
extern bool ab_file_has_name(int fd, const char *path);

/* A fresh name agent_branch/snapshots/tmp.<pid>.<n>, palloc'd. */
extern char *ab_file_tmp_name(void);

/* CRC of len bytes in which the 4 bytes at crc_offset count as zero. */
extern pg_crc32c ab_crc_without(const void *data, size_t len, size_t crc_offset);

extern char *ab_origin_path(Oid db);	/* palloc'd */
extern char *ab_snapshot_path(AbSnapId id, const char *suffix); /* palloc'd */

#endif							/* AB_FILE_H */
