/*
 * images_model.c
 *	  The store of before-images against a model of it: random saving, superseding,
 *	  reading and giving back, with crashes, power cuts and calls that fail.
 *
 *	  images_model DIRECTORY SEED ROUNDS STEPS
 *
 * Linked with the store's own sources; the few functions of the server that they call
 * are here.  System calls go through wrappers (ld --wrap): each may fail, once or from
 * then on, or end the "process" in the middle, and writes are remembered until a sync.  A
 * power cut keeps any of the sectors that were not synced; a sync that fails may lose
 * them for good.
 *
 * The model says what each snapshot sees of each block.  Where the store said that it
 * failed, either is right until the next start decides.
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "utils/memutils.h"

#include "ab_file.h"
#include "ab_imagefile.h"
#include "ab_images.h"
#include "ab_shmem.h"

#define DB			7
#define FORKS		4
#define BLOCKS		40
#define EPOCHS		200
#define VARIANTS	6
#define DESCRIPTORS 1024
#define DIRECTORY	"agent_branch/images/7"

static long seed;
static int	step;

#define FAIL(...) \
	do { \
		fprintf(stderr, "seed %ld, step %d, line %d: ", seed, step, __LINE__); \
		fprintf(stderr, __VA_ARGS__); \
		fprintf(stderr, "\n"); \
		abort(); \
	} while (0)

static uint64 random_state;

static int
below(int n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 16) % n;
}

/* ---- what the store uses of the server ---- */

AbShared   *ab_shared;
PGPROC	   *MyProc;
MemoryContext CurrentMemoryContext;
MemoryContext TopMemoryContext;
uint32	   *my_wait_event_info;
volatile sig_atomic_t InterruptPending;

static PGPROC a_process;
static uint32 wait_event;
static LWLockPadded locks[3 * AB_GUARDS];
static bool held[3 * AB_GUARDS];
static bool nofail;				/* a function is running that must not raise */
static bool error_expected;
static jmp_buf on_error;
static int	elevel_now;

static void
may_allocate(void)
{
	if (nofail)
		FAIL("memory is allocated where it must not be");
}

void *
palloc(Size size)
{
	may_allocate();
	return malloc(size);
}

void *
palloc0(Size size)
{
	may_allocate();
	return calloc(1, size);
}

void *
palloc_extended(Size size, int flags)
{
	return palloc0(size);
}

void *
repalloc(void *p, Size size)
{
	may_allocate();
	return realloc(p, size);
}

void *
repalloc_huge(void *p, Size size)
{
	return repalloc(p, size);
}

void *
MemoryContextAllocHuge(MemoryContext context, Size size)
{
	return palloc(size);
}

void
pfree(void *p)
{
	free(p);
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size min,
							  Size init, Size max)
{
	return NULL;
}

void
MemoryContextDelete(MemoryContext context)
{
}

char *
psprintf(const char *format,...)
{
	char	   *text = palloc(1024);
	va_list		args;

	va_start(args, format);
	vsnprintf(text, 1024, format, args);
	va_end(args);
	return text;
}

List *
lappend(List *list, void *datum)
{
	if (list == NULL)
	{
		list = palloc0(sizeof(List));
		list->elements = palloc0(1000 * sizeof(ListCell));
	}
	list->elements[list->length++].ptr_value = datum;
	return list;
}

bool
errstart(int elevel, const char *domain)
{
	if (elevel >= ERROR && (nofail || !error_expected))
		FAIL("an error is raised where none may be");
	elevel_now = elevel;
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	if (elevel_now >= ERROR)
		longjmp(on_error, 1);
}

int
errmsg(const char *format,...)
{
	return 0;
}

int
errcode(int code)
{
	return 0;
}

int
errcode_for_file_access(void)
{
	return 0;
}

void
ExceptionalCondition(const char *condition, const char *type, const char *file, int line)
{
	FAIL("%s of %s, line %d: %s", type, file, line, condition);
}

void
ProcessInterrupts(void)
{
}

bool
LWLockAcquire(LWLock *lock, LWLockMode mode)
{
	int			i = (LWLockPadded *) lock - locks;

	if (MyProc == NULL || held[i])
		FAIL("a lock is taken where it must not be");
	held[i] = true;
	return true;
}

