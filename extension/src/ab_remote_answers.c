/*
 * ab_remote_answers.c
 *	  What the worker of a session in another database answers (ab_remote.h): errors,
 *	  columns, rows, tags.
 *
 * Runs in the backend that has opened the session.  Reads one message at a time from
 * the shared memory queue, so that no more than one row is in this process's memory.
 */
#include "ab_remote_session.h"
#include "ab_remote_wire.h"

#include "libpq/pqformat.h"
#include "libpq/pqmq.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#define MAYBE_COMMITTED "It is not known whether the transaction was committed."

static void
fail(AbRemote *session, const ErrorData *error)
{
	session->failed = true;
	session->error = *error;
}

void
ab_remote_fail(AbRemote *session, int sqlstate, const char *message, const char *detail,
			   const char *hint)
{
	ErrorData	error;

	MemSet(&error, 0, sizeof(error));
	error.elevel = ERROR;
	error.sqlerrcode = sqlstate;
	error.message = MemoryContextStrdup(session->context, message);
	error.detail = detail ? MemoryContextStrdup(session->context, detail) : NULL;
	error.hint = hint ? MemoryContextStrdup(session->context, hint) : NULL;
	error.assoc_context = session->context;
	fail(session, &error);
	session->state = AB_SESSION_OVER;
}

/* It is gone, and has not said why, but for its note. */
static void
fail_detached(AbRemote *session)
{
	const AbRemoteTask *task = dsm_segment_address(session->seg);
	bool		unknown = session->options.autocommit || session->state == AB_SESSION_COMMITTING;
	int			noted = task->ended_by != 0 ? task->ended_by : ERRCODE_CONNECTION_FAILURE;

	ab_remote_fail(session, unknown ? ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN : noted,
				   psprintf("session in database \"%s\" ended before its transaction was over",
							session->database),
				   unknown ? MAYBE_COMMITTED : NULL,
				   "The server log has the reason.");
}

/*
 * Statements can change the encoding of what is sent here.  Data of another one is an
 * error; of messages the rest is worth having.
 */
static char *
readable(char *text)
{
	if (text == NULL || pg_verifymbstr(text, strlen(text), true))
		return text;
	for (char *c = text; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			*c = '?';
	return text;
}

/* The caller may have no such setting, or another one. */
static void
tell_timeout(AbRemote *session, ErrorData *error)
{
	const AbRemoteTask *task = dsm_segment_address(session->seg);

	if (error->detail != NULL)
		return;
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE && task->lock_timeout_there > 0)
		error->detail = psprintf("In database \"%s\", with a lock_timeout of %d ms.",
								 session->database, task->lock_timeout_there);
	else if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && task->statement_timed_out > 0)
	{
		error->detail = psprintf("In database \"%s\" it is %d ms for this role.",
								 session->database, task->statement_timed_out);
		error->hint = "Raise it there, with ALTER DATABASE or ALTER ROLE ... SET statement_timeout.";
	}
}

/* Remember what was raised there; weaker messages are passed on. */
static void
take_error_or_notice(AbRemote *session, StringInfo msg)
{
	MemoryContext old = MemoryContextSwitchTo(session->context);
	ErrorData	error;
	char	   *where = psprintf("session in database \"%s\"", session->database);

	pq_parse_errornotice(msg, &error);
	error.message = readable(error.message);
	error.detail = readable(error.detail);
	error.hint = readable(error.hint);
	error.context = readable(error.context);
	error.internalquery = readable(error.internalquery);
	error.context = error.context ? psprintf("%s\n%s", error.context, where) : where;
	if (error.elevel >= ERROR)
		tell_timeout(session, &error);
	MemoryContextSwitchTo(old);
	if (error.elevel < ERROR)
	{
		ThrowErrorData(&error);
		return;
	}
	if (error.elevel > ERROR || !session->survives)
		session->state = AB_SESSION_OVER;

	/* its FATAL ended the worker, not this session */
	error.elevel = ERROR;
	fail(session, &error);
}

static void
take_columns(AbRemote *session, StringInfo msg)
{
	MemoryContext old;
	int			n = pq_getmsgint(msg, 2);

	MemoryContextReset(session->columns_context);
	old = MemoryContextSwitchTo(session->columns_context);
	session->ncolumns = n;
	session->columns = palloc0(sizeof(AbRemoteColumn) * Max(n, 1));
	session->values = palloc0(sizeof(char *) * Max(n, 1));
	session->lengths = palloc0(sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		session->columns[i].name = readable(pstrdup(pq_getmsgrawstring(msg)));
		(void) pq_getmsgint(msg, 4);	/* table */
		(void) pq_getmsgint(msg, 2);	/* its column */
		session->columns[i].type = pq_getmsgint(msg, 4);
		(void) pq_getmsgint(msg, 2);	/* length of the type */
		session->columns[i].typmod = (int32) pq_getmsgint(msg, 4);
		(void) pq_getmsgint(msg, 2);	/* format */
	}
	MemoryContextSwitchTo(old);
}

