/*
 * ab_awaited.h
 *	  Inherited pages that replay of a base backup's files has to wait for.
 */
#ifndef AB_AWAITED_H
#define AB_AWAITED_H

#include "ab_types.h"

#include "access/xlogreader.h"
#include "storage/relfilenode.h"

/*
 * In any process: is this the startup process, which replays the files of a primary's base
 * backup, and not to their end yet?  Then what a branch inherits may be from the future.
 */
extern bool ab_awaited_here(void);

/* Replay has asked for an inherited page of a main fork, and got zeros. */
extern void ab_awaited_note(RelFileNode rnode, BlockNumber block);

/* Replay has come to a BACKUP_END record: if it is this backup's, nothing is awaited any more. */
extern void ab_awaited_backup_ends(XLogReaderState *record);

#endif							/* AB_AWAITED_H */
