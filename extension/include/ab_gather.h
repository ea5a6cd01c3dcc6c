/*
 * ab_gather.h
 *	  Moving the origins of branches that nobody has been in from files of their own into
 *	  the one of ab_originpack.h.
 */
#ifndef AB_GATHER_H
#define AB_GATHER_H

#include "ab_wal.h"

/* Are there as many new ones that it is time to? */
extern bool ab_gather_is_due(void);

/* An origin file has been made: have it done when it is time. */
extern void ab_gather_note_new(void);

/*
 * Gather all that can be.  In a transaction; raises nothing but for interrupts (WARNING:
 * then they are left as they were).
 */
extern void ab_gather(void);

/*
 * At server start: make the other list of keys (ab_originkeys.h) if there is none, for older
 * versions of the library left none, or it is damaged.  A WARNING if that fails.
 */
extern void ab_gather_begin(void);

/* Same from WAL, and what it says is missing is made. */
extern void ab_gather_redo(const xl_ab_gather *rec);

#endif							/* AB_GATHER_H */
