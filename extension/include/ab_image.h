/*
 * ab_image.h
 *	  Logging a full page image under a branch's own tag (F1, rules 4 and 7).
 */
#ifndef AB_IMAGE_H
#define AB_IMAGE_H

#include "ab_types.h"

#include "access/xlogreader.h"

/* May this process insert WAL here?  (rule 14: not in recovery, and not in a
 * shutdown or end-of-recovery checkpoint.) */
extern bool ab_image_allowed(void);

/*
 * Insert an image record for a private copy of the page; the page itself,
 * its LSN in particular, is left alone.  Returns the record's end.
 */
extern XLogRecPtr ab_image_log(RelFileNode rnode, ForkNumber fork,
							   BlockNumber block, const char *page);

extern void ab_image_redo(XLogReaderState *record);

/*
 * Pages that were read during recovery could not be adopted, and promotion, unlike
 * crash recovery, ends without a checkpoint.  The startup process notes which
 * inherited LSNs that concerns; whoever writes such a page first asks.
 */
extern void ab_image_note_promotion(void);
extern bool ab_image_was_skipped(XLogRecPtr inherited_lsn);

#endif							/* AB_IMAGE_H */
