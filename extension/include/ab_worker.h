/*
 * ab_worker.h
 *	  What our background workers have in common.
 */
#ifndef AB_WORKER_H
#define AB_WORKER_H

#include "ab_types.h"

#include "postmaster/bgworker.h"

/*
 * One that connects to a database and runs function main_name of this library; what is its
 * name after "agent_branch", for those who look at processes.  It is to be started once
 * recovery is over, and not again when it ends; the caller may say otherwise.
 */
extern void ab_worker_describe(BackgroundWorker *worker, const char *what,
							   const char *main_name);

/* In the postmaster: start it with the server, and again restart_s after it has failed. */
extern void ab_worker_register(const char *what, const char *main_name, int restart_s);

#endif							/* AB_WORKER_H */
