/*
 * ab_sql_places.h
 *	  Places of rows in two tables, as lines of a result.
 */
#ifndef AB_SQL_PLACES_H
#define AB_SQL_PLACES_H

#include "ab_compat.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "nodes/execnodes.h"
#include "storage/block.h"
#include "storage/off.h"

/* Those of one side in the line that is being put together; zeros: none. */
typedef struct AbPlaces
{
	StringInfoData text;
	int			n;
} AbPlaces;

/* Told of in one line. */
#define AB_PLACES_IN_LINE 2000

extern void ab_places_add(AbPlaces *places, BlockNumber block, OffsetNumber offset);

/*
 * Put a line that begins with both sides' places as texts of tid[], NULL: none; values and
 * nulls are those of all its columns.  There are none any more then.
 */
extern void ab_places_put(ReturnSetInfo *rsinfo, AbPlaces *places, Datum *values, bool *nulls);

#endif							/* AB_SQL_PLACES_H */
