/*
 * ab_packlayout.c
 *	  The file of gathered origins (format: ab_format.h): where is what in it, and what of
 *	  it is sound.
 *
 * Pure functions; any process.
 */
#include "ab_packlayout.h"

#include "ab_file.h"

off_t
ab_pack_place(int i)
{
	return AB_PACK_HEADER + (off_t) i * sizeof(AbPackEntry);
}

size_t
ab_pack_length(int n)
{
	return AB_PACK_HEADER + n * (sizeof(AbPackEntry) + sizeof(Oid)) + sizeof(pg_crc32c);
}

int
ab_pack_room(off_t length)
{
	return length < AB_PACK_HEADER ? 0 : (length - AB_PACK_HEADER) / sizeof(AbPackEntry);
}

bool
ab_pack_header_is_sound(const AbPackHeader *h)
{
	return h->magic == AB_PACK_MAGIC && h->version == AB_PACK_VERSION &&
		h->crc == ab_crc_without(h, sizeof(*h), offsetof(AbPackHeader, crc));
}

bool
ab_pack_is_whole(const AbPackHeader *h, off_t length)
{
	return ab_pack_header_is_sound(h) && length == (off_t) ab_pack_length(h->n);
}

int
ab_pack_entries(const AbPackHeader *h, off_t length)
{
	off_t		n = (length - (off_t) ab_pack_length(0)) /
		(off_t) (sizeof(AbPackEntry) + sizeof(Oid));

	if (ab_pack_header_is_sound(h))
		return h->n;
	if (length < (off_t) ab_pack_length(0))
		return 0;
	return (off_t) ab_pack_length(n) == length ? n : ab_pack_room(length);
}

bool
ab_pack_entry_is_sound(const AbPackEntry *e)
{
	return e->origin.magic == AB_ORIGIN_MAGIC && e->origin.version == AB_ORIGIN_VERSION &&
		e->origin.crc == ab_crc_without(&e->origin, sizeof(e->origin),
										offsetof(AbOriginHeader, crc));
}

pg_crc32c
ab_pack_crc_of_keys(const Oid *keys, int n)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, keys, n * sizeof(Oid));
	FIN_CRC32C(crc);
	return crc;
}
