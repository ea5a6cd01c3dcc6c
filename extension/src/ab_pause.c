/*
 * ab_pause.c
 *	  Waiting a moment for what sets nobody's latch: sessions that leave, transactions that
 *	  end, a worker's round.
 *
 * Any process with a latch.  No shared state, no lock; a crash leaves nothing.
 */
#include "ab_pause.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"

void
ab_pause(int ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}
