/*
 * ab_originkeys.h
 *	  Whose origins are gathered, once more and in a file of its own (format: ab_format.h;
 *	  G8 of extension/README).
 */
#ifndef AB_ORIGINKEYS_H
#define AB_ORIGINKEYS_H

#include "ab_format.h"

typedef enum AbKeysAnswer
{
	AB_KEYS_UNKNOWN,			/* there is no such file, or it is damaged */
	AB_KEYS_HAVE,				/* its origin may have been gathered */
	AB_KEYS_HAVE_NOT			/* it has not */
} AbKeysAnswer;

/* Raises nothing. */
extern AbKeysAnswer ab_originkeys_ask(Oid db);

/* All of them, sorted, palloc'd; NULL: that is not known.  Raises nothing. */
extern Oid *ab_originkeys_read(int *n);

/* Where one is among those, or -1. */
extern int	ab_originkeys_place(Oid db, const Oid *keys, int n);

/* Is there any? */
extern bool ab_originkeys_any(void);

/*
 * Write the file anew, durably.  The caller holds gather_lock.
 */
extern void ab_originkeys_write(const Oid *keys, int n);

/* Remove it: nothing is gathered any more.  The caller holds gather_lock. */
extern void ab_originkeys_drop(void);

/*
 * Of one whose entry cannot be found, to be marked dead: take it out here.  False (WARNING) if
 * that cannot be done.  The caller holds gather_lock.
 */
extern bool ab_originkeys_remove(Oid db);

#endif							/* AB_ORIGINKEYS_H */
