/*
 * ab_imageuse.h
 *	  Which snapshots need which before-image.
 *
 * "living" are the living snapshots by age; an image of epoch e whose next older one
 * is of epoch p is what those in (p, e] see.
 */
#ifndef AB_IMAGEUSE_H
#define AB_IMAGEUSE_H

#include "ab_imagefile.h"

typedef enum AbImageUse
{
	AB_USE_EMPTY,				/* nothing was written there */
	AB_USE_UNKNOWN,				/* damaged, or being written */
	AB_USE_DEAD,				/* in no chain */
	AB_USE_NOT_NEEDED,
	AB_USE_NEEDED
} AbImageUse;

/* First and last, if they are given: indexes of the snapshots that need it. */
extern AbImageUse ab_image_use(AbImageRef at, const AbImageEntry *e,
							   const AbSnapId *living, int nliving, int *first, int *last);

/* Is there a living snapshot in (after, upto]? */
extern bool ab_image_any_living(const AbSnapId *living, int nliving, XLogRecPtr after,
								XLogRecPtr upto);

#endif							/* AB_IMAGEUSE_H */