void
LWLockRelease(LWLock *lock)
{
	held[(LWLockPadded *) lock - locks] = false;
}

static void
no_locks(void)
{
	for (int i = 0; i < lengthof(held); i++)
		if (held[i])
			FAIL("lock %d is left", i);
}

bool
AcquireExternalFD(void)
{
	return below(100) > 0;
}

void
ReserveExternalFD(void)
{
}

void
ReleaseExternalFD(void)
{
}

/* ---- files, and what of them is on disk ---- */

typedef struct Write
{
	bool		punch;
	off_t		offset;
	size_t		length;
	char	   *data;
	struct Write *next;
} Write;

typedef struct Tracked
{
	char		path[128];
	bool		removed;
	char	   *disk;
	size_t		size;
	Write	   *writes;			/* since the last sync */
	Write	  **last;
	struct Tracked *next;
} Tracked;

static bool no_holes;			/* this file system cannot give back parts of files */
static Tracked *tracked_files;
static Tracked *tracked_fds[DESCRIPTORS];

static Tracked *
tracked_file(const char *path)
{
	for (Tracked *t = tracked_files; t; t = t->next)
		if (!t->removed && strcmp(t->path, path) == 0)
			return t;
	return NULL;
}

static Tracked *
tracked_fd(int fd)
{
	return fd < DESCRIPTORS ? tracked_fds[fd] : NULL;
}

static Tracked *
track(const char *path)
{
	Tracked    *t = tracked_file(path);

	if (t == NULL)
	{
		t = calloc(1, sizeof(Tracked));
		strlcpy(t->path, path, sizeof(t->path));
		t->last = &t->writes;
		t->next = tracked_files;
		tracked_files = t;
	}
	return t;
}

static void
forget_writes(Tracked *t)
{
	while (t->writes)
	{
		Write	   *w = t->writes;

		t->writes = w->next;
		free(w->data);
		free(w);
	}
	t->last = &t->writes;
}

static void
remember_write(int fd, const void *data, size_t length, off_t offset)
{
	Tracked    *t = tracked_fd(fd);
	Write	   *w;

	if (t == NULL)
		return;
	w = calloc(1, sizeof(Write));
	w->punch = data == NULL;
	w->offset = offset;
	w->length = length;
	w->data = calloc(1, length + 1);
	if (data)
		memcpy(w->data, data, length);
	*t->last = w;
	t->last = &w->next;
}

/* Let sectors of a write reach the disk, each with this chance. */
static void
flush_write(Tracked *t, const Write *w, int percent)
{
	for (size_t done = 0, n; done < w->length; done += n)
	{
		off_t		at = w->offset + done;
		size_t		end;

		n = Min(512 - at % 512, w->length - done);
		end = at + n;
		if (below(100) >= percent)
			continue;
		if (end > t->size && w->punch)
			continue;
		if (end > t->size)
		{
			t->disk = realloc(t->disk, end);
			memset(t->disk + t->size, 0, end - t->size);
			t->size = end;
		}
		memcpy(t->disk + at, w->data + done, n);
	}
}

/* ---- calls that fail ---- */

typedef enum Failure
{
	FAIL_NOT,
	FAIL_ONCE,
	FAIL_FROM_THEN_ON,
	FAIL_KILL
} Failure;

static Failure failure;
static int	calls_left;			/* before it happens */
static bool happened;
static jmp_buf on_kill;

static bool
fails(void)
{
	if (failure == FAIL_NOT || calls_left-- > 0)
		return false;
	happened = true;
	if (failure == FAIL_KILL)
		longjmp(on_kill, 1);
	if (failure == FAIL_ONCE)
		failure = FAIL_NOT;
	errno = below(2) ? EIO : ENOSPC;
	return true;
}

static bool
interrupted(void)
{
	errno = EINTR;
	return below(200) == 0;
}

ssize_t		__real_pread(int fd, void *data, size_t length, off_t offset);
ssize_t		__wrap_pread(int fd, void *data, size_t length, off_t offset);
ssize_t		__real_pwrite(int fd, const void *data, size_t length, off_t offset);
ssize_t		__wrap_pwrite(int fd, const void *data, size_t length, off_t offset);
ssize_t		__wrap_pwritev(int fd, const struct iovec *iov, int n, off_t offset);
int			__real_close(int fd);
int			__wrap_close(int fd);
int			__real_unlink(const char *path);
int			__wrap_unlink(const char *path);
int			__real_fallocate(int fd, int mode, off_t offset, off_t length);
int			__wrap_fallocate(int fd, int mode, off_t offset, off_t length);

