/*
 * ab_remote.h
 *	  Sessions in other databases of the cluster, with the caller's rights.
 *
 * A dynamic background worker connects to the database as the caller's current role:
 * no password, no pg_hba line, nothing but that role's privileges, and no way back to
 * the role that the caller has logged in as.  It works under the settings of that role
 * in that database (statement_timeout and so on), except that search_path is
 * pg_catalog, pg_temp, and that lock_timeout is what the calling session has said itself, by
 * SET or when it connected, else 10 s where the settings have none: the deadlock detector
 * does not see that the caller waits for the worker.
 *
 * Rows come through a queue of fixed size: a worker whose rows are not read waits.
 *
 * A session belongs to the (sub)transaction that opened it, and is ended with it; what
 * it has not committed then is rolled back there.  What it has committed stays, whatever
 * becomes of the caller's transaction.  In a read-only transaction, and on a standby,
 * it is read only.
 *
 * Functions that can fail raise; an error of the worker is raised with its SQLSTATE,
 * message, detail, hint and context, and ends the session, except for the one that
 * ab_remote_send() names.  A worker that ends by itself: 57P01 if it was told to,
 * else 08006.
 */
#ifndef AB_REMOTE_H
#define AB_REMOTE_H

#include "ab_compat.h"

typedef struct AbRemote AbRemote;

typedef enum AbRemoteAccess
{
	AB_REMOTE_AS_SET,			/* default_transaction_read_only of the session */
	AB_REMOTE_READ_ONLY,
	AB_REMOTE_READ_WRITE
} AbRemoteAccess;

/* The last two are for functions of the extension alone (ab_sql_remote.c sees to that). */
typedef enum AbRemotePurpose
{
	AB_REMOTE_FOR_ANYTHING,
	AB_REMOTE_FOR_TARGET,		/* writes what is merged: holds ab_mergelock.h's lock there */
	AB_REMOTE_FOR_BOOK			/* writes merges down (ab_remote_is_book) */
} AbRemotePurpose;

typedef struct AbRemoteOptions
{
	AbRemoteAccess access;
	int			isolation;		/* XACT_READ_COMMITTED ...; -1: as set */

	/*
	 * Each ab_remote_send() is a transaction of its own, as a simple query is: several
	 * statements in one string are one transaction, one alone may be VACUUM or the
	 * like.  Otherwise all are one transaction, which ab_remote_commit() commits.
	 * Meant for passing visits to many databases: the file that the first connection
	 * to a database leaves there (relation cache, 160 kB) is removed again.
	 */
	bool		autocommit;
	AbRemotePurpose purpose;
} AbRemoteOptions;

typedef struct AbRemoteColumn
{
	char	   *name;
	Oid			type;			/* of domains: the base type; the OID is that database's */
	int32		typmod;
} AbRemoteColumn;

typedef enum AbRemoteEvent
{
	AB_REMOTE_WAIT,				/* nothing yet: only ab_remote_poll() says that */
	AB_REMOTE_COLUMNS,			/* a statement is about to give rows */
	AB_REMOTE_ROW,
	AB_REMOTE_DATA,				/* a piece of what AB_REMOTE_COPY_OUT gives */
	AB_REMOTE_COMPLETE,			/* a statement is done: ab_remote_tag() */
	AB_REMOTE_READY,			/* all that was sent is done (and, in autocommit, committed) */
	AB_REMOTE_FAILED			/* ab_remote_error() has why: only ab_remote_poll() says that */
} AbRemoteEvent;

/* ab_remote_send() */
#define AB_REMOTE_BINARY	0x01	/* values in the types' binary form */
#define AB_REMOTE_SAVEPOINT	0x02	/* an error undoes only these statements; not in autocommit */
#define AB_REMOTE_COPY_OUT	0x04	/* COPY TO STDOUT is taken */

/*
 * Open a session in a database.  42501 without the privilege CONNECT, 55000 if it takes
 * no connections (a base that this transaction has opened does) or was changed by the
 * current transaction, 3D000, 53400 no free background worker within a second.  Errors of
 * connecting come with the first answer.
 */
extern AbRemote *ab_remote_open(Oid db, const AbRemoteOptions *options);

