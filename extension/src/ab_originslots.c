/*
 * ab_originslots.c
 *	  Writing the limit slots of an origin in place, or at its end.
 *
 * Any process, also in a critical section.  Slots are written under the database's origin
 * lock (exclusive), and the generation is bumped after they are durable.  What a process
 * writes into it holds open: the origin's own file, or, if that was gathered, one that gets
 * the origin's name with its first slot (G5).  A crash leaves a slot old or new, and
 * perhaps a .spare, which whoever needs it next uses or makes anew.
 */
#include "ab_originslots.h"

#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_originfile.h"
#include "ab_originpack.h"
#include "ab_recovery.h"
#include "ab_shmem.h"

/* The descriptor this process keeps for writing slots. */
static int	held_fd = -1;
static Oid	held_db = InvalidOid;
static AbSnapId held_incarnation;
static bool held_is_spare;		/* unless somebody has given it its name since */
uint32		ab_originslots_held_moment = 1;

/* ---- the file that is held ---- */

static void
drop_held(void)
{
	if (held_fd >= 0)
		close(held_fd);
	held_fd = -1;
	held_db = InvalidOid;
	ab_originslots_held_moment++;
}

void
ab_originslots_let_go(Oid db)
{
	if (held_db == db)
		drop_held();
}

/* Open for writing without allocating; -1 with errno on failure. */
static int
open_origin(Oid db)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", db);
	return BasicOpenFile(path, O_RDWR | PG_BINARY);
}

/*
 * G5: what an origin that has been gathered writes its slots into.  It gets the origin's name
 * when there is one in it.  Allocates nothing; the caller holds the origin lock, exclusively.
 */
static int
open_spare(Oid db, AbSnapId incarnation)
{
	AbPackAnswer answer;
	AbOriginHeader header;
	char		path[MAXPGPATH];
	char		block[AB_ORIGIN_BLOCK];
	char		there[AB_ORIGIN_BLOCK];
	int			fd;

	answer = ab_originpack_find(db, &header);
	if (answer != AB_PACK_FOUND || !AbSnapIdEquals(header.incarnation, incarnation))
	{
		/* dropped or detached since it was found: on standbys, under its sessions */
		errno = answer == AB_PACK_DAMAGED ? EIO : ENOENT;
		return -1;
	}
	ab_originfile_fill_block(block, &header);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u" AB_SPARE_SUFFIX, db);
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
		return -1;
	/* a crash may have left one in part, or of a database that had this number */
	if ((pg_pread(fd, there, sizeof(there), 0) != sizeof(there) ||
		 memcmp(there, block, sizeof(header)) != 0) &&
		(ftruncate(fd, 0) < 0 ||
		 pg_pwrite(fd, block, sizeof(block), 0) != sizeof(block)))
	{
		close(fd);
		return -1;
	}
	return fd;
}

/* The caller holds the origin lock, exclusively. */
static void
hold_locked(Oid db, AbSnapId incarnation)
{
	drop_held();
	held_fd = open_origin(db);
	held_is_spare = held_fd < 0 && errno == ENOENT;
	if (held_is_spare)
		held_fd = open_spare(db, incarnation);
	if (held_fd < 0)
		return;					/* whoever needs it will report */
	held_db = db;
	held_incarnation = incarnation;
	AB_FAILPOINT_NO_ERROR("origin-held");
}

bool
ab_originslots_hold(Oid db, AbSnapId incarnation)
{
	LWLock	   *lock = ab_origin_lock(db);
	int			save_errno;

	if (held_db == db && AbSnapIdEquals(held_incarnation, incarnation))
		return true;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	hold_locked(db, incarnation);
	save_errno = errno;
	LWLockRelease(lock);
	errno = save_errno;
	return held_fd >= 0;
}

/* Was it gathered since it was opened?  (Then no slot was written into it.) */
static bool
held_is_gone(void)
{
	struct stat st;

	return held_fd >= 0 && fstat(held_fd, &st) == 0 && st.st_nlink == 0;
}

static bool
sync_names(void)
{
	int			fd = BasicOpenFile(AB_BRANCH_DIR, O_RDONLY | PG_BINARY);
	bool		done = fd >= 0 && pg_fsync(fd) == 0;
	int			save_errno = errno;

	if (fd >= 0)
		close(fd);
	errno = save_errno;
	return done;
}

/* Make durable what was written into the file that is held, and its name. */
static bool
sync_held(void)
{
	char		spare[MAXPGPATH];
	char		path[MAXPGPATH];

	if (!held_is_spare)
		return pg_fdatasync(held_fd) == 0;
	if (pg_fsync(held_fd) != 0)
		return false;
	AB_FAILPOINT_NO_ERROR("origin-spare-synced");
	snprintf(spare, sizeof(spare), AB_BRANCH_DIR "/%u" AB_SPARE_SUFFIX, held_db);
	snprintf(path, sizeof(path), AB_BRANCH_DIR "/%u", held_db);

	/* another process may have given this very file its name */
	if (rename(spare, path) < 0 && errno != ENOENT)
		return false;
	held_is_spare = false;
	AB_FAILPOINT_NO_ERROR("origin-apart");
	return sync_names();
}

/* ---- slots ---- */

/*
 * Offset of the slot for the same fork, else of the first free one, else -1.
 * Reads through a buffer on the stack.
 */
