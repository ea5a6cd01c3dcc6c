/*
 * ab_file.c
 *	  Durable small files below $PGDATA/agent_branch.
 *
 * Any process; no locks.  A crash leaves at most a tmp.* file, which server
 * start removes.
 */
#include "ab_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"

static uint32 tmp_counter = 0;

/* In a base backup there would be nothing of what is behind a symbolic link. */
static void
make_dir(const char *path)
{
	struct stat st;

	if (MakePGDirectory(path) == 0)
		return;
	if (errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", path)));
	if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is a symbolic link", path),
				 errdetail("Base backups leave symbolic links out, and would lack what branches are made of."),
				 errhint("Move the directory here. To have it on another filesystem, mount that here.")));
}

void
ab_file_make_dirs(void)
{
	make_dir(AB_DIR);
	make_dir(AB_BRANCH_DIR);
	make_dir(AB_SNAPSHOT_DIR);
	make_dir(AB_IMAGE_DIR);
	make_dir(AB_INITFILE_DIR);
}

char *
ab_file_read(const char *path, size_t *len)
{
	struct stat st;
	char	   *data;
	int			fd;
	ssize_t		got;

	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
	{
		if (errno == ENOENT)
			return NULL;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	}
	if (fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", path)));
	data = palloc_extended(st.st_size + 1, MCXT_ALLOC_HUGE);
	got = pg_pread(fd, data, st.st_size, 0);
	if (got != st.st_size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": read %zd of %zd bytes",
						path, got, (size_t) st.st_size)));
	CloseTransientFile(fd);
	data[got] = '\0';
	*len = got;
	return data;
}

static void
write_all(int fd, const char *path, const char *data, size_t len)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = write(fd, data + done, Min(len - done, (size_t) 1 << 30));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			int			save_errno = n == 0 ? ENOSPC : errno;

			CloseTransientFile(fd);
			unlink(path);
			errno = save_errno;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write file \"%s\": %m", path)));
		}
		done += n;
	}
}

/*
 * An empty file to be written, new or not.  ext4 takes O_TRUNC, even of a file that is
 * empty, for the beginning of a replacement, and writes its data to disk when it is closed.
 */
static int
open_empty(const char *path)
{
	int			fd = OpenTransientFile(path, O_RDWR | O_CREAT | PG_BINARY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || (st.st_size > 0 && ftruncate(fd, 0) < 0))
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", path)));
	return fd;
}

void
ab_file_write_via(const char *tmp, const char *path, const void *data, size_t len,
				  bool sync)
{
	int			fd = open_empty(tmp);

	write_all(fd, tmp, data, len);
	if (sync && pg_fsync(fd) != 0)
	{
		int			save_errno = errno;

		CloseTransientFile(fd);
		unlink(tmp);
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not fsync file \"%s\": %m", tmp)));
	}
	if (CloseTransientFile(fd) != 0 || rename(tmp, path) < 0)
	{
		int			save_errno = errno;

		unlink(tmp);
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not put file \"%s\" into place: %m", path)));
	}
}

void
ab_file_write_durably(const char *path, const void *data, size_t len)
{
	char		dir[MAXPGPATH];
	char		tmp[MAXPGPATH + 32];

	/* beside its final name: the directories may be different filesystems */
	strlcpy(dir, path, sizeof(dir));
	get_parent_directory(dir);
	snprintf(tmp, sizeof(tmp), "%s/" AB_TMP_PREFIX "%d.%u",
			 dir, (int) getpid(), ++tmp_counter);
	ab_file_write_via(tmp, path, data, len, true);
	ab_file_sync_parent(path);
}

/*
 * Sync the directory that holds path.  An error here, as in writing, is no PANIC: whoever
 * made the file gives up what it was for.
 */
void
ab_file_sync_parent(const char *path)
{
	char		dir[MAXPGPATH];

	strlcpy(dir, path, sizeof(dir));
	get_parent_directory(dir);
	fsync_fname_ext(dir[0] ? dir : ".", true, false, ERROR);
}

bool
ab_file_remove(const char *path)
{
	if (unlink(path) == 0)
		return true;
	if (errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
	return false;
}

bool
ab_file_remove_durably(const char *path)
{
	if (!ab_file_remove(path))
		return false;
	ab_file_sync_parent(path);
	return true;
}

bool
ab_file_exists(const char *path)
{
	return access(path, F_OK) == 0;
}

bool
ab_file_has_name(int fd, const char *path)
{
	struct stat st;
	struct stat named;

	return fstat(fd, &st) == 0 && st.st_nlink > 0 && stat(path, &named) == 0 &&
		named.st_ino == st.st_ino && named.st_dev == st.st_dev;
}

char *
ab_file_tmp_name(void)
{
	return psprintf(AB_SNAPSHOT_DIR "/" AB_TMP_PREFIX "%d.%u", (int) getpid(),
					++tmp_counter);
}

pg_crc32c
ab_crc_without(const void *data, size_t len, size_t crc_offset)
{
	static const char zero[sizeof(pg_crc32c)] = {0};
	const char *bytes = data;
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, bytes, crc_offset);
	COMP_CRC32C(crc, zero, sizeof(zero));
	COMP_CRC32C(crc, bytes + crc_offset + sizeof(zero),
				len - crc_offset - sizeof(zero));
	FIN_CRC32C(crc);
	return crc;
}

char *
ab_origin_path(Oid db)
{
	return psprintf(AB_BRANCH_DIR "/%u", db);
}

char *
ab_snapshot_path(AbSnapId id, const char *suffix)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	return psprintf(AB_SNAPSHOT_DIR "/%s%s", text, suffix);
}
