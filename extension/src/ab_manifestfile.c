/*
 * ab_manifestfile.c
 *	  Reading pieces of a manifest from its file, where it cannot be mapped.
 *
 * A process that may have no more memory still has to learn what a snapshot contains
 * before it overwrites a page: a snapshot must not be given up for that.  Each
 * question takes some calls of pread instead of none.
 */
#include "ab_manifestfile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "ab_manifest.h"

static bool
read_at(int fd, void *data, size_t len, off_t offset)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = pg_pread(fd, (char *) data + done, len - done, offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = EIO;
			return false;
		}
		done += n;
	}
	return true;
}

static bool
read_head(AbManifestFile *f, AbSnapId id)
{
	AbManifest	layout;
	struct stat st;

	if (fstat(f->fd, &st) < 0 || !read_at(f->fd, &f->h, sizeof(f->h), 0) ||
		!read_at(f->fd, &f->own, sizeof(f->own), sizeof(f->h)))
		return false;
	if (!ab_manifest_layout((const char *) &f->h, st.st_size, &layout) ||
		!AbSnapIdEquals(f->h.id, id) || f->h.nlayers == 0)
	{
		errno = EIO;
		return false;
	}
	return true;
}

bool
ab_manifestfile_open(AbSnapId id, const char *suffix, AbManifestFile *f)
{
	char		path[MAXPGPATH];
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	snprintf(path, sizeof(path), "%s/%s%s", AB_SNAPSHOT_DIR, text, suffix);
	f->fd = BasicOpenFile(path, O_RDONLY | PG_BINARY);
	if (f->fd < 0)
		return false;
	if (!read_head(f, id))
	{
		int			save_errno = errno;

		ab_manifestfile_close(f);
		errno = save_errno;
		return false;
	}
	return true;
}

void
ab_manifestfile_close(AbManifestFile *f)
{
	(void) close(f->fd);
	f->fd = -1;
}

static off_t
forks_at(const AbManifestFile *f)
{
	return sizeof(AbManifestHeader) + (off_t) f->h.nlayers * sizeof(AbLayerRef);
}

static off_t
runs_at(const AbManifestFile *f)
{
	return forks_at(f) + (off_t) f->h.nforks * sizeof(AbForkEntry);
}

bool
ab_manifestfile_find(const AbManifestFile *f, AbForkKey key, AbForkEntry *e, bool *found)
{
	AbForkEntry wanted = {.spc = key.spc, .rel = key.rel, .fork = key.fork};
	uint32		low = 0;
	uint32		high = f->h.nforks;

	*found = false;
	while (low < high)
	{
		uint32		mid = low + (high - low) / 2;
		int			order;

		if (!read_at(f->fd, e, sizeof(*e), forks_at(f) + (off_t) mid * sizeof(*e)))
			return false;
		order = ab_fork_entry_compare(&wanted, e);
		if (order == 0)
		{
			*found = true;
			return true;
		}
		if (order < 0)
			high = mid;
		else
			low = mid + 1;
	}
	return true;
}

bool
ab_manifestfile_run(const AbManifestFile *f, const AbForkEntry *e, BlockNumber block,
					AbRun *run, bool *found)
{
	uint32		low = 0;
	uint32		high = e->nruns;

	*found = false;
	while (low < high)
	{
		uint32		mid = low + (high - low) / 2;

		if (!read_at(f->fd, run, sizeof(*run),
					 runs_at(f) + ((off_t) e->first_run + mid) * sizeof(*run)))
			return false;
		if (run->start <= block && block - run->start < run->count)
		{
			*found = true;
			return true;
		}
		if (run->start > block)
			high = mid;
		else
			low = mid + 1;
	}
	return true;
}
