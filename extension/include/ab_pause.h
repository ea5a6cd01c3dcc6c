/*
 * ab_pause.h
 *	  Waiting a moment for what sets nobody's latch.
 */
#ifndef AB_PAUSE_H
#define AB_PAUSE_H

#include "ab_types.h"

/*
 * At most so long, or until the latch is set; then interrupts are served.  Any process with
 * a latch; without LWLocks.  The caller looks again, and has a limit of his own.
 */
extern void ab_pause(int ms);

#endif							/* AB_PAUSE_H */
