/*
 * ab_remote_session.h
 *	  A session in another database as its caller's process keeps it.  Used by
 *	  ab_remote*.c and ab_rowshare.c only.
 */
#ifndef AB_REMOTE_SESSION_H
#define AB_REMOTE_SESSION_H

#include "ab_remote.h"

#include "lib/stringinfo.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/shm_mq.h"
#include "tcop/dest.h"
#include "utils/elog.h"
#include "utils/palloc.h"

typedef enum AbSessionState
{
	AB_SESSION_READY,				/* takes a request */
	AB_SESSION_BUSY,				/* a request is being worked on */
	AB_SESSION_COMMITTING,			/* the last one, or the last one of a transaction */
	AB_SESSION_OVER				/* the worker has ended or is about to */
} AbSessionState;

struct AbRemote
{
	AbRemote   *next;			/* in open_sessions */
	int			number;
	Oid			db;
	Oid			role;			/* whose rights it has */
	SubTransactionId opener;
	MemoryContext context;		/* of all of it */
	char	   *database;
	AbRemoteOptions options;
	bool		ahead;			/* nobody has asked for it yet */
	AbSessionState state;
	dsm_segment *seg;
	BackgroundWorkerHandle *handle;
	shm_mq_handle *answers;
	shm_mq_handle *requests;
	int			pid;			/* 0: not known yet */
	bool		connected;		/* it has answered */
	bool		binary;			/* values of the request's rows are */
	bool		survives;		/* an error of the request does not end the session */
	bool		goes_on;		/* the commit does not end it */
	bool		suspected;		/* looked deadlocked when that was checked last */
	bool		failed;
	ErrorData	error;			/* if failed */
	StringInfoData message;		/* the last one: a row's values are in it */
	MemoryContext columns_context;
	int			ncolumns;
	AbRemoteColumn *columns;
	char	  **values;
	int		   *lengths;
	char		tag[COMPLETION_TAG_BUFSIZE];
};

/* Send a request to the worker, which must be ready.  Its answer is still to be read. */
extern void ab_remote_request(AbRemote *session, const StringInfo request);

/* It has failed, for a reason that its worker has not given. */
extern void ab_remote_fail(AbRemote *session, int sqlstate, const char *message,
						   const char *detail, const char *hint);

#endif							/* AB_REMOTE_SESSION_H */