ssize_t
__wrap_pread(int fd, void *data, size_t length, off_t offset)
{
	if (fails() || interrupted())
		return -1;
	return __real_pread(fd, data, below(100) ? length : 1 + below(length), offset);
}

/* A write that is cut short ends at a sector. */
ssize_t
__wrap_pwrite(int fd, const void *data, size_t length, off_t offset)
{
	size_t		part = length * below(100) / 100;
	bool		failed = fails();

	part -= Min(part, (offset + part) % 512);
	if (failed && part == 0)
		return -1;
	if (interrupted())
		return -1;
	if (part > 0 && (failed || below(50) == 0))
		length = part;
	if (__real_pwrite(fd, data, length, offset) != length)
		FAIL("could not write: %s", strerror(errno));
	remember_write(fd, data, length, offset);
	errno = EIO;
	return failed ? -1 : length;
}

ssize_t
__wrap_pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
	static char all[AB_IMAGE_BATCH * BLCKSZ];
	size_t		length = 0;

	for (int i = 0; i < n; i++)
	{
		memcpy(all + length, iov[i].iov_base, iov[i].iov_len);
		length += iov[i].iov_len;
	}
	return __wrap_pwrite(fd, all, length, offset);
}

int
__wrap_close(int fd)
{
	if (fd < DESCRIPTORS)
		tracked_fds[fd] = NULL;
	return __real_close(fd);
}

int
__wrap_unlink(const char *path)
{
	Tracked    *t = tracked_file(path);

	if (fails())
		return -1;
	if (t)
		t->removed = true;
	return __real_unlink(path);
}

int
__wrap_fallocate(int fd, int mode, off_t offset, off_t length)
{
	if (fails())
		return -1;
	if (__real_fallocate(fd, mode, offset, length) < 0)
	{
		no_holes = true;
		return -1;
	}
	remember_write(fd, NULL, length, offset);
	return 0;
}

int
pg_fdatasync(int fd)
{
	Tracked    *t = tracked_fd(fd);

	if (fails())
	{
		/* the system may take for written what is not */
		if (below(2))
			forget_writes(t);
		return -1;
	}
	for (Write *w = t->writes; w; w = w->next)
		flush_write(t, w, 100);
	forget_writes(t);
	return 0;
}

static void
forget_file(Tracked *t)
{
	forget_writes(t);
	free(t->disk);
	t->disk = NULL;
}

/* Of the directory: what was removed stays so. */
int
pg_fsync(int fd)
{
	if (tracked_fd(fd))
		return pg_fdatasync(fd);
	if (fails())
		return -1;
	for (Tracked *t = tracked_files; t; t = t->next)
		if (t->removed)
			forget_file(t);
	return 0;
}

int
BasicOpenFile(const char *path, int flags)
{
	int			fd;

	if (fails() || interrupted())
		return -1;
	fd = open(path, flags, 0600);
	if (fd >= DESCRIPTORS)
		FAIL("descriptors are not closed");
	if (fd >= 0)
		tracked_fds[fd] = tracked_file(path);
	return fd;
}

int
OpenTransientFile(const char *path, int flags)
{
	int			fd = fails() ? -1 : open(path, flags, 0600);

	if (fd >= 0 && (flags & O_CREAT))
		tracked_fds[fd] = track(path);
	return fd;
}

int
CloseTransientFile(int fd)
{
	return __wrap_close(fd);
}

DIR *
AllocateDir(const char *path)
{
	return fails() ? NULL : opendir(path);
}

struct dirent *
ReadDirExtended(DIR *dir, const char *path, int elevel)
{
	if (dir != NULL)
		return readdir(dir);
	ereport(elevel, (errmsg("could not open directory")));
	return NULL;
}

struct dirent *
ReadDir(DIR *dir, const char *path)
{
	return ReadDirExtended(dir, path, ERROR);
}

int
FreeDir(DIR *dir)
{
	return closedir(dir);
}

