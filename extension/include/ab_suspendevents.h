/*
 * ab_suspendevents.h
 *	  Events "suspended" and "resumed".
 *
 * Suspending takes effect at once, and who connects must not have to write.  So the worker
 * writes these events, in the transaction that writes to branch.activity what they tell of:
 * the log and the table never differ, also after a crash.
 */
#ifndef AB_SUSPENDEVENTS_H
#define AB_SUSPENDEVENTS_H

#include "ab_activity.h"

/*
 * Say what has happened to the branches of these rows since they were written last.  Before
 * they are written, within SPI; rows without a database are passed over.
 */
extern void ab_suspendevents_tell(const AbActivity *rows, int n);

#endif							/* AB_SUSPENDEVENTS_H */
