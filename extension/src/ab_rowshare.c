/*
 * ab_rowshare.c
 *	  Blocks of two tables that some processes look at side by side (ab_rowshare.h).
 *
 * Backends in the control database, and the workers of their sessions in other ones.
 * Blocks are taken some at a time by counting up in the segment of one session, so that
 * nobody waits for the others before there are none left.  A worker has what it needs
 * from the request, and sends rows as they are found, in messages of COPY's kind; an
 * empty one says that it cannot tell.  It holds both databases itself, since it outlives
 * an aborted caller for a moment; where it would have to wait for that, or its snapshot
 * is too young, it leaves all to the caller.  No row is changed; a crash leaves nothing.
 */
#include "ab_rowshare.h"

#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "storage/dsm.h"
#include "utils/memutils.h"

#include "ab_remote_session.h"
#include "ab_remote_wire.h"

/* What sending the request and waking a process is worth, at least. */
#define BLOCKS_WORTH_SHARING 512

/* Found rows are sent so many at a time, or a few more. */
#define ROWS_SENT 256

/* Where blocks are taken, by one of the processes. */
typedef struct Cursor
{
	const AbBlockRanges *ranges;
	pg_atomic_uint32 *taken;	/* times that some were taken, by anybody */
	int			range;
	uint64		before;			/* blocks of the ranges before it */
} Cursor;

struct AbRowShare
{
	const AbRowReader *reader;
	AbRemote   *sessions[2];	/* that take a share; the first one's segment is counted up in */
	int			nsessions;		/* 0: this process is alone */
	pg_atomic_uint32 alone;		/* what is counted up then */
	Cursor		cursor;
};

/* ---- blocks ---- */

static void
begin_cursor(Cursor *cursor, const AbBlockRanges *ranges, pg_atomic_uint32 *taken)
{
	cursor->ranges = ranges;
	cursor->taken = taken;
	cursor->range = 0;
	cursor->before = 0;
}

static BlockNumber
length_of(AbBlockRange range)
{
	return range.start < range.end ? range.end - range.start : 0;
}

static bool
take(Cursor *cursor, BlockNumber *blocks, int *n)
{
	const AbBlockRanges *ranges = cursor->ranges;
	uint64		at = (uint64) pg_atomic_fetch_add_u32(cursor->taken, 1) * AB_BLOCKS_TAKEN;

	*n = 0;
	while (*n < AB_BLOCKS_TAKEN && cursor->range < ranges->n)
	{
		AbBlockRange range = ranges->range[cursor->range];
		BlockNumber length = length_of(range);

		if (at < cursor->before + length)
			blocks[(*n)++] = range.start + (BlockNumber) (at++ - cursor->before);
		else
		{
			cursor->before += length;
			cursor->range++;
		}
	}
	return *n > 0;
}

/* ---- the request ---- */

static void
put(StringInfo to, const void *data, Size size)
{
	appendBinaryStringInfo(to, data, (int) size);
}

static void
put_request(StringInfo to, const AbRowReader *reader, AbRowPart part, dsm_handle counted)
{
	appendStringInfoChar(to, AB_REMOTE_ROWS);
	put(to, &counted, sizeof(counted));
	put(to, &part, sizeof(part));
	put(to, reader, sizeof(AbRowReader));
	for (int i = 0; i < 2; i++)
		put(to, reader->snapshot[i].xip, sizeof(TransactionId) * reader->snapshot[i].xcnt);
	put(to, reader->layout.len, sizeof(int16) * reader->layout.natts);
	put(to, reader->layout.align, reader->layout.natts);
	put(to, reader->layout.kind, reader->layout.natts);
	put(to, reader->ranges.range, sizeof(AbBlockRange) * reader->ranges.n);
}

static void *
get(StringInfo from, Size size)
{
	void	   *data = palloc(Max(size, 1));

	pq_copymsgbytes(from, data, (int) size);
	return data;
}

/* What points somewhere is read anew. */
static AbRowReader *
get_request(StringInfo from, AbRowPart *part, dsm_handle *counted)
{
	AbRowReader *reader;

	pq_copymsgbytes(from, (char *) counted, sizeof(dsm_handle));
	pq_copymsgbytes(from, (char *) part, sizeof(AbRowPart));
	reader = get(from, sizeof(AbRowReader));
	for (int i = 0; i < 2; i++)
		reader->snapshot[i].xip = get(from, sizeof(TransactionId) * reader->snapshot[i].xcnt);
	reader->layout.len = get(from, sizeof(int16) * reader->layout.natts);
	reader->layout.align = get(from, reader->layout.natts);
	reader->layout.kind = get(from, reader->layout.natts);
	reader->ranges.range = get(from, sizeof(AbBlockRange) * reader->ranges.n);
	if (reader->strategy != NULL)
		reader->strategy = ab_rowpages_strategy(&reader->ranges);
	return reader;
}

/* ---- the worker's side ---- */

static void
send_rows(const AbWaitingRow *rows, int n)
{
	StringInfoData message;

	pq_beginmessage(&message, 'd');
	pq_sendbytes(&message, (const char *) rows, (int) sizeof(AbWaitingRow) * n);
	pq_endmessage(&message);
}