int
MakePGDirectory(const char *path)
{
	return fails() ? -1 : mkdir(path, 0700);
}

void
ab_file_sync_parent(const char *path)
{
	if (fails())
		ereport(ERROR, (errmsg("could not sync")));
}

bool
RecoveryInProgress(void)
{
	return false;
}

bool
ab_file_has_name(int fd, const char *path)
{
	struct stat st;
	struct stat named;

	return fstat(fd, &st) == 0 && stat(path, &named) == 0 && named.st_ino == st.st_ino;
}

bool
ab_file_exists(const char *path)
{
	return access(path, F_OK) == 0;
}

pg_crc32c
ab_crc_without(const void *data, size_t len, size_t crc_offset)
{
	char		copy[512];
	pg_crc32c	crc;

	memcpy(copy, data, len);
	memset(copy + crc_offset, 0, sizeof(pg_crc32c));
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, copy, len);
	FIN_CRC32C(crc);
	return crc;
}

/* ---- the model ---- */

typedef struct Epoch
{
	AbSnapId	id;
	bool		living;
	bool		poisoned;
	uint32		image[FORKS][BLOCKS];	/* what was saved; 0: nothing */
	uint32		variant[FORKS][BLOCKS][VARIANTS];	/* what may have been */
} Epoch;

static Epoch epochs[EPOCHS];
static int	nepochs;
static bool undecided;			/* there are variants */
static bool leftovers;			/* something failed: pages may be kept for longer */
static uint32 version;

static AbForkKey
key_of(int fork)
{
	AbForkKey	key = {1663, 1000 + fork, fork % 3};

	return key;
}

static const char *
page_of(uint32 v, char page[BLCKSZ])
{
	memset(page, v % 7 == 0 ? 0 : v % 256, BLCKSZ);
	memcpy(page + 100, &v, sizeof(v));
	return page;
}

static bool
has_file(const Epoch *e)
{
	char		path[MAXPGPATH];

	ab_images_path(path, DB, e->id);
	return access(path, F_OK) == 0;
}

static Epoch *
live_epoch(void)
{
	for (int i = nepochs - 1; i >= 0; i--)
		if (epochs[i].living)
			return &epochs[i];
	return NULL;
}

static int
list_living(AbSnapId *living)
{
	int			n = 0;

	for (int i = 0; i < nepochs; i++)
		if (epochs[i].living)
			living[n++] = epochs[i].id;
	return n;
}

static bool
is_page(const char *page, uint32 v)
{
	char		expected[BLCKSZ];

	return v != 0 && memcmp(page, page_of(v, expected), BLCKSZ) == 0;
}

/* Did saving an image of the block fail?  Then reading may fail until the next start. */
static bool
is_undecided(int fork, int block)
{
	for (Epoch *e = epochs; e < epochs + nepochs; e++)
		if (e->variant[fork][block][0] != 0)
			return true;
	return false;
}

/* Does the snapshot of an epoch see what it should see?  May the answer be "failed"? */
static void
check_block(const Epoch *e, int fork, int block, bool may_fail)
{
	static char page[BLCKSZ];
	AbImageAnswer answer;

	nofail = true;
	answer = ab_images_read(DB, e->id.lsn, key_of(fork), block, page);
	nofail = false;
	no_locks();
	if (answer == AB_IMAGE_FAILED && (may_fail || is_undecided(fork, block)))
		return;
	for (; e < epochs + nepochs; e++)
	{
		if (answer == AB_IMAGE_FOUND && is_page(page, e->image[fork][block]))
			return;
		for (int i = 0; i < VARIANTS; i++)
			if (answer == AB_IMAGE_FOUND && is_page(page, e->variant[fork][block][i]))
				return;
		if (e->image[fork][block] != 0)
			FAIL("fork %d block %d: answer %d instead of version %u", fork, block,
				 answer, e->image[fork][block]);
	}
	if (answer != AB_IMAGE_NONE)
		FAIL("fork %d block %d: answer %d instead of none", fork, block, answer);
}

static void
check_all_blocks(int one_in)
{
	for (Epoch *e = epochs; e < epochs + nepochs; e++)
		for (int i = 0; i < FORKS * BLOCKS && e->living && !e->poisoned; i++)
			if (below(one_in) == 0)
				check_block(e, i / BLOCKS, i % BLOCKS, false);
}

