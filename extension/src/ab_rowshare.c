/*
 * ab_rowshare.c
 *	  Blocks of two tables that two processes look at side by side (ab_rowshare.h).
 *
 * Backends in the control database, and the workers of their sessions in other ones.
 * Blocks are taken some at a time by counting up in the session's segment, so that
 * neither waits for the other before there are none left.  The worker has what it needs
 * from the request, and sends rows as they are found, in messages of COPY's kind; an
 * empty one says that it cannot tell.  It holds both databases itself, since it outlives
 * an aborted caller for a moment; where it would have to wait for that, or its snapshot
 * is too young, it leaves all to the caller.  No row is changed; a crash leaves nothing.
 */
#include "ab_rowshare.h"

#include "libpq/pqformat.h"
#include "miscadmin.h"
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
	pg_atomic_uint32 *taken;	/* times that some were taken, by both */
	int			range;
	uint64		before;			/* blocks of the ranges before it */
} Cursor;

struct AbRowShare
{
	const AbRowReader *reader;
	AbRemote   *session;		/* NULL: this process is alone */
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
put_request(StringInfo to, const AbRowReader *reader, AbRowPart part)
{
	appendStringInfoChar(to, AB_REMOTE_ROWS);
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
get_request(StringInfo from, AbRowPart *part)
{
	AbRowReader *reader;

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

void
ab_rowshare_serve(AbRemoteTask *task, const char *request, Size size)
{
	StringInfoData from = {unconstify(char *, request), (int) size, (int) size, 0};
	AbRowPart	part;
	AbRowReader *reader = get_request(&from, &part);

	if (!ab_rowreader_can_see(reader) || !ab_rowpages_try_hold(&reader->pages[0]))
		return;
	if (ab_rowpages_try_hold(&reader->pages[1]))
	{
		uint64		seen = look_at_blocks(reader, part, &task->blocks_taken);

		ereport(DEBUG1,
				(errmsg_internal("looked at %llu of %llu blocks for another process",
								 (unsigned long long) seen,
								 (unsigned long long) ab_rowpages_count(&reader->ranges))));
		ab_rowpages_release(&reader->pages[1]);
	}
	ab_rowpages_release(&reader->pages[0]);
}

/* ---- the caller's side ---- */

static AbRemoteTask *
task_of(AbRemote *session)
{
	return dsm_segment_address(session->seg);
}

/* The session that sees the other one's past, too. */
AbRowShare *
ab_rowshare_begin(const AbRowReader *reader, AbRemote **sessions)
{
	AbRowShare *share = palloc0(sizeof(AbRowShare));
	bool		first = TransactionIdPrecedes(reader->snapshot[0].xmin,
											  reader->snapshot[1].xmin);

	share->reader = reader;
	if (ab_rowpages_count(&reader->ranges) >= BLOCKS_WORTH_SHARING)
		share->session = sessions[first ? 0 : 1];
	return share;
}

void
ab_rowshare_part(AbRowShare *share, AbRowPart part)
{
	pg_atomic_uint32 *taken = share->session ? &task_of(share->session)->blocks_taken :
		&share->alone;
	StringInfoData request;

	pg_atomic_init_u32(taken, 0);
	begin_cursor(&share->cursor, &share->reader->ranges, taken);
	if (share->session == NULL)
		return;
	initStringInfo(&request);
	put_request(&request, share->reader, part);
	share->session->binary = true;
	share->session->survives = false;
	ab_remote_request(share->session, &request);
	pfree(request.data);
}

bool
ab_rowshare_take(AbRowShare *share, BlockNumber *blocks, int *n)
{
	return take(&share->cursor, blocks, n);
}

AbRowShared
ab_rowshare_rows(AbRowShare *share, bool wait, const AbWaitingRow **rows, int *n)
{
	AbRemote   *session = share->session;

	while (session != NULL && !ab_remote_is_ready(session))
	{
		AbRemoteEvent event = wait ? ab_remote_next(session) : ab_remote_poll(session);

		if (event == AB_REMOTE_FAILED)
			(void) ab_remote_next(session);
		if (event == AB_REMOTE_WAIT)
			return AB_SHARED_NONE_YET;
		if (event == AB_REMOTE_DATA)
		{
			StringInfo	found = &session->message;
			int			size = found->len - found->cursor;

			*n = size / (int) sizeof(AbWaitingRow);
			*rows = (const AbWaitingRow *) memmove(found->data, found->data + found->cursor,
												   size);
			return *n == 0 ? AB_SHARED_UNTOLD : AB_SHARED_ROWS;
		}
	}
	return AB_SHARED_ALL;
}

void
ab_rowshare_stop(AbRowShare *share)
{
	if (share->session == NULL)
		return;
	pg_atomic_write_u32(&task_of(share->session)->blocks_taken, PG_UINT32_MAX / 2);
	while (!ab_remote_is_ready(share->session))
		(void) ab_remote_next(share->session);
}
