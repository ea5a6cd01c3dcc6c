/*
 * ab_joblock.c
 *	  One run of a job at a time, whoever starts it.
 *
 * Backends in the control database.  The lock is an advisory one of a class that users'
 * own advisory locks do not have; it is never waited for, so it takes no part in the
 * order of locks.
 */
#include "ab_joblock.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"

#define JOB_LOCK_KEY	0x41424A4F	/* "ABJO" */
#define JOB_LOCK_CLASS	0xAB	/* users' advisory locks have 1 and 2 here */

static LOCKTAG
tag_of(const char *job)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, InvalidOid, JOB_LOCK_KEY,
						 hash_bytes((const unsigned char *) job, strlen(job)),
						 JOB_LOCK_CLASS);
	return tag;
}

bool
ab_joblock_take(const char *job, bool session)
{
	LOCKTAG		tag = tag_of(job);

	return LockAcquire(&tag, ExclusiveLock, session, true) != LOCKACQUIRE_NOT_AVAIL;
}

bool
ab_joblock_release(const char *job)
{
	LOCKTAG		tag = tag_of(job);

	return LockRelease(&tag, ExclusiveLock, true);
}
