/*
 * ab_rowvalues.c
 *	  Values of rows of a table that this database does not have (ab_rowvalues.h).
 *
 * Pure functions on rows as they lie in pages; any process.  Whether bytes tell if two
 * values are the same is the caller's to know, column by column.  A value out of line is
 * never fetched: its table is another database's.
 *
 * How columns lie in a row is what a caller says, who may be mistaken or may lie: no value
 * is looked at that does not lie in the row as a whole.
 */
#include "ab_rowvalues.h"

#include "access/detoast.h"
#include "access/tupmacs.h"
#include "common/hashfn.h"

/* Each bit of a number counts for every bit of the answer; others have other answers. */
static uint64
mixed(uint64 number)
{
	for (int i = 0; i < 2; i++)
	{
		number ^= number >> 32;
		number *= UINT64CONST(0x9E3779B97F4A7C15);
	}
	return number ^ (number >> 29);
}

void
ab_row_layout_finish(AbRowLayout *layout, int n)
{
	int			bytes = 0;

	layout->natts = 0;
	layout->code_is_key = true;
	for (int i = 0; i < n; i++)
	{
		if (layout->kind[i] != AB_COLUMN_IGNORED)
			layout->natts = i + 1;
		if (layout->kind[i] != AB_COLUMN_KEY)
			continue;
		if (layout->len[i] <= 0)
			layout->code_is_key = false;
		bytes += layout->len[i];
	}
	if (bytes > (int) sizeof(uint64))
		layout->code_is_key = false;
}

/* How long a value of variable length is; 0: it has not that much room, or is none in a page. */
static Size
varlena_size(const char *value, Size room)
{
	Size		size;

	if (VARATT_IS_1B_E(value))
	{
		if (room < VARHDRSZ_EXTERNAL || VARTAG_EXTERNAL(value) != VARTAG_ONDISK)
			return 0;
		size = VARSIZE_EXTERNAL(value);
	}
	else if (VARATT_IS_1B(value))
		size = VARSIZE_1B(value);
	else
	{
		if (room < VARHDRSZ)
			return 0;
		size = VARSIZE_4B(value);
		if (size < (VARATT_IS_4B_C(value) ? VARHDRSZ_COMPRESSED : VARHDRSZ))
			return 0;
	}
	return size <= room ? size : 0;
}

/* The same for any value. */
static inline Size
size_of(const char *value, int16 len, Size room)
{
	const char *end;

	if (len > 0)
		return (Size) len <= room ? (Size) len : 0;
	if (len == -1)
		return varlena_size(value, room);
	end = memchr(value, '\0', room);
	return end ? end - value + 1 : 0;
}

bool
ab_row_values(const AbRowLayout *layout, const HeapTupleHeaderData *row, Size size,
			  AbRowValues *values)
{
	const char *data = (const char *) row + row->t_hoff;
	const bits8 *bits = (row->t_infomask & HEAP_HASNULL) ? row->t_bits : NULL;
	int			natts = HeapTupleHeaderGetNatts(row);
	Size		off = 0;

	if (row->t_hoff > size ||
		row->t_hoff < SizeofHeapTupleHeader + (bits ? BITMAPLEN(natts) : 0))
		return false;
	size -= row->t_hoff;
	values->natts = Min(natts, layout->natts);
	for (int i = 0; i < values->natts; i++)
	{
		int16		len = layout->len[i];
		Size		taken;

		if (bits != NULL && att_isnull(i, bits))
		{
			values->value[i] = NULL;
			continue;
		}
		if (off >= size)
			return false;
		off = att_align_pointer(off, layout->align[i], len, data + off);
		if (off >= size)
			return false;
		taken = size_of(data + off, len, size - off);
		if (taken == 0)
			return false;
		values->value[i] = data + off;
		off += taken;
	}
	return true;
}

/* ---- bytes of one value ---- */

typedef struct Bytes
{
	const char *data;
	Size		len;
	void	   *owned;			/* to be freed; NULL: nothing */
} Bytes;

static bool
is_outside(const char *value, int16 len)
{
	return len == -1 && VARATT_IS_EXTERNAL(value);
}

/* Of a value that is not out of line. */
static Bytes
bytes_of(const char *value, int16 len)
{
	Bytes		bytes = {value, 0, NULL};

	if (len > 0)
		bytes.len = len;
	else if (len == -2)
		bytes.len = strlen(value);
	else if (VARATT_IS_COMPRESSED(value))
	{
		struct varlena *plain = detoast_attr((struct varlena *) unconstify(char *, value));

		bytes.data = VARDATA(plain);
		bytes.len = VARSIZE(plain) - VARHDRSZ;
		bytes.owned = plain;
	}
	else
	{
		bytes.data = VARDATA_ANY(value);
		bytes.len = VARSIZE_ANY_EXHDR(value);
	}
	return bytes;
}

/* How long the plain value is. */
static Size
length_of(const char *value, int16 len)
{
	if (len == -1)
		return toast_raw_datum_size(PointerGetDatum(value));
	return len > 0 ? (Size) len : strlen(value);
}

