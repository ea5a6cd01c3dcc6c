/*
 * ab_caught.h
 *	  Errors that are caught outside of a subtransaction, and told another way.
 *
 *		AbBeforeTry before = ab_before_try();
 *
 *		PG_TRY(); ... PG_CATCH();
 *		{
 *			ErrorData  *error = ab_caught(&before);
 *
 *			ereport(WARNING, ...);
 *			FreeErrorData(error);
 *		}
 *		PG_END_TRY();
 *
 * What was tried must have left nothing open but memory: nothing is rolled back.
 */
#ifndef AB_CAUGHT_H
#define AB_CAUGHT_H

#include "ab_compat.h"

typedef struct AbBeforeTry
{
	MemoryContext cxt;
	uint32		holdoff;		/* of interrupts */
} AbBeforeTry;

extern AbBeforeTry ab_before_try(void);

/*
 * Only in PG_CATCH(): all is as before again, but for LWLocks that were taken; those are the
 * caller's to release, before this.  The error is palloc'd in the memory of before.
 */
extern ErrorData *ab_caught(const AbBeforeTry *before);

/* The same if something is damaged or missing (XX001, 58P01); others are raised again. */
extern ErrorData *ab_caught_damage(const AbBeforeTry *before);

#endif							/* AB_CAUGHT_H */
