/*
 * ab_journal.h
 *	  Double-write journal for first overlay writes that WAL cannot cover
 *	  (during recovery and in the shutdown checkpoint; F6, rule 7).
 */
#ifndef AB_JOURNAL_H
#define AB_JOURNAL_H

#include "ab_types.h"

/*
 * Make the page durable in the journal.  Raises on I/O errors.  Returns with the
 * journal locked: the caller writes the page into its own file and then calls
 * ab_journal_release(), so that nobody recycles the slot in between.
 */
extern void ab_journal_write(RelFileNode rnode, ForkNumber fork,
							 BlockNumber block, const char *page);
extern void ab_journal_release(void);

/*
 * At server start, before redo: mend torn overlay pages.  checkpoint_redo: where redo
 * will begin, from the control file.
 */
extern void ab_journal_recover(XLogRecPtr checkpoint_redo);

#endif							/* AB_JOURNAL_H */
