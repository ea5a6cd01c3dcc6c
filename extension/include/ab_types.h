/*
 * ab_types.h
 *	  The words every layer uses: snapshot ids, fork keys.
 *
 * A snapshot id is the timeline and end position of the WAL record that made
 * it, so it is never used twice (invariant S1 of extension/README).
 */
#ifndef AB_TYPES_H
#define AB_TYPES_H

#include "ab_compat.h"

#include "access/xlogdefs.h"
#include "common/relpath.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "storage/relfilenode.h"

typedef struct AbSnapId
{
	XLogRecPtr	lsn;			/* end of the XLOG_AB_SNAPSHOT record */
	TimeLineID	tli;
	uint32		pad;			/* always 0: ids are compared and hashed whole */
} AbSnapId;

#define AB_SNAPID_TEXT_LEN 24	/* hex digits: 8 timeline, 16 position */

#define AB_NO_SNAPSHOT ((AbSnapId) {0})
#define AbSnapIdIsValid(id) ((id).lsn != InvalidXLogRecPtr)

static inline bool
AbSnapIdEquals(AbSnapId a, AbSnapId b)
{
	return a.lsn == b.lsn && a.tli == b.tli;
}

/* One fork of one relation, inside a database that is known from context. */
typedef struct AbForkKey
{
	Oid			spc;
	Oid			rel;
	int32		fork;			/* ForkNumber */
} AbForkKey;

/* ab_snapid.c */
extern void ab_snapid_format(AbSnapId id, char out[AB_SNAPID_TEXT_LEN + 1]);
extern bool ab_snapid_parse(const char *text, AbSnapId *id);
extern AbSnapId ab_snapid_make(TimeLineID tli, XLogRecPtr lsn);
extern bool ab_snapid_in(const List *ids, AbSnapId id);	/* ids: AbSnapId * */

#endif							/* AB_TYPES_H */
