/*
 * ab_sql_registry.h
 *	  Arguments of SQL functions that end in table branch.registry.
 */
#ifndef AB_SQL_REGISTRY_H
#define AB_SQL_REGISTRY_H

#include "ab_registry.h"

#include "fmgr.h"

/*
 * What branch.create and its like say about the new branch, in four arguments from
 * number first on: expires_in interval, protected boolean, suspend_timeout interval,
 * labels jsonb.  22023 on bad values.  Returns which fields of the row are to be
 * written: none if all have their defaults.
 */
extern uint32 ab_sql_registry_arguments(FunctionCallInfo fcinfo, int first,
										AbRegistryRow *row);

/*
 * The caller's branch of that name, locked against deletion and reset to the end of the
 * transaction; 3D000, 42809, 42501 as "cannot <verb> ...", 25006.
 */
extern Oid	ab_sql_lock_branch(const char *name, const char *verb);

#endif							/* AB_SQL_REGISTRY_H */
