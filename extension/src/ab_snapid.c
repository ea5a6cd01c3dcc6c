/*
 * ab_snapid.c
 *	  Snapshot ids and their text form.  Pure functions; any process.
 */
#include "ab_types.h"

#include "storage/fd.h"

AbSnapId
ab_snapid_make(TimeLineID tli, XLogRecPtr lsn)
{
	AbSnapId	id;

	memset(&id, 0, sizeof(id));
	id.lsn = lsn;
	id.tli = tli;
	return id;
}

/* 8 hex digits of timeline, 16 of position: sorts as text by age. */
void
ab_snapid_format(AbSnapId id, char out[AB_SNAPID_TEXT_LEN + 1])
{
	snprintf(out, AB_SNAPID_TEXT_LEN + 1, "%08X%08X%08X", id.tli,
			 LSN_FORMAT_ARGS(id.lsn));
}

/* Accepts exactly what ab_snapid_format() writes; false for anything else. */
bool
ab_snapid_parse(const char *text, AbSnapId *id)
{
	uint32		word[3];

	for (int w = 0; w < 3; w++)
	{
		word[w] = 0;
		for (int i = 0; i < 8; i++)
		{
			char		c = text[w * 8 + i];

			if (c >= '0' && c <= '9')
				word[w] = word[w] * 16 + (c - '0');
			else if (c >= 'A' && c <= 'F')
				word[w] = word[w] * 16 + (c - 'A' + 10);
			else
				return false;
		}
	}
	if (text[AB_SNAPID_TEXT_LEN] != '\0')
		return false;
	*id = ab_snapid_make(word[0], ((XLogRecPtr) word[1] << 32) | word[2]);
	return AbSnapIdIsValid(*id);
}

bool
ab_snapid_in(const List *ids, AbSnapId id)
{
	ListCell   *lc;

	foreach(lc, ids)
		if (AbSnapIdEquals(*(AbSnapId *) lfirst(lc), id))
			return true;
	return false;
}
