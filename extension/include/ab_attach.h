/*
 * ab_attach.h
 *	  How this library gets into the storage manager.  Only ab_attach.c knows.
 */
#ifndef AB_ATTACH_H
#define AB_ATTACH_H

#include "ab_compat.h"

/* Find and patch the table of storage functions; FATAL if anything differs. */
extern void ab_attach(void);

/* Call every slot once through the server; FATAL if one did not arrive. */
extern void ab_attach_self_test(void);

#endif							/* AB_ATTACH_H */
