/*
 * ab_rowvalues.h
 *	  Values of rows of a table that this database does not have: which row it is, and
 *	  whether two versions of it are the same.
 */
#ifndef AB_ROWVALUES_H
#define AB_ROWVALUES_H

#include "ab_compat.h"

#include "access/htup_details.h"

/* What is known of a column by its bytes. */
#define AB_COLUMN_KEY		'k' /* of the key: the same if and only if its bytes are */
#define AB_COLUMN_PLAIN		'p' /* the same if and only if its bytes are */
#define AB_COLUMN_ALIKE		'b' /* the same if its bytes are, else not known */
#define AB_COLUMN_UNKNOWN	'u' /* never known */
#define AB_COLUMN_IGNORED	'-' /* not compared */

/* Columns by number, dropped ones too: as in pg_attribute. */
typedef struct AbRowLayout
{
	int			natts;			/* those behind the last one that counts left out */
	int16	   *len;
	char	   *align;
	char	   *kind;
	bool		code_is_key;	/* keys of which the codes are the same are the same */
} AbRowLayout;

/* A row's columns; NULL for null. */
typedef struct AbRowValues
{
	int			natts;			/* what is behind it was added later */
	const char *value[MaxHeapAttributeNumber];
} AbRowValues;

typedef enum AbRowVerdict
{
	AB_ROWS_SAME,
	AB_ROWS_DIFFER,
	AB_ROWS_UNKNOWN				/* the types' own equality has to say */
} AbRowVerdict;

/* Find out natts and code_is_key of what has n columns. */
extern void ab_row_layout_finish(AbRowLayout *layout, int n);

/*
 * The values of a row of so many bytes; they stay where they are.  False: the row is not
 * laid out so.
 */
extern bool ab_row_values(const AbRowLayout *layout, const HeapTupleHeaderData *row, Size size,
						  AbRowValues *values);

/* A number for the key, well mixed.  False: it has no value that can be looked at here. */
extern bool ab_row_code(const AbRowLayout *layout, const AbRowValues *row, uint64 *code);

/* Have two rows the same key?  Both have a code. */
extern bool ab_rows_same_key(const AbRowLayout *layout, const AbRowValues *a,
							 const AbRowValues *b);

/*
 * A number for the plain columns: rows with other numbers differ.  0: it says nothing.
 */
extern uint64 ab_row_print(const AbRowLayout *layout, const AbRowValues *row);

/* Of two rows with the same key. */
extern AbRowVerdict ab_rows_compare(const AbRowLayout *layout, const AbRowValues *a,
									const AbRowValues *b);

/*
 * Which of their columns differ, by bits from 0 on; columns of the key are none of them.
 * AB_COLUMNS_UNTOLD: bytes do not say.
 */
#define AB_COLUMNS_UNTOLD	PG_UINT64_MAX
#define AB_COLUMNS_MAX		63	/* of rows that may be asked about */
extern uint64 ab_rows_columns(const AbRowLayout *layout, const AbRowValues *a,
							  const AbRowValues *b);

#endif							/* AB_ROWVALUES_H */