static void
check_rules(void)
{
	List	   *problems = ab_images_check(DB);

	no_locks();
	if (list_length(problems) > 0)
		FAIL("%d problems, first: %s", list_length(problems),
			 (char *) linitial(problems));
}

/* After a start without failures: what became of what may have been? */
static void
decide(void)
{
	for (int i = 0; i < nepochs * FORKS * BLOCKS && undecided; i++)
	{
		Epoch	   *e = &epochs[i / (FORKS * BLOCKS)];
		int			fork = i / BLOCKS % FORKS;
		int			block = i % BLOCKS;

		for (int k = 0; k < VARIANTS; k++)
		{
			uint32		v = e->variant[fork][block][k];
			char		page[BLCKSZ];
			pg_crc32c	crc;

			INIT_CRC32C(crc);
			COMP_CRC32C(crc, page_of(v, page), BLCKSZ);
			FIN_CRC32C(crc);
			if (v != 0 && ab_images_has(DB, e->id, key_of(fork), block, crc))
				e->image[fork][block] = v;
			e->variant[fork][block][k] = 0;
		}
	}
	undecided = false;
}

/* ---- the end of a process, and of power ---- */

static void
end_process(void)
{
	failure = FAIL_NOT;
	nofail = error_expected = false;
	memset(held, 0, sizeof(held));
	ab_imagefile_close_all();
	pg_atomic_write_u32(&ab_shared->image_generation, 1);
}

static void
cut_power(void)
{
	int			percent = below(3) == 0 ? 0 : 1 + below(100);

	for (Tracked *t = tracked_files; t; t = t->next)
	{
		int			fd;

		if (t->disk == NULL || (t->removed && (below(2) || tracked_file(t->path))))
			continue;
		for (Write *w = t->writes; w && !t->removed; w = w->next)
			flush_write(t, w, percent);
		forget_writes(t);
		t->removed = false;
		mkdir(DIRECTORY, 0700);
		fd = open(t->path, O_CREAT | O_TRUNC | O_RDWR, 0600);
		if (fd < 0 || __real_pwrite(fd, t->disk, t->size, 0) != t->size)
			FAIL("could not restore \"%s\"", t->path);
		__real_close(fd);
	}
}

static void
set_failure(int within)
{
	failure = 1 + below(3);
	calls_left = below(within);
	happened = false;
}

/* Start, perhaps with failures: what is not poisoned then must be right. */
static bool
start_failing(void)
{
	volatile bool ok = false;

	set_failure(below(2) ? 40 : 1000);
	if (setjmp(on_kill) == 0)
	{
		error_expected = true;
		if (setjmp(on_error) == 0)
			ok = ab_images_rebuild(DB, below(2), PG_UINT64_MAX);
	}
	end_process();
	MyProc = &a_process;
	for (Epoch *e = epochs; e < epochs + nepochs; e++)
	{
		if (ab_images_is_poisoned(DB, e->id))
			e->poisoned = true;
		for (int i = 0; ok && e->living && !e->poisoned && i < FORKS * BLOCKS; i++)
			check_block(e, i / BLOCKS, i % BLOCKS, true);
	}
	leftovers = true;
	return !happened;
}

static void
restart(bool failing)
{
	end_process();
	if (below(2))
		cut_power();
	MyProc = NULL;
	if (failing && !start_failing() && below(2))
	{
		end_process();
		cut_power();
	}
	MyProc = NULL;
	if (!ab_images_rebuild(DB, below(4) == 0, PG_UINT64_MAX))
		FAIL("could not make the index");
	MyProc = &a_process;
	for (Epoch *e = epochs; e < epochs + nepochs; e++)
		if (e->living && (!has_file(e) ||
						  (!e->poisoned && ab_images_is_poisoned(DB, e->id))))
			FAIL("epoch %d is lost", (int) (e - epochs));
	decide();
	check_all_blocks(1);
	check_rules();
}

/* ---- operations ---- */

static void
begin(void)
{
	Epoch	   *e = &epochs[nepochs];

	memset(e, 0, sizeof(*e));
	e->id = ab_snapid_make(1, (nepochs == 0 ? 1000 : e[-1].id.lsn) + 1 + below(3) * 100);
	ab_images_begin(DB, e->id, true);
	e->living = true;
	nepochs++;
}

