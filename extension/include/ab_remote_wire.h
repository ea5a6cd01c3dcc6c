/*
 * ab_remote_wire.h
 *	  What a session in another database and its worker share: a dynamic segment with
 *	  the task and two queues.  Used by ab_remote*.c and ab_rowshare.c only.
 */
#ifndef AB_REMOTE_WIRE_H
#define AB_REMOTE_WIRE_H

#include "ab_remote.h"

#include <signal.h>

#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/shm_mq.h"

/* Written by the caller before the worker starts, never changed. */
typedef struct AbRemoteTask
{
	Oid			db;
	Oid			role;
	bool		role_is_superuser;
	int			encoding;		/* of the statements, and of what is sent back */
	bool		closed;			/* the database takes no connections but this one */
	bool		leave_no_cache; /* the relation cache file is to go with the worker */
	AbRemoteOptions options;
	int			lock_timeout;	/* that the caller has said itself, in ms; 0: none */

	/* but this: counted up by all who share blocks (ab_rowshare.c) */
	pg_atomic_uint32 blocks_taken;

	/*
	 * And this: SQLSTATE of what ends the worker, noted by it, 0 as long as nothing does.  In
	 * the middle of a message that the queue has no room for, it can send no other one.
	 */
	volatile sig_atomic_t ended_by;

	/* And this, before it sends an error: which of its settings that may be due to, in ms. */
	volatile int lock_timeout_there;
	volatile int statement_timed_out;	/* 0: it was not that */
} AbRemoteTask;

/* The segment: the task, the answers' queue, the requests' queue. */
#define AB_REMOTE_TASK_SIZE		MAXALIGN(sizeof(AbRemoteTask))
#define AB_REMOTE_ANSWERS_SIZE	65536
#define AB_REMOTE_REQUESTS_SIZE 65536
#define AB_REMOTE_SEGMENT_SIZE \
	(AB_REMOTE_TASK_SIZE + AB_REMOTE_ANSWERS_SIZE + AB_REMOTE_REQUESTS_SIZE)

static inline shm_mq *
ab_remote_answers(AbRemoteTask *task)
{
	return (shm_mq *) ((char *) task + AB_REMOTE_TASK_SIZE);
}

static inline shm_mq *
ab_remote_requests(AbRemoteTask *task)
{
	return (shm_mq *) ((char *) task + AB_REMOTE_TASK_SIZE + AB_REMOTE_ANSWERS_SIZE);
}

/*
 * Requests: a letter; 'Q' is followed by a byte of flags and the statements with their
 * NUL, 'P' by a statement and its parameter, each with its NUL.  Answers: messages of the
 * wire protocol, and the letters below.
 */
#define AB_REMOTE_QUERY		'Q'
#define AB_REMOTE_QUERY_WITH 'P'
#define AB_REMOTE_COMMIT	'X'
#define AB_REMOTE_SAVE		'S' /* the same, and another transaction */
#define AB_REMOTE_LOAD		'L' /* a temporary table, with NUL; then the two below */
#define AB_REMOTE_LOAD_DATA 'd' /* a piece of what COPY FROM reads */
#define AB_REMOTE_LOAD_END	'c'
#define AB_REMOTE_ROWS		'R' /* blocks of which some are to be looked at (ab_rowshare.c) */

#define AB_REMOTE_PID		'K' /* first of all: int32 process id */
#define AB_REMOTE_DONE		'Z' /* a request is done */

/* Raw statements of a text; errors as of ab_remote_check(), unless COPY TO STDOUT is let through. */
extern List *ab_remote_parse(const char *sql, bool copies);

/* In the worker: rows sent by ab_remote_copy() into a temporary table; how many. */
extern uint64 ab_remote_load(const char *table, shm_mq_handle *requests);

/* In the worker: look at a share of the blocks that a request is about; it is what follows
 * the letter. */
extern void ab_rowshare_serve(const char *request, Size size);

#endif							/* AB_REMOTE_WIRE_H */
