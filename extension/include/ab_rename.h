/*
 * ab_rename.h
 *	  Giving a branch another name.
 */
#ifndef AB_RENAME_H
#define AB_RENAME_H

#include "ab_types.h"

/*
 * Change name and, unless NULL, datallowconn of a database that the caller has locked
 * AccessExclusive and that nobody is connected to; the new name is free and locked, or
 * reserved.  Returns whether connections were allowed before.
 */
extern bool ab_change_database(Oid db, const char *name, const bool *allow_connections);

/*
 * Rename a branch: 3D000, 42P04, 42501, 55006 if it is used.  The setting of the
 * control database that makes it the default parent follows.  Returns its OID.
 */
extern Oid	ab_rename_branch(const char *name, const char *new_name, bool force);

/* Names are for those who may create databases: 42501. */
extern void ab_check_may_name(const char *what, const char *name);

#endif							/* AB_RENAME_H */