static void
drop(void)
{
	Epoch	   *e = &epochs[below(nepochs)];
	AbSnapId	living[EPOCHS];

	if (list_living(living) > 1)
		e->living = false;
}

/* Is the newest image of the block of the epoch or a later one?  The store must agree. */
static bool
is_covered(const Epoch *e, int fork, int block)
{
	XLogRecPtr	newest;
	bool		covered = false;
	bool		maybe = false;

	if (!ab_images_newest(DB, key_of(fork), block, &newest))
		FAIL("could not look up the newest image");
	for (const Epoch *later = e; later < epochs + nepochs; later++)
	{
		covered = covered || later->image[fork][block] != 0;
		maybe = maybe || later->variant[fork][block][0] != 0;
	}
	if (!maybe && covered != (newest >= e->id.lsn))
		FAIL("fork %d block %d is %scovered", fork, block, covered ? "not " : "");
	return newest >= e->id.lsn;
}

/* Pages to be saved, with their new versions as variants.  Returns how many. */
static int
choose_pages(Epoch *e, bool replace, AbImagePage *pages)
{
	static char data[AB_IMAGE_BATCH][BLCKSZ];
	int			wanted = 1 + below(below(3) ? 10 : AB_IMAGE_BATCH);
	int			start = below(FORKS * BLOCKS);
	int			n = 0;

	for (int i = 0; i < FORKS * BLOCKS && n < wanted; i++)
	{
		int			fork = (start + i) % (FORKS * BLOCKS) / BLOCKS;
		int			block = (start + i) % BLOCKS;
		uint32	   *variant = e->variant[fork][block];
		int			k = 0;

		while (k < VARIANTS && variant[k] != 0)
			k++;
		if (k == VARIANTS || below(4) == 0 || (!replace && is_covered(e, fork, block)))
			continue;
		variant[k] = ++version;
		pages[n].key = key_of(fork);
		pages[n].block = block;
		pages[n].page = page_of(version, data[n]);
		n++;
	}
	return n;
}

static void
saved(Epoch *e, int n, const AbImagePage *pages)
{
	for (int i = 0; i < n; i++)
	{
		int			fork = pages[i].key.rel - 1000;
		BlockNumber block = pages[i].block;

		memcpy(&e->image[fork][block], pages[i].page + 100, sizeof(uint32));
		memset(e->variant[fork][block], 0, sizeof(e->variant[fork][block]));
	}
}

static void
save(bool failing)
{
	static AbImagePage pages[AB_IMAGE_BATCH];
	static Epoch *e;
	static int	n;
	bool		replace = below(4) == 0;
	bool		ok;

	e = live_epoch();
	if (replace)
		do
			e = &epochs[below(nepochs)];
		while (!e->living);
	n = choose_pages(e, replace, pages);
	LWLockAcquire(ab_capture_lock(DB), LW_EXCLUSIVE);
	if (failing)
		set_failure(below(2) ? 15 : 200);
	if (setjmp(on_kill) != 0)
	{
		undecided = leftovers = true;
		restart(true);
		return;
	}
	nofail = true;
	ok = ab_images_put(DB, e->id, n, pages, replace, NULL);
	nofail = false;
	failure = FAIL_NOT;
	LWLockRelease(ab_capture_lock(DB));
	no_locks();
	if (failing && happened)
		leftovers = true;
	if (ok)
		saved(e, n, pages);
	else if ((failing && happened) || (replace && undecided))
		undecided = true;
	else
		FAIL("could not save: %s", strerror(errno));
}

/* Living snapshots that see the image of an epoch, as far as the model goes. */
static bool
is_needed(const Epoch *e, int fork, int block)
{
	for (const Epoch *s = e;; s--)
	{
		if (s < e && s->image[fork][block] != 0)
			return false;
		if (s->living)
			return true;
		if (s == epochs)
			return false;
	}
}

