/*
 * ab_smgr.h
 *	  The storage entry points that ab_attach.c puts into the server's table.
 */
#ifndef AB_SMGR_H
#define AB_SMGR_H

#include "ab_compat.h"

#include "storage/smgr.h"

extern void ab_smgr_create(SMgrRelation reln, ForkNumber fork, bool isRedo);
extern bool ab_smgr_exists(SMgrRelation reln, ForkNumber fork);
extern void ab_smgr_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo);
extern void ab_smgr_extend(SMgrRelation reln, ForkNumber fork, BlockNumber block,
						   char *buffer, bool skipFsync);
extern bool ab_smgr_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber block);
extern void ab_smgr_read(SMgrRelation reln, ForkNumber fork, BlockNumber block,
						 char *buffer);
extern void ab_smgr_write(SMgrRelation reln, ForkNumber fork, BlockNumber block,
						  char *buffer, bool skipFsync);
extern BlockNumber ab_smgr_nblocks(SMgrRelation reln, ForkNumber fork);
extern void ab_smgr_truncate(SMgrRelation reln, ForkNumber fork,
							 BlockNumber old_blocks, BlockNumber nblocks);

#endif							/* AB_SMGR_H */