/* The values stay where they are in the message, each with a NUL after it. */
static AbRemoteEvent
take_row(AbRemote *session, StringInfo msg)
{
	int			n = pq_getmsgint(msg, 2);
	char	   *end = NULL;

	if (n != session->ncolumns)
		elog(ERROR, "row of %d columns where %d were announced", n, session->ncolumns);
	for (int i = 0; i < n; i++)
	{
		int			len = (int32) pq_getmsgint(msg, 4);

		if (end != NULL)
			*end = '\0';
		end = NULL;
		session->lengths[i] = Max(len, 0);
		session->values[i] = NULL;
		if (len < 0)
			continue;
		session->values[i] = unconstify(char *, pq_getmsgbytes(msg, len));
		if (!session->binary && !pg_verifymbstr(session->values[i], len, true))
		{
			TerminateBackgroundWorker(session->handle);
			ab_remote_fail(session, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
						   psprintf("session in database \"%s\" has sent text that is not in encoding %s",
									session->database, GetDatabaseEncodingName()),
						   session->options.autocommit ? MAYBE_COMMITTED : NULL,
						   "Leave client_encoding there as it is.");
			return AB_REMOTE_FAILED;
		}
		end = session->values[i] + len;
	}
	if (end != NULL)
		*end = '\0';
	return AB_REMOTE_ROW;
}

/* What a request comes to when it is done. */
static AbRemoteEvent
take_done(AbRemote *session)
{
	session->connected = true;
	session->state = session->state == AB_SESSION_COMMITTING && !session->goes_on ?
		AB_SESSION_OVER : AB_SESSION_READY;
	return session->failed ? AB_REMOTE_FAILED : AB_REMOTE_READY;
}

static AbRemoteEvent
take_message(AbRemote *session, const void *data, Size size)
{
	StringInfo	msg = &session->message;

	resetStringInfo(msg);
	appendBinaryStringInfo(msg, data, size);
	switch (pq_getmsgbyte(msg))
	{
		case AB_REMOTE_PID:
			session->pid = pq_getmsgint(msg, 4);
			return AB_REMOTE_WAIT;
		case 'T':
			take_columns(session, msg);
			return AB_REMOTE_COLUMNS;
		case 'D':
			return take_row(session, msg);
		case 'd':
			return AB_REMOTE_DATA;
		case 'C':
			strlcpy(session->tag, pq_getmsgrawstring(msg), sizeof(session->tag));
			return AB_REMOTE_COMPLETE;
		case 'E':
		case 'N':
			take_error_or_notice(session, msg);
			return session->state == AB_SESSION_OVER ? AB_REMOTE_FAILED : AB_REMOTE_WAIT;
		case AB_REMOTE_DONE:
			return take_done(session);
		default:
			return AB_REMOTE_WAIT;	/* notifications and the like: of no interest */
	}
}

AbRemoteEvent
ab_remote_poll(AbRemote *session)
{
	if (session->state == AB_SESSION_OVER && session->failed)
		return AB_REMOTE_FAILED;
	for (;;)
	{
		Size		size;
		void	   *data;
		shm_mq_result result;
		AbRemoteEvent event;

		result = shm_mq_receive(session->answers, &size, &data, true);
		if (result == SHM_MQ_WOULD_BLOCK)
			return AB_REMOTE_WAIT;
		if (result == SHM_MQ_DETACHED)
		{
			fail_detached(session);
			return AB_REMOTE_FAILED;
		}
		event = take_message(session, data, size);
		if (event != AB_REMOTE_WAIT)
			return event;
	}
}

/* ---- what has come ---- */

const AbRemoteColumn *
ab_remote_columns(AbRemote *session, int *n)
{
	*n = session->ncolumns;
	return session->columns;
}

char	  **
ab_remote_values(AbRemote *session, const int **lengths)
{
	if (lengths != NULL)
		*lengths = session->lengths;
	return session->values;
}

const char *
ab_remote_tag(AbRemote *session)
{
	return session->tag;
}

const ErrorData *
ab_remote_error(AbRemote *session)
{
	return session->failed ? &session->error : NULL;
}