/* Returns how many. */
static uint64
look_at_blocks(const AbRowReader *reader, AbRowPart part, pg_atomic_uint32 *taken)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "rows of pages",
												  ALLOCSET_DEFAULT_SIZES);
	AbWaitingRow *found = palloc_array(AbWaitingRow, ROWS_SENT + AB_ROWS_IN_BLOCK);
	int			nfound = 0;
	uint64		seen = 0;
	BlockNumber blocks[AB_BLOCKS_TAKEN];
	int			nblocks;
	Cursor		cursor;
	MemoryContext old = MemoryContextSwitchTo(context);

	begin_cursor(&cursor, &reader->ranges, taken);
	while (take(&cursor, blocks, &nblocks))
	{
		for (int i = 0; i < nblocks; i++)
		{
			int			n;

			CHECK_FOR_INTERRUPTS();
			seen++;
			if (!ab_rowreader_block(reader, blocks[i], part, found + nfound, &n))
			{
				send_rows(NULL, 0);
				return seen;
			}
			nfound += n;
			if (nfound < ROWS_SENT)
				continue;
			send_rows(found, nfound);
			nfound = 0;
		}
		MemoryContextReset(context);
	}
	if (nfound > 0)
		send_rows(found, nfound);
	MemoryContextSwitchTo(old);
	return seen;
}

static pg_atomic_uint32 *
counter_in(dsm_segment *segment)
{
	AbRemoteTask *task = dsm_segment_address(segment);

	return &task->blocks_taken;
}

/* Both databases are held. */
static void
look(const AbRowReader *reader, AbRowPart part, dsm_handle counted)
{
	dsm_segment *mine = dsm_find_mapping(counted);
	dsm_segment *segment = mine ? mine : dsm_attach(counted);
	uint64		seen;

	if (segment == NULL)
		return;					/* the caller is gone */
	seen = look_at_blocks(reader, part, counter_in(segment));
	if (mine == NULL)
		dsm_detach(segment);
	ereport(DEBUG1,
			(errmsg_internal("looked at %llu of %llu blocks for another process",
							 (unsigned long long) seen,
							 (unsigned long long) ab_rowpages_count(&reader->ranges))));
}

void
ab_rowshare_serve(const char *request, Size size)
{
	StringInfoData from = {unconstify(char *, request), (int) size, (int) size, 0};
	AbRowPart	part;
	dsm_handle	counted;
	AbRowReader *reader = get_request(&from, &part, &counted);

	if (!ab_rowreader_can_see(reader) || !ab_rowpages_try_hold(&reader->pages[0]))
		return;
	if (ab_rowpages_try_hold(&reader->pages[1]))
	{
		look(reader, part, counted);
		ab_rowpages_release(&reader->pages[1]);
	}
	ab_rowpages_release(&reader->pages[0]);
}

/* ---- the caller's side ---- */

/* The session that sees the other one's past, too, comes first. */
AbRowShare *
ab_rowshare_begin(const AbRowReader *reader, AbRemote **sessions)
{
	AbRowShare *share = palloc0(sizeof(AbRowShare));
	bool		first = TransactionIdPrecedes(reader->snapshot[0].xmin,
											  reader->snapshot[1].xmin);

	share->reader = reader;
	share->sessions[0] = sessions[first ? 0 : 1];
	share->sessions[1] = sessions[first ? 1 : 0];
	if (ab_rowpages_count(&reader->ranges) >= BLOCKS_WORTH_SHARING)
		share->nsessions = Min(max_parallel_workers_per_gather, lengthof(share->sessions));
	return share;
}

void
ab_rowshare_part(AbRowShare *share, AbRowPart part)
{
	pg_atomic_uint32 *taken = share->nsessions > 0 ? counter_in(share->sessions[0]->seg) :
		&share->alone;
	StringInfoData request;

	pg_atomic_init_u32(taken, 0);
	begin_cursor(&share->cursor, &share->reader->ranges, taken);
	if (share->nsessions == 0)
		return;
	initStringInfo(&request);
	put_request(&request, share->reader, part, dsm_segment_handle(share->sessions[0]->seg));
	for (int i = 0; i < share->nsessions; i++)
	{
		share->sessions[i]->binary = true;
		share->sessions[i]->survives = false;
		ab_remote_request(share->sessions[i], &request);
	}
	pfree(request.data);
}

bool
ab_rowshare_take(AbRowShare *share, BlockNumber *blocks, int *n)
{
	return take(&share->cursor, blocks, n);
}

/* The message that has come: rows, or that they cannot be told of. */
static AbRowShared
rows_in(AbRemote *session, const AbWaitingRow **rows, int *n)
{
	StringInfo	found = &session->message;
	int			size = found->len - found->cursor;

	*n = size / (int) sizeof(AbWaitingRow);
	*rows = (const AbWaitingRow *) memmove(found->data, found->data + found->cursor, size);
	return *n == 0 ? AB_SHARED_UNTOLD : AB_SHARED_ROWS;
}

AbRowShared
ab_rowshare_rows(AbRowShare *share, bool wait, const AbWaitingRow **rows, int *n)
{
	for (;;)
	{
		bool		waiting = false;

		for (int i = 0; i < share->nsessions; i++)
			while (!ab_remote_is_ready(share->sessions[i]))
			{
				AbRemoteEvent event = ab_remote_poll(share->sessions[i]);

				if (event == AB_REMOTE_FAILED)
					(void) ab_remote_next(share->sessions[i]);
				if (event == AB_REMOTE_DATA)
					return rows_in(share->sessions[i], rows, n);
				if (event == AB_REMOTE_WAIT)
				{
					waiting = true;
					break;
				}
			}
		if (!waiting)
			return AB_SHARED_ALL;
		if (!wait)
			return AB_SHARED_NONE_YET;
		ab_remote_wait();
	}
}

void
ab_rowshare_stop(AbRowShare *share)
{
	if (share->nsessions > 0)
		pg_atomic_write_u32(counter_in(share->sessions[0]->seg), PG_UINT32_MAX / 2);
	for (int i = 0; i < share->nsessions; i++)
		while (!ab_remote_is_ready(share->sessions[i]))
			(void) ab_remote_next(share->sessions[i]);
}
