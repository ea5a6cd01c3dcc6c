/*
 * ab_parentfile.c
 *	  Reading the files of databases around the storage manager.
 *
 * Any process; no locks, nothing allocated, nothing raised.  A session of a branch keeps a
 * few raw descriptors open, of what it inherits, which is there as long as the branch.
 * Others close theirs at once: with them they would keep the space of a database that is
 * dropped.  A file that was unlinked meanwhile, its number perhaps used again, is found out
 * by its name, at every use but one: for the snapshot that the descriptor was found right
 * for before.  A file that a snapshot sees keeps its name and its number while the snapshot
 * is sound (ab_kept.c), and who reads for it asks afterwards whether it is.
 */
#include "ab_parentfile.h"

#include <fcntl.h>
#include <unistd.h>

#include "catalog/catalog.h"
#include "catalog/pg_tablespace_d.h"
#include "storage/fd.h"

#include "ab_file.h"
#include "ab_storagefiles.h"

#define MAX_OPEN_SEGMENTS 48

typedef struct Segment
{
	RelFileNode rnode;
	ForkNumber	fork;
	BlockNumber segno;
	int			fd;				/* valid below nopen */
	AbSnapId	right_for;		/* the last snapshot it was looked at for */
	uint32		opened;			/* by use_clock, as the next */
	uint32		last_use;
} Segment;

static Segment segments[MAX_OPEN_SEGMENTS];
static int	nopen = 0;
static uint32 use_clock = 0;

void
ab_relation_path(char *buf, RelFileNode rnode, ForkNumber fork, BlockNumber segno)
{
	int			n;

	if (rnode.spcNode == DEFAULTTABLESPACE_OID)
		n = snprintf(buf, MAXPGPATH, "base/%u/%u", rnode.dbNode, rnode.relNode);
	else
		n = snprintf(buf, MAXPGPATH, "pg_tblspc/%u/%s/%u/%u", rnode.spcNode,
					 TABLESPACE_VERSION_DIRECTORY, rnode.dbNode, rnode.relNode);
	if (fork != MAIN_FORKNUM)
		n += snprintf(buf + n, MAXPGPATH - n, "_%s", forkNames[fork]);
	if (segno > 0)
		snprintf(buf + n, MAXPGPATH - n, ".%u", segno);
}

/* The last one takes its place. */
static void
close_segment(Segment *s)
{
	(void) close(s->fd);
	ReleaseExternalFD();
	*s = segments[--nopen];
}

uint32
ab_parentfile_begin(void)
{
	return use_clock;
}

void
ab_parentfile_end(uint32 begun)
{
	for (int i = nopen - 1; i >= 0; i--)
		if ((int32) (segments[i].opened - begun) > 0)
			close_segment(&segments[i]);
}

static Segment *
find_segment(RelFileNode rnode, ForkNumber fork, BlockNumber segno)
{
	for (int i = 0; i < nopen; i++)
		if (RelFileNodeEquals(segments[i].rnode, rnode) &&
			segments[i].fork == fork && segments[i].segno == segno)
			return &segments[i];
	return NULL;
}

static bool
close_oldest(void)
{
	Segment    *oldest = &segments[0];

	if (nopen == 0)
		return false;
	for (int i = 1; i < nopen; i++)
		if ((int32) (segments[i].last_use - oldest->last_use) < 0)
			oldest = &segments[i];
	close_segment(oldest);
	return true;
}

/* Count one more: at most a third of the process's, as the server has it for such uses. */
static void
count_descriptor(void)
{
	while (!AcquireExternalFD())
		if (!close_oldest())
		{
			ReserveExternalFD();
			return;
		}
}

static Segment *
open_segment(RelFileNode rnode, ForkNumber fork, BlockNumber segno)
{
	char		path[MAXPGPATH];
	Segment    *s;
	int			fd;

	if (nopen == MAX_OPEN_SEGMENTS)
		(void) close_oldest();
	ab_relation_path(path, rnode, fork, segno);
	do
		fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	while (fd < 0 && (errno == EMFILE || errno == ENFILE) && close_oldest());
	if (fd < 0)
		return NULL;
	count_descriptor();
	s = &segments[nopen++];
	s->opened = ++use_clock;
	s->rnode = rnode;
	s->fork = fork;
	s->segno = segno;
	s->fd = fd;
	return s;
}

/*
 * A link alone says nothing: a file that is given back has a second name for a moment, when
 * its own may be another one's already.
 */
static bool
has_its_name(const Segment *s)
{
	char		path[MAXPGPATH];

	ab_relation_path(path, s->rnode, s->fork, s->segno);
	return ab_file_has_name(s->fd, path);
}

/* NULL with errno: there is none, or it cannot be opened. */
static Segment *
segment(AbSnapId sees, RelFileNode rnode, ForkNumber fork, BlockNumber segno)
{
	Segment    *s = find_segment(rnode, fork, segno);

	if (s && !(AbSnapIdIsValid(sees) && AbSnapIdEquals(s->right_for, sees)) &&
		!has_its_name(s))
	{
		close_segment(s);
		s = NULL;
	}
	if (s == NULL)
		s = open_segment(rnode, fork, segno);
	if (s)
	{
		s->last_use = ++use_clock;
		s->right_for = sees;
	}
	return s;
}

/* In a tablespace that is not mounted no file is found, whatever there is. */
static bool
is_surely_missing(RelFileNode rnode)
{
	bool		mounted = ab_storage_has_tablespace(rnode.spcNode);

	errno = ENOENT;
	return mounted;
}

bool
ab_parentfile_read(AbSnapId sees, RelFileNode rnode, ForkNumber fork, BlockNumber block,
				   bool missing_ok, char *page)
{
	BlockNumber segno = block / RELSEG_SIZE;
	off_t		offset = (off_t) (block % RELSEG_SIZE) * BLCKSZ;
	Segment    *s = segment(sees, rnode, fork, segno);
	int			done = 0;

	if (s == NULL)
	{
		missing_ok |= fork == FSM_FORKNUM || fork == VISIBILITYMAP_FORKNUM;

		/* a segment behind the end; without the first there is no relation */
		if (errno != ENOENT || (segno == 0 && !missing_ok) || !is_surely_missing(rnode))
			return false;
		memset(page, 0, BLCKSZ);
		return true;
	}
	while (done < BLCKSZ)
	{
		ssize_t		n = pread(s->fd, page + done, BLCKSZ - done, offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		if (n == 0)
			break;
		done += n;
	}
	memset(page + done, 0, BLCKSZ - done);
	return true;
}

void
ab_parentfile_prefetch(AbSnapId sees, RelFileNode rnode, ForkNumber fork,
					   BlockNumber block)
{
	Segment    *s = segment(sees, rnode, fork, block / RELSEG_SIZE);

	if (s)
		(void) posix_fadvise(s->fd, (off_t) (block % RELSEG_SIZE) * BLCKSZ, BLCKSZ,
							 POSIX_FADV_WILLNEED);
}
