/*
 * ab_attempt.h
 *	  Steps that may fail while others go on.
 */
#ifndef AB_ATTEMPT_H
#define AB_ATTEMPT_H

#include "postgres.h"

/*
 * Run a step in a subtransaction, and give back the error it ends with, palloc'd, or
 * NULL.  A cancelled query is raised again.  The user id is as before in any case.
 */
extern ErrorData *ab_attempt(void (*step) (void *arg), void *arg);

#endif							/* AB_ATTEMPT_H */
