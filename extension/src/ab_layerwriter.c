/*
 * ab_layerwriter.c
 *	  Writing a snapshot's .pages file: cloning or copying blocks into it.
 *
 * Backends taking a snapshot and the startup process; the file has a tmp. name
 * and one writer until it is published, so no locks.  A crash leaves the tmp.
 * file, which server start removes.
 *
 * Pages are read while bgwriter, checkpointer and evicting backends may write to
 * the same file.  What WAL says was changed is captured again by the caller; other
 * differences are hint bits, and a mix of old and new hint bits is a good page.
 * Only its checksum may be wrong, and that is what the reading again is for.
 */
#include "ab_method.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "postmaster/startup.h"
#include "storage/bufpage.h"
#include "storage/checksum.h"
#include "storage/fd.h"
#include "utils/guc.h"

#include "ab_failpoint.h"
#include "ab_file.h"
#include "ab_settings.h"

#define CHUNK_BLOCKS	128		/* copied at a time */
#define CLONE_MIN		32		/* shorter ranges are cheaper to copy */
#define REREADS			100		/* of a page whose checksum is wrong ... */
#define REREAD_PAUSE_US 1000	/* ... so far apart */

struct AbLayerWriter
{
	char	   *path;
	int			fd;				/* -1: closed */
	BlockNumber nblocks;
	char	   *chunk;			/* CHUNK_BLOCKS pages */
	BlockNumber buffered;		/* so many of the last blocks are only there */
	int			method;			/* AbSnapshotMethod */
	bool		cloned;			/* the CRC is not known */
	bool		patched;		/* the running CRC is not right any more */
	pg_crc32c	crc;
};

void
ab_capture_interrupts(void)
{
	if (InRecovery)
		HandleStartupProcInterrupts();
	else
		CHECK_FOR_INTERRUPTS();
}

AbLayerWriter *
ab_layer_writer_open(void)
{
	AbLayerWriter *w = palloc0(sizeof(AbLayerWriter));

	w->path = ab_file_tmp_name();
	w->chunk = palloc(CHUNK_BLOCKS * BLCKSZ);
	w->method = ab_snapshot_method;

	/* replay must go on where the filesystem is another than the primary's */
	if (InRecovery && w->method == AB_METHOD_CLONE)
		w->method = AB_METHOD_AUTO;
	INIT_CRC32C(w->crc);
	w->fd = OpenTransientFile(w->path, O_RDWR | O_CREAT | O_EXCL | PG_BINARY);
	if (w->fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", w->path)));
	return w;
}

/* ---- writing ---- */

static bool
all_zero(const char *buf, size_t len)
{
	return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

static void
write_blocks(AbLayerWriter *w, uint32 position, BlockNumber count, const char *buf)
{
	size_t		len = (size_t) count * BLCKSZ;
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = pg_pwrite(w->fd, buf + done, len - done,
								  (off_t) position * BLCKSZ + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = ENOSPC;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", w->path),
					 errhint("Check free disk space.")));
		}
		done += n;
	}
}

/* Small runs gather in the chunk; holes of sparse files stay holes. */
static void
write_buffered(AbLayerWriter *w)
{
	BlockNumber count = w->buffered;

	if (count > 0 && !all_zero(w->chunk, (size_t) count * BLCKSZ))
		write_blocks(w, w->nblocks - count, count, w->chunk);
	w->buffered = 0;
}

/* The next blocks have come into the chunk, behind those that are there. */
static void
take_in(AbLayerWriter *w, BlockNumber count)
{
	COMP_CRC32C(w->crc, w->chunk + (size_t) w->buffered * BLCKSZ,
				(size_t) count * BLCKSZ);
	w->buffered += count;
	w->nblocks += count;
	if (w->buffered == CHUNK_BLOCKS)
		write_buffered(w);
}

/* ---- cloning ---- */

/*
 * Share count blocks at a block offset of fd with the end of the layer.  False if
 * this filesystem cannot; then nothing was done.
 */