static AbRowVerdict
compare_bytes(const char *a, const char *b, int16 len)
{
	Bytes		one;
	Bytes		other;
	bool		same;

	if (len > 0)
		return memcmp(a, b, len) == 0 ? AB_ROWS_SAME : AB_ROWS_DIFFER;
	if (length_of(a, len) != length_of(b, len))
		return AB_ROWS_DIFFER;
	if (is_outside(a, len) || is_outside(b, len))
		return AB_ROWS_UNKNOWN;
	one = bytes_of(a, len);
	other = bytes_of(b, len);
	same = one.len == other.len && memcmp(one.data, other.data, one.len) == 0;
	if (one.owned)
		pfree(one.owned);
	if (other.owned)
		pfree(other.owned);
	return same ? AB_ROWS_SAME : AB_ROWS_DIFFER;
}

/* ---- keys ---- */

/* Values of a fixed length, one behind the other, in one number. */
static uint64
packed_key(const AbRowLayout *layout, const AbRowValues *row)
{
	uint64		code = 0;
	char	   *to = (char *) &code;

	for (int i = 0; i < row->natts; i++)
		if (layout->kind[i] == AB_COLUMN_KEY)
		{
			memcpy(to, row->value[i], layout->len[i]);
			to += layout->len[i];
		}
	return mixed(code);
}

static uint64
hashed_key(const AbRowLayout *layout, const AbRowValues *row)
{
	uint64		code = 0;

	for (int i = 0; i < row->natts; i++)
	{
		Bytes		bytes;

		if (layout->kind[i] != AB_COLUMN_KEY)
			continue;
		bytes = bytes_of(row->value[i], layout->len[i]);
		code = hash_combine64(code, hash_bytes_extended((const unsigned char *) bytes.data,
														(int) bytes.len, 0));
		if (bytes.owned)
			pfree(bytes.owned);
	}
	return code;
}

bool
ab_row_code(const AbRowLayout *layout, const AbRowValues *row, uint64 *code)
{
	for (int i = 0; i < layout->natts; i++)
		if (layout->kind[i] == AB_COLUMN_KEY &&
			(i >= row->natts || row->value[i] == NULL ||
			 is_outside(row->value[i], layout->len[i])))
			return false;
	*code = layout->code_is_key ? packed_key(layout, row) : hashed_key(layout, row);
	return true;
}

bool
ab_rows_same_key(const AbRowLayout *layout, const AbRowValues *a, const AbRowValues *b)
{
	for (int i = 0; i < layout->natts; i++)
		if (layout->kind[i] == AB_COLUMN_KEY &&
			compare_bytes(a->value[i], b->value[i], layout->len[i]) != AB_ROWS_SAME)
			return false;
	return true;
}

/* ---- the other columns ---- */

/* Of a value that has not the same length always: its length, which is quickly told. */
static uint64
print_of(const char *value, int16 len)
{
	uint64		packed = 0;

	if (value == NULL)
		return PG_UINT64_MAX;
	if (len < 0)
		return length_of(value, len);
	if (len > (int) sizeof(packed))
		return hash_bytes_extended((const unsigned char *) value, len, 0);
	memcpy(&packed, value, len);
	return mixed(packed);
}

uint64
ab_row_print(const AbRowLayout *layout, const AbRowValues *row)
{
	uint64		print = 1;

	for (int i = 0; i < layout->natts; i++)
	{
		if (layout->kind[i] != AB_COLUMN_PLAIN)
			continue;
		if (i >= row->natts)
			return 0;
		print = hash_combine64(print, print_of(row->value[i], layout->len[i]));
	}
	return print;
}

static AbRowVerdict
compare_column(char kind, int16 len, const char *a, const char *b)
{
	AbRowVerdict verdict;

	if (a == NULL || b == NULL)
		return a == b ? AB_ROWS_SAME : AB_ROWS_DIFFER;
	if (kind == AB_COLUMN_UNKNOWN)
		return AB_ROWS_UNKNOWN;
	verdict = compare_bytes(a, b, len);
	return verdict == AB_ROWS_DIFFER && kind != AB_COLUMN_PLAIN ? AB_ROWS_UNKNOWN : verdict;
}

/* Of one of two rows with the same key. */
static AbRowVerdict
compare_at(const AbRowLayout *layout, int i, const AbRowValues *a, const AbRowValues *b)
{
	char		kind = layout->kind[i];

	if (kind == AB_COLUMN_KEY || kind == AB_COLUMN_IGNORED)
		return AB_ROWS_SAME;
	if (i >= a->natts || i >= b->natts)
		return AB_ROWS_UNKNOWN;
	return compare_column(kind, layout->len[i], a->value[i], b->value[i]);
}

AbRowVerdict
ab_rows_compare(const AbRowLayout *layout, const AbRowValues *a, const AbRowValues *b)
{
	AbRowVerdict verdict = AB_ROWS_SAME;

	for (int i = 0; i < Max(a->natts, b->natts); i++)
	{
		AbRowVerdict one = compare_at(layout, i, a, b);

		if (one == AB_ROWS_DIFFER)
			return AB_ROWS_DIFFER;
		verdict = Max(verdict, one);
	}
	return verdict;
}

uint64
ab_rows_columns(const AbRowLayout *layout, const AbRowValues *a, const AbRowValues *b)
{
	uint64		columns = 0;

	Assert(layout->natts <= AB_COLUMNS_MAX);
	for (int i = 0; i < Max(a->natts, b->natts); i++)
	{
		AbRowVerdict one = compare_at(layout, i, a, b);

		if (one == AB_ROWS_UNKNOWN)
			return AB_COLUMNS_UNTOLD;
		if (one == AB_ROWS_DIFFER)
			columns |= UINT64CONST(1) << i;
	}
	return columns;
}
