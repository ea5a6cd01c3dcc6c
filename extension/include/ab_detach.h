/*
 * ab_detach.h
 *	  Making a branch an ordinary database.
 */
#ifndef AB_DETACH_H
#define AB_DETACH_H

#include "ab_types.h"

/*
 * Copy what the branch inherits, now, and have it detached when the transaction
 * commits.  3D000, 42501, 42809 not a branch, 55000 protected, 55006 sessions (force:
 * they are ended) or children, 53100 no room, XX001 damaged.
 */
extern void ab_detach_branch(const char *name, bool force);

/* Will this transaction detach it? */
extern bool ab_detach_is_pending(Oid db);

#endif							/* AB_DETACH_H */
