/*
 * ab_poisonmark.c
 *	  Files that say that a snapshot must not be read any more, made by whoever cannot say
 *	  it in the store of before-images.
 *
 * Any process, in critical sections too: raw system calls, nothing is allocated or raised,
 * except when one is removed.  It is among the snapshots' files; or, where nothing under
 * agent_branch can be written (a file system of its own that was made read-only), beside
 * that directory, where the parents' files are.  A base backup has either.  A crash leaves
 * the mark or nothing, and then the page that was lost was not overwritten yet (E1).
 */
#include "ab_poisonmark.h"

#include <fcntl.h>
#include <unistd.h>

#include "storage/fd.h"

#include "ab_file.h"
#include "ab_format.h"

static void
path_beside(char path[MAXPGPATH], AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	snprintf(path, MAXPGPATH, AB_DIR ".%s.poisoned", text);
}

static bool
sync_path(const char *path, int flags)
{
	int			fd = BasicOpenFile(path, flags | PG_BINARY);
	bool		ok = fd >= 0 && pg_fsync(fd) == 0;

	if (fd >= 0)
		(void) close(fd);
	return ok;
}

bool
ab_poisonmark_make(AbSnapId id)
{
	char		path[MAXPGPATH];
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	snprintf(path, sizeof(path), AB_SNAPSHOT_DIR "/%s.poisoned", text);
	if (sync_path(path, O_CREAT | O_WRONLY) && sync_path(AB_SNAPSHOT_DIR, O_RDONLY))
		return true;
	path_beside(path, id);
	return sync_path(path, O_CREAT | O_WRONLY) && sync_path(".", O_RDONLY);
}

bool
ab_poisonmark_parse_beside(const char *name, AbSnapId *id)
{
	static const char prefix[] = AB_DIR ".";
	char		path[MAXPGPATH];
	char		text[AB_SNAPID_TEXT_LEN + 1];

	if (strncmp(name, prefix, strlen(prefix)) != 0)
		return false;
	strlcpy(text, name + strlen(prefix), sizeof(text));
	if (!ab_snapid_parse(text, id))
		return false;
	path_beside(path, *id);
	return strcmp(name, path) == 0;
}

bool
ab_poisonmark_is_beside(AbSnapId id)
{
	char		path[MAXPGPATH];

	path_beside(path, id);
	return ab_file_exists(path);
}

void
ab_poisonmark_remove_beside(AbSnapId id)
{
	char		path[MAXPGPATH];

	path_beside(path, id);
	if (unlink(path) < 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}