static off_t
find_slot(int fd, const AbLimitSlot *wanted)
{
	AbLimitSlot chunk[128];
	off_t		offset = AB_ORIGIN_HEADER;
	off_t		first_free = -1;
	ssize_t		n;

	while ((n = pg_pread(fd, chunk, sizeof(chunk), offset)) >= (ssize_t) sizeof(AbLimitSlot))
	{
		for (int i = 0; i < n / (ssize_t) sizeof(AbLimitSlot); i++)
		{
			off_t		at = offset + i * sizeof(AbLimitSlot);

			if (!ab_originfile_slot_is_used(&chunk[i]))
			{
				if (first_free < 0)
					first_free = at;
			}
			else if (chunk[i].rel == wanted->rel && chunk[i].spc == wanted->spc &&
					 chunk[i].fork == wanted->fork)
				return at;
		}
		offset += (n / sizeof(AbLimitSlot)) * sizeof(AbLimitSlot);
	}
	return first_free;
}

/*
 * Where the next slot goes when none is free, which _extend has not seen to: the first of a
 * block of free ones, if the disk has room for it.  The file may have ended in a slot.
 */
static off_t
end_of_slots(int fd)
{
	static const char zeros[AB_ORIGIN_BLOCK] = {0};
	struct stat st;
	off_t		at;

	if (fstat(fd, &st) < 0)
		return -1;
	at = TYPEALIGN(sizeof(AbLimitSlot), st.st_size);
	if (pg_pwrite(fd, zeros, AB_ORIGIN_BLOCK - at % AB_ORIGIN_BLOCK, at) < 0)
		errno = 0;				/* the slot itself may have room still */
	return at;
}

/* How long the file has to be; 0 if that cannot be read. */
static uint32
noted_length(void)
{
	AbOriginLength l;

	if (pg_pread(held_fd, &l, sizeof(l), AB_ORIGIN_LENGTH_AT) != sizeof(l) ||
		!ab_originfile_length_is_sound(&l))
		return 0;
	return Max(l.length, AB_ORIGIN_BLOCK);
}

/* A slot is durable: from now on the file without it is one that was cut. */
static bool
note_length(off_t slot_end)
{
	AbOriginLength l = {0};
	struct stat st;

	if (slot_end <= noted_length())
		return true;
	if (fstat(held_fd, &st) < 0)
		return false;
	l.length = st.st_size;
	l.crc = ab_crc_without(&l, sizeof(l), offsetof(AbOriginLength, crc));
	errno = ENOSPC;				/* unless the call has another reason */
	return pg_pwrite(held_fd, &l, sizeof(l), AB_ORIGIN_LENGTH_AT) == sizeof(l) &&
		pg_fdatasync(held_fd) == 0;
}

/*
 * A base backup may have taken the size of the file before it grew, and its first block
 * after that: the slots that are missing will be replayed.
 */
static bool
fill_up(void)
{
	struct stat st;
	uint32		length;

	if (!ab_recovery_files_are_mixed())
		return true;
	length = noted_length();
	return fstat(held_fd, &st) == 0 &&
		(st.st_size >= length || ftruncate(held_fd, length) == 0);
}

/* Of one that is written in part nothing remains: it would be taken for a damaged one. */
static bool
write_slot(int fd, const AbLimitSlot *slot, off_t at)
{
	AbLimitSlot before;
	int			save_errno;

	if (pg_pread(fd, &before, sizeof(before), at) != sizeof(before))
		memset(&before, 0, sizeof(before)); /* at the end of the file */
	errno = 0;
	if (pg_pwrite(fd, slot, sizeof(*slot), at) == sizeof(*slot))
		return true;
	save_errno = errno != 0 ? errno : ENOSPC;
	if (pg_pwrite(fd, &before, sizeof(before), at) != sizeof(before))
		ereport(LOG,
				(errmsg("could not take back what was written in part into the origin file of relation %u: %m",
						slot->rel)));
	errno = save_errno;
	return false;
}

void
ab_originslots_put(Oid db, AbSnapId incarnation, AbLimitSlot *slot, int elevel)
{
	LWLock	   *lock = ab_origin_lock(db);
	bool		ok = false;
	off_t		at;
	int			save_errno = 0;

	slot->crc = ab_crc_without(slot, sizeof(*slot), offsetof(AbLimitSlot, crc));
	(void) ab_originslots_hold(db, incarnation);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (held_is_gone())
		hold_locked(db, incarnation);
	if (held_fd >= 0 && fill_up())
	{
		at = find_slot(held_fd, slot);
		if (at < 0)
			at = end_of_slots(held_fd);
		ok = at >= 0 && write_slot(held_fd, slot, at) && sync_held() &&
			note_length(at + sizeof(*slot));
	}
	save_errno = errno;
	if (ok)
		ab_generation_bump(db);
	LWLockRelease(lock);

	if (!ok)
	{
		errno = save_errno;
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not record in \"" AB_BRANCH_DIR "/%u\" how far relation %u is inherited: %m",
						db, slot->rel)));
	}
}

bool
ab_originslots_extend(Oid db, bool lenient)
{
	static const char zeros[AB_ORIGIN_BLOCK] = {0};
	LWLock	   *lock = ab_origin_lock(db);
	bool		done = false;
	struct stat st;
	int			save_errno = 0;

	if (held_db != db || held_fd < 0)
		return false;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (fstat(held_fd, &st) == 0)
	{
		/* whole blocks only: a slot appended in need may have ended elsewhere */
		off_t		at = TYPEALIGN(AB_ORIGIN_BLOCK, st.st_size);

		done = pg_pwrite(held_fd, zeros, sizeof(zeros), at) == sizeof(zeros) &&
			pg_fdatasync(held_fd) == 0;
	}
	save_errno = errno;
	if (done)
		ab_generation_bump(db);
	LWLockRelease(lock);
	if (!done && !lenient)
	{
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not extend file \"" AB_BRANCH_DIR "/%u\": %m", db)));
	}
	return done;
}
