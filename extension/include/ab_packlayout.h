/*
 * ab_packlayout.h
 *	  Layout of the file of gathered origins, for those that read and write it:
 *	  ab_originpack.c and ab_originpackall.c.
 */
#ifndef AB_PACKLAYOUT_H
#define AB_PACKLAYOUT_H

#include "ab_format.h"

/* Where an entry begins, and with the number of entries the list of keys. */
extern off_t ab_pack_place(int i);

/* How long a file with so many entries is. */
extern size_t ab_pack_length(int n);

/* How many entries a file of that length has room for. */
extern int	ab_pack_room(off_t length);

extern bool ab_pack_header_is_sound(const AbPackHeader *h);

/* Is that so, and the file as long as it says? */
extern bool ab_pack_is_whole(const AbPackHeader *h, off_t length);

/*
 * How many entries there have been.  If the header does not tell, the length does; and if it is
 * no length that such a file can have, it was cut: as many as there is room for, or more.
 */
extern int	ab_pack_entries(const AbPackHeader *h, off_t length);

extern bool ab_pack_entry_is_sound(const AbPackEntry *e);
extern pg_crc32c ab_pack_crc_of_keys(const Oid *keys, int n);

#endif							/* AB_PACKLAYOUT_H */
