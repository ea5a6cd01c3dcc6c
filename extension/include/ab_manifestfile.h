/*
 * ab_manifestfile.h
 *	  Reading pieces of a manifest from its file, where it cannot be mapped.
 *
 * Allocates and raises nothing.  What returns false sets errno.
 */
#ifndef AB_MANIFESTFILE_H
#define AB_MANIFESTFILE_H

#include "ab_format.h"

typedef struct AbManifestFile
{
	int			fd;
	AbManifestHeader h;
	AbLayerRef	own;			/* layers[0] */
} AbManifestFile;

/* suffix: of the file's name.  Pair with _close. */
extern bool ab_manifestfile_open(AbSnapId id, const char *suffix, AbManifestFile *f);
extern void ab_manifestfile_close(AbManifestFile *f);

/* As ab_manifest_find() and ab_manifest_run(); *found: or is there none? */
extern bool ab_manifestfile_find(const AbManifestFile *f, AbForkKey key, AbForkEntry *e,
								 bool *found);
extern bool ab_manifestfile_run(const AbManifestFile *f, const AbForkEntry *e,
								BlockNumber block, AbRun *run, bool *found);

#endif							/* AB_MANIFESTFILE_H */
