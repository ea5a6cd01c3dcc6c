/*
 * ab_sql_places.c
 *	  Places of rows in two tables, as lines of a result (ab_sql_places.h).
 *
 * Private memory of backends in the control database.
 */
#include "ab_sql_places.h"

#include "utils/builtins.h"
#include "utils/tuplestore.h"

/* "(4294967295,65535)" with quotes and a comma. */
#define PLACE_LENGTH 24

/* There may be very many: without formats. */
void
ab_places_add(AbPlaces *places, BlockNumber block, OffsetNumber offset)
{
	StringInfo	text = &places->text;
	char	   *to;

	if (places->n == 0)
		initStringInfo(text);
	enlargeStringInfo(text, PLACE_LENGTH);
	to = text->data + text->len;
	*to++ = places->n++ == 0 ? '{' : ',';
	*to++ = '"';
	*to++ = '(';
	to += pg_ultoa_n(block, to);
	*to++ = ',';
	to += pg_ultoa_n(offset, to);
	*to++ = ')';
	*to++ = '"';
	*to = '\0';
	text->len = to - text->data;
}

void
ab_places_put(ReturnSetInfo *rsinfo, AbPlaces *places, Datum *values, bool *nulls)
{
	for (int i = 0; i < 2; i++)
	{
		nulls[i] = places[i].n == 0;
		if (nulls[i])
			continue;
		appendStringInfoChar(&places[i].text, '}');
		values[i] = CStringGetTextDatum(places[i].text.data);
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	for (int i = 0; i < 2; i++)
	{
		if (nulls[i])
			continue;
		pfree(DatumGetPointer(values[i]));
		pfree(places[i].text.data);
		places[i].n = 0;
	}
}
