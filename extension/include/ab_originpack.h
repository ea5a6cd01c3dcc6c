/*
 * ab_originpack.h
 *	  The file in which the origins of branches that nobody has been in are gathered
 *	  (format: ab_format.h; invariants: G1 to G8 of extension/README).
 */
#ifndef AB_ORIGINPACK_H
#define AB_ORIGINPACK_H

#include "ab_format.h"

typedef enum AbPackAnswer
{
	AB_PACK_NONE,
	AB_PACK_FOUND,
	AB_PACK_DAMAGED				/* it is there, and cannot be read */
} AbPackAnswer;

/* All of the file, palloc'd. */
typedef struct AbPack
{
	int			n;				/* entries, dead ones too */
	AbPackEntry *entries;		/* by OID, as far as they are sound */
	Oid		   *keys;			/* whose they are; NULL: damaged */
	char	   *problem;		/* the first that was found, or NULL */
	bool		complete;		/* and still nothing that lives is missing */
} AbPack;

extern void ab_originpack_read(AbPack *pack);
extern void ab_originpack_free(AbPack *pack);

/* Whose the i-th entry is, if that can be told, and if it is not dead; else InvalidOid. */
extern Oid	ab_originpack_living(const AbPack *pack, int i);
extern bool ab_originpack_is_sound(const AbPack *pack, int i);

/*
 * Look for one.  Raises if the file cannot be read, unless this one is surely not there: that is
 * what the other list of keys says (ab_originkeys.h), or what somebody has found before, and
 * nothing was gathered since.
 */
extern AbPackAnswer ab_originpack_find(Oid db, AbOriginHeader *header);

/* Does any branch live in it?  Raises nothing. */
extern bool ab_originpack_any(void);

/*
 * The same of all origins, in files of their own or gathered.  Nothing is said of what is
 * in them.
 */
extern bool ab_origin_any(void);
extern bool ab_origin_exists(Oid db);

/*
 * Write the file anew, durable under its name when this returns; none: remove it.  The
 * headers are sorted by database.  The caller holds gather_lock.
 */
extern void ab_originpack_write(const AbOriginHeader *headers, int n);

/* That of db has been put into the file, and its own file is still there. */
extern void ab_originpack_note_new(Oid db);

/*
 * Let an entry be none, durably; *there: there was one.  False (WARNING) if it may live: then
 * its branch does, and a file of its own has to stay (G3).  PANIC if it may have failed
 * to reach the disk.  The caller holds gather_lock.
 */
extern bool ab_originpack_kill(Oid db, bool *there);

#endif							/* AB_ORIGINPACK_H */
