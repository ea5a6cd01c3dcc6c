/*
 * ab_poisonmark.h
 *	  Files that say that a snapshot must not be read any more.
 */
#ifndef AB_POISONMARK_H
#define AB_POISONMARK_H

#include "ab_types.h"

/*
 * Make one, durably: allocates and raises nothing.  False: it could not be made, neither
 * among the snapshots' files nor beside agent_branch.
 */
extern bool ab_poisonmark_make(AbSnapId id);

/* Is this the name of one beside agent_branch, and of which snapshot? */
extern bool ab_poisonmark_parse_beside(const char *name, AbSnapId *id);

/* Of one that is beside agent_branch: is it there?  And remove it with its snapshot. */
extern bool ab_poisonmark_is_beside(AbSnapId id);
extern void ab_poisonmark_remove_beside(AbSnapId id);

#endif							/* AB_POISONMARK_H */
