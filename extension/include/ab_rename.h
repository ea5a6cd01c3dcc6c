/*
 * ab_rename.h
 *	  Giving a branch another name.
 */
#ifndef AB_RENAME_H
#define AB_RENAME_H

#include "ab_types.h"

/*
 * Change name and datallowconn of a database that the caller has locked
 * AccessExclusive and that nobody is connected to; the new name is free and locked, or
 * reserved.  Returns whether connections were allowed before.
 */
extern bool ab_change_database(Oid db, const char *name, bool allow_connections);

#endif							/* AB_RENAME_H */
