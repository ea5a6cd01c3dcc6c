/*
 * ab_quotaload.h
 *	  From table branch.quota_list into shared memory.
 */
#ifndef AB_QUOTALOAD_H
#define AB_QUOTALOAD_H

#include "ab_types.h"

/*
 * Once after start, by the keeper: nobody can create a branch before.  A transaction of
 * its own; false: it did not work, try again later.
 */
extern bool ab_quotaload_first(void);

/*
 * By the sweeper, in its transaction: drop quotas of roles and databases that are gone,
 * and have in shared memory what the table has, should the extension have been dropped
 * or created anew.
 */
extern void ab_quotaload_refresh(void);

#endif							/* AB_QUOTALOAD_H */
