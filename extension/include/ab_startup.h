/*
 * ab_startup.h
 *	  What happens in the postmaster before the startup process begins.
 */
#ifndef AB_STARTUP_H
#define AB_STARTUP_H

#include "ab_compat.h"

/* After ab_shmem_install_hooks(): shared memory must be there when it runs. */
extern void ab_startup_install_hook(void);

#endif							/* AB_STARTUP_H */