/* Bytes of a file that are no holes; *size: with them. */
static off_t
bytes_of(const char *path, off_t *size)
{
	int			fd = open(path, O_RDONLY);
	off_t		bytes = 0;
	off_t		at = 0;

	*size = lseek(fd, 0, SEEK_END);
	while ((at = lseek(fd, at, SEEK_DATA)) >= 0)
	{
		off_t		hole = lseek(fd, at, SEEK_HOLE);

		bytes += hole - at;
		at = hole;
	}
	__real_close(fd);
	return bytes;
}

/* Everything that nobody needs has been given back. */
static void
check_space(void)
{
	for (Epoch *e = epochs; e < epochs + nepochs; e++)
	{
		char		path[MAXPGPATH];
		off_t		size;
		off_t		bytes;
		int			blocks = 0;

		if (!has_file(e))
			continue;
		ab_images_path(path, DB, e->id);
		bytes = bytes_of(path, &size);
		for (int i = 0; i < FORKS * BLOCKS; i++)
			if (e->image[i / BLOCKS][i % BLOCKS] != 0 &&
				is_needed(e, i / BLOCKS, i % BLOCKS))
				blocks++;
		if (blocks == 0 && !e->living)
			FAIL("the file of epoch %d is left", (int) (e - epochs));
		blocks += 1 + (size / BLCKSZ + AB_GROUP_BLOCKS - 2) / AB_GROUP_BLOCKS;
		if (bytes > (off_t) blocks * BLCKSZ && !no_holes)
			FAIL("the file of epoch %d has %ld bytes, not %d blocks",
				 (int) (e - epochs), (long) bytes, blocks);
	}
}

static void
collect(bool failing)
{
	AbSnapId	living[EPOCHS];
	int			n = list_living(living);

	if (failing)
		set_failure(below(2) ? 40 : 400);
	if (setjmp(on_kill) != 0)
	{
		leftovers = true;
		restart(true);
		return;
	}
	error_expected = true;
	if (setjmp(on_error) == 0)
		(void) ab_images_collect(DB, living, n, PG_UINT64_MAX, false);
	else
		memset(held, 0, sizeof(held));
	error_expected = false;
	failure = FAIL_NOT;
	no_locks();
	if (failing && happened)
		leftovers = true;
	if (!leftovers)
		check_space();
	for (Epoch *e = epochs; e < epochs + nepochs; e++)
		if (e->living && !has_file(e))
			FAIL("the file of living epoch %d is gone", (int) (e - epochs));
	check_all_blocks(4);
}

static void
one_round(int steps)
{
	int			failing = below(2) * below(40);

	for (step = 0; step < steps; step++)
	{
		bool		fail = below(100) < failing;
		int			what = below(100);

		if (nepochs == 0 || (what < 15 && nepochs < EPOCHS))
			begin();
		else if (what < 28)
			drop();
		else if (what < 40)
			collect(fail);
		else if (what < 44)
			restart(fail);
		else
			save(fail);
		if (below(10) == 0)
			check_all_blocks(4);
	}
	restart(false);
}

/* With the last living snapshot everything goes. */
static void
end_round(void)
{
	(void) ab_images_collect(DB, NULL, 0, 0, false);
	if (access(DIRECTORY, F_OK) == 0)
		FAIL("the directory is left");
	end_process();
	while (tracked_files)
	{
		Tracked    *t = tracked_files;

		tracked_files = t->next;
		forget_file(t);
		free(t);
	}
	nepochs = 0;
	undecided = leftovers = false;
}

int
main(int argc, char **argv)
{
	long		last;

	if (argc != 5 || chdir(argv[1]) < 0)
		return 2;
	mkdir(AB_DIR, 0700);
	seed = atol(argv[2]);
	last = seed + atol(argv[3]);
	ab_shared = calloc(1, sizeof(AbShared));
	ab_shared->guards = locks;
	ab_shared->capture_locks = locks + AB_GUARDS;
	ab_shared->image_locks = locks + 2 * AB_GUARDS;
	my_wait_event_info = &wait_event;
	MyProc = &a_process;
	for (; seed < last; seed++)
	{
		random_state = seed * UINT64CONST(0x9E3779B97F4A7C15) + 1;
		pg_atomic_init_u32(&ab_shared->image_generation, 1);
		pg_atomic_init_u32(&ab_shared->poison_generation, seed);
		one_round(atoi(argv[4]));
		end_round();
	}
	return 0;
}
