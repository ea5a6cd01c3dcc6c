/*
 * ab_keptnames.h
 *	  Names beside the OIDs in tables that pg_dump writes.
 */
#ifndef AB_KEPTNAMES_H
#define AB_KEPTNAMES_H

/* Those that were changed by renaming; the sweeper, in a transaction. */
extern void ab_keptnames_refresh(void);

#endif							/* AB_KEPTNAMES_H */