/* Same, but NULL if there is no free background worker now. */
extern AbRemote *ab_remote_try_open(Oid db, const AbRemoteOptions *options);

/*
 * Begin to connect, for who asks ab_remote_open() for the same later in the (sub)transaction.
 * If nobody does, it ends with that.  Errors as of ab_remote_open(), but 53400: nothing is begun
 * then.
 */
extern void ab_remote_open_ahead(Oid db, const AbRemoteOptions *options);

/*
 * A number for it, and the session with that number: NULL if there is none, or if it was
 * opened by another role than the current one.
 */
extern int	ab_remote_number(AbRemote *session);
extern AbRemote *ab_remote_find(int number);

extern AbRemotePurpose ab_remote_purpose(const AbRemote *session);

/*
 * In any process: is it the worker of a session in which merges are written down?  That runs
 * what functions of the extension have put together, and nothing else.
 */
extern bool ab_remote_is_book(void);

/* Name of the database that it is in. */
extern const char *ab_remote_database(const AbRemote *session);

/* Does it take statements, or is there still something to come of the last ones? */
extern bool ab_remote_is_ready(AbRemote *session);

/*
 * Have statements run.  The session must be ready (it is after opening).  What is not
 * taken there (0A000): transaction control, COPY from or to the client.
 */
extern void ab_remote_send(AbRemote *session, const char *sql, int flags);

/*
 * Same, of one statement with a parameter: $1 is a text, in this database's encoding.
 */
extern void ab_remote_send_with(AbRemote *session, const char *sql, const char *parameter,
								Size len);

/*
 * Raise at once what any session would say of the text: 42601, 0A000, 22023 if there is
 * no statement in it.  Returns their number.
 */
extern int	ab_remote_check(const char *sql);

/* What has come in of that, without waiting. */
extern AbRemoteEvent ab_remote_poll(AbRemote *session);

/* Same, but waits, and raises failures. */
extern AbRemoteEvent ab_remote_next(AbRemote *session);

/* Wait until something has come in for any session of this process. */
extern void ab_remote_wait(void);

/* Columns of the rows to come; valid until the next AB_REMOTE_COLUMNS. */
extern const AbRemoteColumn *ab_remote_columns(AbRemote *session, int *n);

/*
 * Values of the row; valid until the next call for this session.  NULL for null; text
 * (in this database's encoding, with NUL) or binary of the length given.
 */
extern char **ab_remote_values(AbRemote *session, const int **lengths);

/* Command tag of the statement that is done: "INSERT 0 5". */
extern const char *ab_remote_tag(AbRemote *session);

/* Why the last request failed. */
extern const ErrorData *ab_remote_error(AbRemote *session);

/*
 * Run a COPY TO STDOUT in one session and put its rows into a temporary table of another
 * (its name, without schema), by the input functions of that table's columns.  A piece of
 * them is in this process's memory.  Returns how many rows; errors end the sessions.
 */
extern uint64 ab_remote_copy(AbRemote *from, const char *copy, AbRemote *to, const char *table);

/*
 * Run a COPY TO STDOUT in one session, and have its lines kept by another, in pieces of
 * about a megabyte, by a statement for each piece: head, which is "INSERT INTO ... VALUES
 * (" and more values, then the piece's number (from first), how many rows it has, and its
 * text.  Returns how many rows, and in *next the number after the last one; errors end the
 * sessions, that of the last piece when more is asked of them.
 */
extern uint64 ab_remote_gather(AbRemote *from, const char *copy, AbRemote *to,
							   const char *head, int64 first, int64 *next);

/* Run statements to their end; their rows are thrown away. */
extern void ab_remote_run(AbRemote *session, const char *sql);

/* Commit the transaction; the session can only be closed then.  Not in autocommit. */
extern void ab_remote_commit(AbRemote *session);

/* Commit it, and go on in another one.  Not in autocommit. */
extern void ab_remote_save(AbRemote *session);

/* End it, and wait until it is gone; what is not committed is rolled back. */
extern void ab_remote_close(AbRemote *session);

/* The same for some sessions, side by side. */
extern void ab_remote_close_each(AbRemote **sessions, int n);

/* Open, run, commit, close; read-write whatever the settings say. */
extern void ab_remote_execute(Oid db, const char *sql);

#endif							/* AB_REMOTE_H */
