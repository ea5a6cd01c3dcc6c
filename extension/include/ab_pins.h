/*
 * ab_pins.h
 *	  Which snapshots need which layers: what every manifest names.
 */
#ifndef AB_PINS_H
#define AB_PINS_H

#include "ab_manifest.h"
#include "ab_shmem.h"

#include "nodes/pg_list.h"

typedef struct AbPin
{
	AbSnapSlot	slot;
	AbManifestHeader header;
	AbLayerRef *layers;			/* header.nlayers of them, the first its own */
	bool		reached;		/* private */
} AbPin;

/*
 * One for each confirmed snapshot whose manifest can be read, by position; palloc'd.
 * Of a manifest only the head is read, whatever its size.
 */
extern AbPin *ab_pins_read(int *n);

/* What ab_pins_storage_needed() has found out; starts as zeros. */
typedef struct AbPinsNeeded
{
	AbPin	   *pins;
	int			npins;
} AbPinsNeeded;

/*
 * Are the files of a database that has no row any more needed by a snapshot that
 * somebody needs?  The answer does not change from no to yes.
 */
extern bool ab_pins_storage_needed(AbPinsNeeded *needed, Oid db);

/*
 * Raise 55006 if branches or kept snapshots need the files of a database as they are:
 * "cannot <verb> ...".  The caller holds AccessExclusiveLock on it.  Snapshots that
 * nobody needs are closed here, so that nobody will.
 */
extern void ab_pins_check_files(Oid db, const char *verb);

#endif							/* AB_PINS_H */
