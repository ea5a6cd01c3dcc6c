/*
 * ab_originfile.h
 *	  The origin file itself (format: ab_format.h), without any cache.
 *	  Users of branches want ab_origin.h.
 */
#ifndef AB_ORIGINFILE_H
#define AB_ORIGINFILE_H

#include "ab_format.h"

typedef struct AbOriginImage
{
	AbOriginHeader header;
	AbLimitSlot *slots;			/* used ones */
	int			nslots;
	int			nfree;
	char	   *file;			/* private; NULL: it has no file of its own */
} AbOriginImage;

/* Read and check; false if there is none.  Raises XX001 if damaged. */
extern bool ab_originfile_load(Oid db, AbOriginImage *image);
extern void ab_originfile_free(AbOriginImage *image);

/*
 * For who writes origins: a sound slot in use; a length that can be read; NULL or a palloc'd
 * reason; a new file.
 */
extern bool ab_originfile_slot_is_used(const AbLimitSlot *s);
extern bool ab_originfile_length_is_sound(const AbOriginLength *l);
extern char *ab_originfile_check_header(Oid db, const char *file, size_t len);
extern void ab_originfile_fill_block(char block[AB_ORIGIN_BLOCK], const AbOriginHeader *header);

/*
 * A branch that was damaged for a while may have lost changes meanwhile: then it must
 * never be read again, even if the damage is gone.  The mark is durable on return; an
 * invalid incarnation means whatever is there.
 */
extern void ab_originfile_mark_lost(Oid db, AbSnapId incarnation);
extern bool ab_originfile_is_lost(Oid db, AbSnapId incarnation);

#endif							/* AB_ORIGINFILE_H */
