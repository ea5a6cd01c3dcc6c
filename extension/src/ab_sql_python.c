/*
 * ab_sql_python.c
 *	  Language agent_branch_python: PL/Python whose errors begin with what is wrong.
 *
 * PL/Python puts the name of the exception before the text of every error that comes out of a
 * function: 'plpy.Error: branch "x" does not exist'.  To who calls a function of the extension
 * it is all the same what that is written in.  So these functions have a language of their own,
 * whose handler calls PL/Python's and takes the name away again.  Of errors that a function
 * raises itself it takes the traceback out of the context, too: that is for who writes functions.
 * All other fields stay.
 * PL/Python knows a function by its OID and never asks for its language.  The names of Python's
 * own exceptions ('KeyError: ...') stay: with these it is the extension that is wrong.
 *
 * The language is not trusted, so only superusers make functions in it, and what a function of
 * the extension runs in this process is the extension's own: statements with a fixed
 * search_path, no triggers of others.  So what is for functions of the extension alone can
 * ask whether one is running.
 *
 * Backends, in every database that has the functions.  No locks; a crash leaves nothing.
 */
#include "ab_sql_python.h"

#include "fmgr.h"
#include "utils/elog.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(ab_sql_python_handler);

/* Between message and DETAIL, where the package raises an error (inside.py). */
#define DETAIL_FOLLOWS '\x1f'

/* How the text of what plpy.error() raised begins. */
#define RAISED "plpy.Error: "

#define TRACEBACK "Traceback (most recent call last):\n"

static bool is_running = false;

bool
ab_sql_python_is_running(void)
{
	return is_running;
}

/*
 * Behind the name of an exception that PL/Python made of an error, and put before its text;
 * NULL if the text does not begin with one.  One name only: what is behind it may be the
 * message of a function in PL/Python of somebody else's, which is that way everywhere.
 */
static char *
behind_exception(char *text)
{
	static const char *const modules[] = {"plpy.", "spiexceptions."};

	for (int i = 0; text != NULL && i < lengthof(modules); i++)
	{
		size_t		n = strlen(modules[i]);

		if (strncmp(text, modules[i], n) != 0)
			continue;
		while ((text[n] >= 'A' && text[n] <= 'Z') || (text[n] >= 'a' && text[n] <= 'z'))
			n++;
		if (strncmp(text + n, ": ", 2) == 0)
			return text + n + 2;
	}
	return NULL;
}

/* The context without the traceback that it begins with; its lines are indented. */
static char *
behind_traceback(char *context)
{
	if (context == NULL || strncmp(context, TRACEBACK, strlen(TRACEBACK)) != 0)
		return context;
	context += strlen(TRACEBACK);
	while (*context == ' ')
	{
		char	   *end = strchr(context, '\n');

		if (end == NULL)
			return NULL;
		context = end + 1;
	}
	return context;
}

/*
 * An error of a function that returns a set is all in the DETAIL: the message is only that there
 * is no next row, and the DETAIL it had itself is lost, unless it came with the message.
 */
static void
name_no_exception(ErrorData *error)
{
	char	   *said = error->message;
	char	   *text = behind_exception(said);
	char	   *detail;

	if (text == NULL)
	{
		said = error->detail;
		text = behind_exception(said);
		if (text == NULL)
			return;
		error->detail = NULL;
	}
	if (strncmp(said, RAISED, strlen(RAISED)) == 0)
		error->context = behind_traceback(error->context);
	detail = strchr(text, DETAIL_FOLLOWS);
	if (detail != NULL)
	{
		*detail = '\0';
		error->detail = detail + 1;
	}
	error->message = text;
}

static PGFunction
plpython_handler(void)
{
	static PGFunction handler = NULL;

	if (handler == NULL)
		handler = (PGFunction) load_external_function("$libdir/plpython3",
													  "plpython3_call_handler", true, NULL);
	return handler;
}

/*
 * Functions, procedures that commit, sets row by row, triggers: all that there is to know is in
 * fcinfo, and goes on as it came.  The caller's memory context outlives a commit in a procedure,
 * since the server itself keeps there what it needs after the call.
 */
Datum
ab_sql_python_handler(PG_FUNCTION_ARGS)
{
	PGFunction	handler = plpython_handler();
	MemoryContext caller = CurrentMemoryContext;
	bool		outer = is_running;
	Datum		result;

	PG_TRY();
	{
		is_running = true;
		result = handler(fcinfo);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		is_running = outer;
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		name_no_exception(error);
		ReThrowError(error);
	}
	PG_END_TRY();
	is_running = outer;
	return result;
}