static bool
clone_range(AbLayerWriter *w, int fd, const char *path, BlockNumber first,
			BlockNumber count)
{
#ifdef FICLONERANGE
	struct file_clone_range range;

	memset(&range, 0, sizeof(range));
	range.src_fd = fd;
	range.src_offset = (uint64) first * BLCKSZ;
	range.src_length = (uint64) count * BLCKSZ;
	range.dest_offset = (uint64) w->nblocks * BLCKSZ;
	if (ioctl(w->fd, FICLONERANGE, &range) == 0)
		return true;
#else
	errno = EOPNOTSUPP;
#endif
	if (w->method == AB_METHOD_CLONE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("could not clone file \"%s\": %m", path),
				 errdetail("The setting agent_branch.snapshot_method is \"clone\", which the file system of the data directory and of all tablespaces must support."),
				 errhint("Set agent_branch.snapshot_method to \"auto\" or \"copy\", or use a file system with reflinks, such as XFS or Btrfs.")));
	return false;
}

/* Blocks of [first, first + nblocks) that the file really has. */
static BlockNumber
blocks_there(int fd, const char *path, BlockNumber first, BlockNumber nblocks)
{
	struct stat st;
	BlockNumber length;

	if (fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", path)));
	length = st.st_size / BLCKSZ;
	return length <= first ? 0 : Min(nblocks, length - first);
}

/* Clone what can be cloned; false: nothing was appended. */
static bool
try_clone(AbLayerWriter *w, int fd, const char *path, BlockNumber first,
		  BlockNumber nblocks)
{
	BlockNumber there;

	if (w->method == AB_METHOD_COPY ||
		(w->method == AB_METHOD_AUTO && nblocks < CLONE_MIN))
		return false;
	there = blocks_there(fd, path, first, nblocks);
	write_buffered(w);
	if (there > 0 && !clone_range(w, fd, path, first, there))
	{
		/* do not ask again for every file */
		w->method = AB_METHOD_COPY;
		return false;
	}

	/* the rest is a hole; ab_layer_writer_sync() sets the length */
	w->nblocks += nblocks;
	w->cloned = true;
	return true;
}

/* ---- copying ---- */

/* Read count blocks, zeros where the file ends. */
static void
read_blocks(int fd, const char *path, BlockNumber first, BlockNumber count,
			char *buf)
{
	size_t		wanted = (size_t) count * BLCKSZ;
	size_t		got = 0;

	while (got < wanted)
	{
		ssize_t		n = pg_pread(fd, buf + got, wanted - got,
								 (off_t) first * BLCKSZ + got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", path)));
		if (n == 0)
			break;
		got += n;
	}
	memset(buf + got, 0, wanted - got);
}

static bool
checksum_is_right(char *page, BlockNumber relblock)
{
	return PageIsNew(page) ||
		((PageHeader) page)->pd_checksum == pg_checksum_page(page, relblock);
}

static void
damaged_page(const char *path, BlockNumber block)
{
	bool		ignore = strcmp(GetConfigOption("ignore_checksum_failure", false, false),
								"on") == 0;

	ereport(ignore ? WARNING : ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("page verification failed for block %u of file \"%s\"", block, path),
			 errdetail("A snapshot would hand the damaged page on to branches."),
			 errhint("Repair the table, or set ignore_checksum_failure to take it as it is.")));
}

/* Read pages again that were caught while they were being written. */
static void
settle_pages(int fd, const char *path, BlockNumber first, BlockNumber count,
			 BlockNumber relblock, char *buf)
{
	for (BlockNumber i = 0; i < count; i++)
	{
		char	   *page = buf + (size_t) i * BLCKSZ;

		for (int tries = 0; !checksum_is_right(page, relblock + i); tries++)
		{
			if (tries == REREADS)
			{
				damaged_page(path, first + i);
				break;
			}
			ab_capture_interrupts();
			pg_usleep(REREAD_PAUSE_US);
			read_blocks(fd, path, first + i, 1, page);
		}
	}
}

static void
copy_range(AbLayerWriter *w, int fd, const char *path, BlockNumber first,
		   BlockNumber nblocks, BlockNumber relblock)
{
	for (BlockNumber done = 0; done < nblocks;)
	{
		BlockNumber count = Min(nblocks - done, CHUNK_BLOCKS - w->buffered);
		char	   *pages = w->chunk + (size_t) w->buffered * BLCKSZ;

		ab_capture_interrupts();
		read_blocks(fd, path, first + done, count, pages);
		if (DataChecksumsEnabled())
			settle_pages(fd, path, first + done, count, relblock + done, pages);
		take_in(w, count);
		done += count;
	}
}

static void
check_room(const AbLayerWriter *w, BlockNumber nblocks)
{
	if ((uint64) w->nblocks + nblocks > MaxBlockNumber)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the database is too large for a snapshot")));
}

uint32
ab_layer_writer_append_file(AbLayerWriter *w, int fd, const char *path,
							BlockNumber first, BlockNumber nblocks,
							BlockNumber relblock)
{
	uint32		position = w->nblocks;

	check_room(w, nblocks);
	ab_capture_interrupts();
	if (!try_clone(w, fd, path, first, nblocks))
		copy_range(w, fd, path, first, nblocks, relblock);
	return position;
}

uint32
ab_layer_writer_append_page(AbLayerWriter *w, const char *page)
{
	check_room(w, 1);
	memcpy(w->chunk + (size_t) w->buffered * BLCKSZ, page, BLCKSZ);
	take_in(w, 1);
	return w->nblocks - 1;
}

void
ab_layer_writer_patch(AbLayerWriter *w, uint32 position, const char *page)
{
	Assert(position < w->nblocks);
	write_buffered(w);
	write_blocks(w, position, 1, page);
	w->patched = true;
}

BlockNumber
ab_layer_writer_nblocks(AbLayerWriter *w)
{
	return w->nblocks;
}

/* ---- the end ---- */

bool
ab_layer_writer_crc(AbLayerWriter *w, pg_crc32c *crc)
{
	if (w->cloned)
		return false;
	write_buffered(w);
	if (w->patched)
	{
		INIT_CRC32C(w->crc);
		for (BlockNumber done = 0; done < w->nblocks;)
		{
			BlockNumber count = Min(w->nblocks - done, CHUNK_BLOCKS);

			ab_capture_interrupts();
			read_blocks(w->fd, w->path, done, count, w->chunk);
			COMP_CRC32C(w->crc, w->chunk, (size_t) count * BLCKSZ);
			done += count;
		}
		w->patched = false;
	}
	*crc = w->crc;
	FIN_CRC32C(*crc);
	return true;
}

void
ab_layer_writer_sync(AbLayerWriter *w)
{
	write_buffered(w);
	if (ftruncate(w->fd, (off_t) w->nblocks * BLCKSZ) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not set the length of file \"%s\": %m", w->path)));
	if (pg_fsync(w->fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", w->path)));
}

static void
free_writer(AbLayerWriter *w)
{
	pfree(w->chunk);
	pfree(w->path);
	pfree(w);
}

void
ab_layer_writer_publish(AbLayerWriter *w, AbSnapId id)
{
	char	   *path = ab_snapshot_path(id, ".pages");

	AB_FAILPOINT("layer-synced");
	if (rename(w->path, path) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not rename file \"%s\" to \"%s\": %m", w->path, path)));
	AB_FAILPOINT_NO_ERROR("layer-published");
	pfree(path);
	CloseTransientFile(w->fd);
	free_writer(w);
}

void
ab_layer_writer_discard(AbLayerWriter *w)
{
	CloseTransientFile(w->fd);
	(void) unlink(w->path);
	free_writer(w);
}
