/*
 * ab_snapnames.h
 *	  Names of snapshots: what happens to them is told, and what is over ends.
 */
#ifndef AB_SNAPNAMES_H
#define AB_SNAPNAMES_H

#include "ab_types.h"

/*
 * An event of a named snapshot.  source_name: what the database was called when it got
 * the name, for one that is no more.
 */
extern void ab_snapnames_report(const char *event, const char *name, Oid source,
								const char *source_name);

/*
 * Names whose time is over go, and those whose snapshot has been closed are marked:
 * they protect nothing any more.
 */
extern void ab_snapnames_expire(void);

#endif							/* AB_SNAPNAMES_H */
