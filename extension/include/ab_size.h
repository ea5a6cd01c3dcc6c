/*
 * ab_size.h
 *	  How large a branch is: what its users see, and what it has of its own.
 */
#ifndef AB_SIZE_H
#define AB_SIZE_H

#include "ab_types.h"

/* Disk space of relation files that the branch has written. */
extern int64 ab_size_own_pages(Oid db);

/* Sum of all forks' lengths as a session in the branch sees them.  False if the
 * snapshot cannot be read or the branch is gone. */
extern bool ab_size_logical(Oid db, int64 *bytes);

/* Both, looking at its files once. */
extern bool ab_size_both(Oid db, int64 *logical, int64 *own_pages);

#endif							/* AB_SIZE_H */
