/*
 * ab_diskspace.h
 *	  The space that creations have to leave free.
 */
#ifndef AB_DISKSPACE_H
#define AB_DISKSPACE_H

#include "ab_compat.h"

#include "utils/guc.h"

/* 53400 if less than agent_branch.min_free_disk is free where the data directory is. */
extern void ab_diskspace_check(void);

/* The setting: bytes with a unit, or a percentage. */
extern bool ab_diskspace_check_setting(char **newval, void **extra, GucSource source);
extern void ab_diskspace_assign_setting(const char *newval, void *extra);

#endif							/* AB_DISKSPACE_H */
