/*
 * ab_recovery.h
 *	  Where recovery begins, and whether the files it begins with are all of one time.
 */
#ifndef AB_RECOVERY_H
#define AB_RECOVERY_H

#include "ab_types.h"

#include "catalog/pg_control.h"

/*
 * In the postmaster, before recovery.  Are these the files of a base backup that has
 * not been replayed to its end?  Then they may be from different times.  *redo: where
 * replay will begin.
 */
extern bool ab_recovery_from_backup(const ControlFileData *control, XLogRecPtr *redo);

/* In the startup process: is such a backup being replayed, and not to its end yet? */
extern bool ab_recovery_in_backup(void);

#endif							/* AB_RECOVERY_H */
