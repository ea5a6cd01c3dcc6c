/*
 * ab_remote_load.c
 *	  Rows from another session into a temporary table (ab_remote.h): the worker's side.
 *
 * Runs in the worker of a session in another database, within its transaction.  The text
 * is what COPY TO STDOUT gave there, in pieces that come through the queue of requests;
 * COPY FROM's own code reads it.  The table is one of this session's temporary ones, so
 * that neither triggers nor policies are passed by.  Takes ROW EXCLUSIVE on it.
 */
#include "ab_remote_wire.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "commands/copy.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_relation.h"
#include "utils/acl.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* What is being read: the queue, and what is left of the last piece. */
static shm_mq_handle *source = NULL;
static const char *rest = NULL;
static Size rest_len = 0;
static bool at_end = false;

/* False: it was the last one. */
static bool
next_piece(void)
{
	Size		size;
	void	   *data;

	if (at_end)
		return false;
	if (shm_mq_receive(source, &size, &data, false) != SHM_MQ_SUCCESS)
		ereport(FATAL,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("the rows of another session ended before their end")));
	rest = (const char *) data + 1;
	rest_len = size - 1;
	at_end = *(const char *) data == AB_REMOTE_LOAD_END;
	return !at_end;
}

/* For COPY FROM: at least minread bytes, fewer only at the end. */
static int
read_data(void *buffer, int minread, int maxread)
{
	int			done = 0;

	while (done < minread)
	{
		Size		n;

		if (rest_len == 0 && !next_piece())
			break;
		n = Min(rest_len, (Size) (maxread - done));
		memcpy((char *) buffer + done, rest, n);
		rest += n;
		rest_len -= n;
		done += n;
	}
	return done;
}

static Relation
open_table(const char *name)
{
	RangeVar   *range = makeRangeVar(pstrdup("pg_temp"), pstrdup(name), -1);
	Relation	rel = table_openrv(range, RowExclusiveLock);

	if (rel->rd_rel->relkind != RELKIND_RELATION || !isTempNamespace(RelationGetNamespace(rel)))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a temporary table", name)));
	if (!pg_class_ownercheck(RelationGetRelid(rel), GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, name);
	return rel;
}

uint64
ab_remote_load(const char *table, shm_mq_handle *requests)
{
	ParseState *pstate = make_parsestate(NULL);
	CopyFromState copy;
	Relation	rel;
	uint64		rows;

	source = requests;
	rest_len = 0;
	at_end = false;
	PushActiveSnapshot(GetTransactionSnapshot());
	rel = open_table(table);
	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL, false, false);
	copy = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_data, NIL, NIL);
	rows = CopyFrom(copy);
	EndCopyFrom(copy);
	while (next_piece())
		;
	table_close(rel, NoLock);
	free_parsestate(pstate);
	PopActiveSnapshot();
	return rows;
}
