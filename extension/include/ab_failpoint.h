/*
 * ab_failpoint.h
 *	  Named places at which a test stops, kills or fails a process of the server.
 *
 * Only a library that was made with "make FAILPOINTS=1" has them; in any other they
 * are nothing.  What happens at which of them is said by a file in the data directory
 * (AB_FAILPOINT_FILE), which the test and all processes have mapped: so it can be said
 * to a running server, to its startup process, and to a standby, each in their own
 * directory, and outlives them.
 */
#ifndef AB_FAILPOINT_H
#define AB_FAILPOINT_H

#ifdef AB_FAILPOINTS

#include "postgres.h"

#define AB_FAILPOINT_FILE	"agent_branch.failpoints"
#define AB_FAILPOINT_NAME	48	/* bytes of a name, with its end */
#define AB_FAILPOINT_NAMES	256 /* different ones that are counted */

/* may_fail: an error may be raised there; elsewhere the process dies instead. */
extern void ab_failpoint(const char *name, bool may_fail);

#define AB_FAILPOINT(name) ab_failpoint(name, true)
#define AB_FAILPOINT_NO_ERROR(name) ab_failpoint(name, false)

#else

#define AB_FAILPOINT(name) ((void) 0)
#define AB_FAILPOINT_NO_ERROR(name) ((void) 0)

#endif							/* AB_FAILPOINTS */

#endif							/* AB_FAILPOINT_H */
