/*
 * ab_joblock.h
 *	  One run of a job at a time, whoever starts it.
 */
#ifndef AB_JOBLOCK_H
#define AB_JOBLOCK_H

#include "postgres.h"

/*
 * Take the lock of a job, to the end of the transaction or until it is let go (session:
 * at the latest when that ends).  False: another session has it; nobody waits.
 */
extern bool ab_joblock_take(const char *job, bool session);

/* False: this session did not have it. */
extern bool ab_joblock_release(const char *job);

#endif							/* AB_JOBLOCK_H */
