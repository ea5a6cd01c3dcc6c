/*
 * ab_quotacount.h
 *	  Counting the branches that a quota is about.
 */
#ifndef AB_QUOTACOUNT_H
#define AB_QUOTACOUNT_H

#include "ab_quotatable.h"

/* Those that can be seen in the snapshot; -1: something changed under the count. */
extern int64 ab_quotacount_branches(AbQuotaKey key, Snapshot snapshot);

/* Disk space of the pages that they have written, deleted ones included. */
extern int64 ab_quotacount_bytes(AbQuotaKey key);

#endif							/* AB_QUOTACOUNT_H */
