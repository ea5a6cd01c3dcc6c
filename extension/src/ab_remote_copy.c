/*
 * ab_remote_copy.c
 *	  Rows from one session in another database into a table of a second one
 *	  (ab_remote.h): the caller's side.
 *
 * Runs in the backend that has opened both.  What COPY TO STDOUT gives is passed on as it
 * is, some rows at a time, and looked at by the input functions of the second session
 * (ab_remote_load.c); lines that are only kept are put together and inserted.  No locks,
 * nothing on disk: a crash leaves nothing.
 */
#include "ab_remote_session.h"
#include "ab_remote_wire.h"

#include "miscadmin.h"

/* Rows are gathered up to this, so that the other side is woken less often. */
#define PIECE_SIZE	32768

/* Characters of lines in one row that is kept, at most but for one line. */
#define KEPT_SIZE	1048576

/* The session has failed, or will have said so when its answers are read: that is raised. */
static void
raise_failure(AbRemote *session)
{
	for (;;)
		(void) ab_remote_next(session);
}

/* A worker that has ended does not read, nor does one that has reported an error. */
static void
push(AbRemote *to, StringInfo piece)
{
	for (;;)
	{
		shm_mq_result result = shm_mq_send(to->requests, piece->len, piece->data, true, true);

		if (result == SHM_MQ_SUCCESS)
			break;
		if (result == SHM_MQ_DETACHED || ab_remote_poll(to) == AB_REMOTE_FAILED)
			raise_failure(to);
		ab_remote_wait();
	}
	resetStringInfo(piece);
	appendStringInfoChar(piece, AB_REMOTE_LOAD_DATA);
}

static void
begin_load(AbRemote *to, const char *table)
{
	StringInfoData request;

	initStringInfo(&request);
	appendStringInfoChar(&request, AB_REMOTE_LOAD);
	appendBinaryStringInfo(&request, table, strlen(table) + 1);
	to->binary = false;
	to->survives = false;
	ab_remote_request(to, &request);
	pfree(request.data);
}

static void
end_load(AbRemote *to, StringInfo piece)
{
	resetStringInfo(piece);
	appendStringInfoChar(piece, AB_REMOTE_LOAD_END);
	push(to, piece);
	while (ab_remote_next(to) != AB_REMOTE_READY)
		;
}

/* It would wait for rows for ever, and whoever asked it for something, too. */
static void
give_up(AbRemote *to)
{
	if (to->state == AB_SESSION_OVER)
		return;
	TerminateBackgroundWorker(to->handle);
	ab_remote_fail(to, ERRCODE_CONNECTION_FAILURE,
				   psprintf("session in database \"%s\" has not got all rows of another one",
							to->database),
				   NULL, NULL);
}

static uint64
pass_rows(AbRemote *from, const char *copy, AbRemote *to)
{
	StringInfoData piece;
	uint64		rows = 0;
	AbRemoteEvent event;

	initStringInfo(&piece);
	appendStringInfoChar(&piece, AB_REMOTE_LOAD_DATA);
	ab_remote_send(from, copy, AB_REMOTE_COPY_OUT);
	while ((event = ab_remote_next(from)) != AB_REMOTE_READY)
	{
		StringInfo	row = &from->message;

		if (event != AB_REMOTE_DATA)
			continue;
		rows++;
		appendBinaryStringInfo(&piece, row->data + row->cursor, row->len - row->cursor);
		if (piece.len >= PIECE_SIZE)
			push(to, &piece);
	}
	if (piece.len > 1)
		push(to, &piece);
	end_load(to, &piece);
	pfree(piece.data);
	return rows;
}

uint64
ab_remote_copy(AbRemote *from, const char *copy, AbRemote *to, const char *table)
{
	uint64		rows;

	begin_load(to, table);
	PG_TRY();
	{
		rows = pass_rows(from, copy, to);
	}
	PG_CATCH();
	{
		give_up(to);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return rows;
}

/* ---- lines ---- */

/* The statement is left to run while the next piece is put together. */
static void
keep(AbRemote *to, const char *head, int64 n, uint64 rows, StringInfo lines)
{
	char	   *sql = psprintf("%s" INT64_FORMAT ", " UINT64_FORMAT ", $1)", head, n, rows);

	while (!ab_remote_is_ready(to))
		(void) ab_remote_next(to);
	ab_remote_send_with(to, sql, lines->data, lines->len);
	pfree(sql);
	resetStringInfo(lines);
}

uint64
ab_remote_gather(AbRemote *from, const char *copy, AbRemote *to, const char *head,
				 int64 first, int64 *next)
{
	StringInfoData lines;
	uint64		rows = 0;
	uint64		before = 0;
	AbRemoteEvent event;

	*next = first;
	initStringInfo(&lines);
	ab_remote_send(from, copy, AB_REMOTE_COPY_OUT);
	while ((event = ab_remote_next(from)) != AB_REMOTE_READY)
	{
		StringInfo	row = &from->message;
		int			len = row->len - row->cursor;

		if (event != AB_REMOTE_DATA)
			continue;
		if (lines.len > 0 && lines.len + len > KEPT_SIZE)
		{
			keep(to, head, (*next)++, rows - before, &lines);
			before = rows;
		}
		appendBinaryStringInfo(&lines, row->data + row->cursor, len);
		rows++;
	}
	if (rows > before)
		keep(to, head, (*next)++, rows - before, &lines);
	pfree(lines.data);
	return rows;
}
