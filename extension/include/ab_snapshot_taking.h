/*
 * ab_snapshot_taking.h
 *	  A snapshot in the making, and the steps of it that have files of their own.  For
 *	  ab_snapshot_take.c, _log.c and _mend.c only.
 */
#ifndef AB_SNAPSHOT_TAKING_H
#define AB_SNAPSHOT_TAKING_H

#include "ab_manifest.h"
#include "ab_method.h"

#include "portability/instr_time.h"
#include "utils/timestamp.h"

typedef struct AbTaking
{
	const char *dbname;
	TimestampTz deadline;
	MemoryContext cxt;			/* everything; gone at the end */
	AbCapture	capture;
	AbManifestHeader header;
	char	   *image;			/* of the manifest, built last */
	size_t		image_len;
	AbManifest	view;			/* of that image */
	XLogRecPtr	window;			/* start of the flush before the capture */
	uint32		no_unlinks;		/* mark from before the files were listed */
	instr_time	flushing;		/* spent on what was dirty */
	instr_time	waiting;		/* spent on transactions that wrote */
	XLogRecPtr	record;			/* where the WAL record begins */
	AbSnapId	id;				/* valid from its WAL record, its end, until given up */
	bool		late;			/* between ab_latesync_begin() and _end() */
	bool		hidden_asked;	/* the keeper may have committed a row */
	bool		done;			/* CONFIRM is logged: nothing is undone now */
} AbTaking;

/*
 * Step 4: log SNAPSHOT; a snapshot that is live is so from its position on.  False, if a
 * transaction wrote meanwhile: try again.
 */
extern bool ab_taking_log(AbTaking *t);

/*
 * Step 5: capture again what was touched since t->window.  False if only a new attempt
 * helps.
 */
extern bool ab_taking_mend(AbTaking *t);

/* Step 6, but of a live snapshot. */
extern void ab_taking_write_files(AbTaking *t);

/* Step 8. */
extern void ab_taking_confirm(AbTaking *t);

/* After an error: what belongs to a record may be waited for no longer. */
extern void ab_taking_end_late(AbTaking *t);

#endif							/* AB_SNAPSHOT_TAKING_H */
