/*
 * ab_sweeper.h
 *	  The sweeper: a short-lived worker that gives back what nobody needs.
 *
 * Not done in the keeper itself because a sweep waits for a checkpoint and for every
 * backend to close its files, and requests must not wait behind that.
 */
#ifndef AB_SWEEPER_H
#define AB_SWEEPER_H

#include "ab_compat.h"

#include "postmaster/bgworker.h"

/* Start one; NULL when no worker can be had.  The keeper's latch is set at its end. */
extern BackgroundWorkerHandle *ab_sweeper_start(void);

/* What the keeper and the sweeper set for themselves after connecting. */
extern void ab_sweeper_settings(void);

#endif							/* AB_SWEEPER_H */
