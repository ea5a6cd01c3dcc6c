/*
 * ab_default.h
 *	  Which database is branched when no parent is named.
 */
#ifndef AB_DEFAULT_H
#define AB_DEFAULT_H

#include "ab_types.h"

/*
 * Its name, palloc'd; whether there is such a database has to be seen.  What a
 * session or its role has set comes first, then what the control database has as it
 * is committed now, then the configuration.
 */
extern char *ab_default_parent_name(void);

/*
 * Set it in the control database, for present and for new sessions; undone by
 * rollback.  The caller has checked rights.
 */
extern void ab_default_parent_set(const char *name);

/* The database that the control database names was renamed: follow it. */
extern void ab_default_parent_follow(const char *name, const char *new_name);

#endif							/* AB_DEFAULT_H */
