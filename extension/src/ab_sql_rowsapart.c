/*
 * ab_sql_rowsapart.c
 *	  branch._rows_apart: which of some rows of a table another one of the same origin has
 *	  not as they are.
 *
 * Backends in the control database.  The caller has sessions in both databases, so they
 * do not go, and holds the tables there, so their files do not.  Nothing is written; a
 * crash leaves nothing.
 */
#include "ab_compat.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "ab_settings.h"
#include "ab_sql.h"
#include "ab_sql_rowpages.h"

PG_FUNCTION_INFO_V1(ab_sql_rows_apart);

/* A place in the text of a tid[], with its quotes. */
typedef struct Place
{
	const char *text;
	int			len;
	BlockNumber block;
	OffsetNumber offset;
} Place;

/* What was found in the block that was looked at last. */
typedef struct Looked
{
	BlockNumber block;
	bool		apart[MaxHeapTuplesPerPage + 1];
} Looked;

static void
raise_text(const char *text)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%.40s\" is no text of places of rows", text)));
}

static const char *
skip(const char *at, char wanted, const char *text)
{
	if (*at != wanted)
		raise_text(text);
	return at + 1;
}

static const char *
number(const char *at, unsigned long most, unsigned long *found, const char *text)
{
	char	   *end;

	if (*at < '0' || *at > '9')
		raise_text(text);
	*found = strtoul(at, &end, 10);
	if (*found > most)
		raise_text(text);
	return end;
}

/* {"(block,offset)",...}, as branch._changed_rows and branch._changed_pairs write it. */
static Place *
places_of(const char *text, int *n)
{
	int			max = 64;
	Place	   *places = palloc_array(Place, max);
	const char *at = text;

	*n = 0;
	if (*at == '\0')
		return places;
	do
	{
		Place	   *place;
		unsigned long found;

		if (*n == max)
			places = repalloc_array(places, Place, max *= 2);
		place = &places[(*n)++];
		at = skip(at, *n == 1 ? '{' : ',', text);
		place->text = at;
		at = skip(skip(at, '"', text), '(', text);
		at = number(at, MaxBlockNumber, &found, text);
		place->block = (BlockNumber) found;
		at = number(skip(at, ',', text), MaxOffsetNumber, &found, text);
		place->offset = (OffsetNumber) found;
		at = skip(skip(at, ')', text), '"', text);
		place->len = at - place->text;
	} while (*at == ',');
	if (strcmp(at, "}") != 0)
		raise_text(text);
	return places;
}

static int
by_range(const void *key, const void *member)
{
	BlockNumber block = *(const BlockNumber *) key;
	const AbBlockRange *range = member;

	return block < range->start ? -1 : block >= range->end ? 1 : 0;
}

static void
look(Looked *looked, const AbRowPages *pages, const AbBlockRanges *ranges,
	 BufferAccessStrategy strategy, BlockNumber block)
{
	AbPageRows	rows;
	Buffer		pinned[2];

	if (looked->block == block)
		return;
	CHECK_FOR_INTERRUPTS();
	looked->block = block;
	memset(looked->apart, 0, sizeof(looked->apart));
	if (bsearch(&block, ranges->range, ranges->n, sizeof(AbBlockRange), by_range) == NULL)
		return;
	ab_rowpages_compare(pages, block, strategy, &rows, pinned);
	ab_rowpages_unpin(pinned);
	for (int i = 0; i < rows.na; i++)
		looked->apart[rows.of_a[i]] = true;
}

static bool
is_apart(const Looked *looked, const Place *place)
{
	return place->offset <= MaxHeapTuplesPerPage && looked->apart[place->offset];
}

static void
add(StringInfo to, const Place *place)
{
	appendStringInfoChar(to, to->len == 0 ? '{' : ',');
	appendBinaryStringInfo(to, place->text, place->len);
}

static Datum
ended(StringInfo text)
{
	if (text->len > 0)
		appendStringInfoChar(text, '}');
	return PointerGetDatum(cstring_to_text_with_len(text->data, text->len));
}

/*
 * Places of rows of the first of two tables, as the text of a tid[], and as many others that
 * belong to them, or none: those that the second table has in the same place, and those that
 * it has not; each with the others.  Empty texts: none.  Blocks in which the tables can
 * differ are told in ascending ranges.
 */
Datum
ab_sql_rows_apart(PG_FUNCTION_ARGS)
{
	AbRowPages	pages[2];
	AbBlockRanges ranges;
	BufferAccessStrategy strategy;
	AbRemote   *sessions[2];
	AbSeen		seen[2];
	Looked		looked = {.block = InvalidBlockNumber};
	Place	   *places[2];
	int			n[2];
	StringInfoData found[4];	/* the same, what belongs to them, apart, ... */
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false};

	ab_require_control_database();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (int i = 0; i < 2; i++)
	{
		places[i] = places_of(text_to_cstring(PG_GETARG_TEXT_PP(9 + i)), &n[i]);
		ab_rowpages_open(&pages[i], fcinfo, i * 3);
	}
	if (n[1] > 0 && n[1] != n[0])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%d places cannot belong to %d", n[1], n[0])));
	ranges = ab_rowpages_ranges(pages, fcinfo, 6);
	ab_rowpages_sessions(pages, fcinfo, 7, sessions, seen);
	strategy = ab_rowpages_strategy(&ranges);
	for (int i = 0; i < 4; i++)
		initStringInfo(&found[i]);
	for (int i = 0; i < n[0]; i++)
	{
		int			where;

		look(&looked, pages, &ranges, strategy, places[0][i].block);
		where = is_apart(&looked, &places[0][i]) ? 2 : 0;
		add(&found[where], &places[0][i]);
		if (n[1] > 0)
			add(&found[where + 1], &places[1][i]);
	}
	for (int i = 0; i < 2; i++)
		ab_rowpages_release(&pages[i]);
	for (int i = 0; i < 4; i++)
		values[i] = ended(&found[i]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
