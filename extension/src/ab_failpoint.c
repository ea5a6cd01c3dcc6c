/*
 * ab_failpoint.c
 *	  What a process does at a failpoint (see ab_failpoint.h; tests/ab_failpoints.py is
 *	  the other side).
 *
 * Any process, the postmaster included, inside critical sections and with any locks
 * held: raw system calls and shared memory of a file, nothing else.  The file's own lock
 * is a word in it; the test that kills everybody writes the file anew.
 */
#include "ab_failpoint.h"

#ifdef AB_FAILPOINTS

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"

typedef enum Action
{
	ACTION_NONE,
	ACTION_HOLD,				/* until the test says otherwise, or kills us */
	ACTION_CRASH,				/* this process dies of SIGKILL */
	ACTION_ERROR				/* an ERROR, where one may be raised */
} Action;

typedef struct Seen
{
	char		name[AB_FAILPOINT_NAME];
	int64		count;
} Seen;

typedef struct Plan
{
	char		name[AB_FAILPOINT_NAME];	/* empty: only count */
	int64		action;
	int64		at;				/* the how-manyth time; no other */
	int64		reached;		/* how often it was */
	int64		pid;			/* of whoever came the at-th time */
	int64		released;		/* raised: ACTION_HOLD is over */
	int64		lock;
	Seen		seen[AB_FAILPOINT_NAMES];
} Plan;

static Plan *
map_plan(void)
{
	static Plan *plan = NULL;
	struct stat st;
	void	   *memory;
	int			fd;

	if (plan != NULL)
		return plan;
	fd = open(AB_FAILPOINT_FILE, O_RDWR);
	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && st.st_size == (off_t) sizeof(Plan))
	{
		memory = mmap(NULL, sizeof(Plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (memory != MAP_FAILED)
			plan = memory;
	}
	(void) close(fd);
	return plan;
}

static void
count(Plan *plan, const char *name)
{
	while (__atomic_exchange_n(&plan->lock, 1, __ATOMIC_ACQUIRE) != 0)
		(void) usleep(10);
	for (int i = 0; i < AB_FAILPOINT_NAMES; i++)
	{
		Seen	   *seen = &plan->seen[i];

		if (seen->name[0] == '\0')
			strlcpy(seen->name, name, sizeof(seen->name));
		if (strcmp(seen->name, name) == 0)
		{
			seen->count++;
			break;
		}
	}
	__atomic_store_n(&plan->lock, 0, __ATOMIC_RELEASE);
}

/* The postmaster may be killed meanwhile: nobody is left to wait for then. */
static void
hold(Plan *plan)
{
	int64		before = __atomic_load_n(&plan->released, __ATOMIC_ACQUIRE);

	__atomic_store_n(&plan->pid, getpid(), __ATOMIC_RELEASE);
	while (__atomic_load_n(&plan->released, __ATOMIC_ACQUIRE) == before)
	{
		if (MyProcPid != PostmasterPid && getppid() != PostmasterPid)
			_exit(2);
		(void) usleep(1000);
	}
}

void
ab_failpoint(const char *name, bool may_fail)
{
	int			save_errno = errno;
	Plan	   *plan = map_plan();

	if (plan == NULL)
	{
		errno = save_errno;
		return;
	}
	count(plan, name);
	if (plan->action != ACTION_NONE && strcmp(plan->name, name) == 0 &&
		__atomic_add_fetch(&plan->reached, 1, __ATOMIC_SEQ_CST) == plan->at)
	{
		if (plan->action == ACTION_HOLD)
		{
			hold(plan);
			errno = save_errno;
			return;
		}
		__atomic_store_n(&plan->pid, getpid(), __ATOMIC_RELEASE);
		if (plan->action == ACTION_CRASH || !may_fail || CritSectionCount > 0)
			(void) kill(getpid(), SIGKILL);
		else
			ereport(ERROR,
					(errcode(ERRCODE_IO_ERROR),
					 errmsg("failpoint \"%s\" was reached", name)));
	}
	errno = save_errno;
}

#endif							/* AB_FAILPOINTS */
