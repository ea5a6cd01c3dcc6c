/*
 * ab_diskspace.c
 *	  agent_branch.min_free_disk: below it no branch is created.
 *
 * Any process.  What counts is the filesystem of the data directory: a branch's first
 * pages, the before-images of its parent's and the WAL of both go there unless
 * tablespaces or links say otherwise.
 */
#include "ab_diskspace.h"

#include <sys/statvfs.h>

#include "miscadmin.h"

typedef struct Floor
{
	int64		bytes;
	double		percent;
} Floor;

static const Floor none = {0, 0};
static const Floor *lowest = &none;

static bool
parse_percent(const char *text, double *percent)
{
	char	   *end;

	*percent = strtod(text, &end);
	while (*end == ' ')
		end++;
	return end != text && strcmp(end, "%") == 0 && *percent >= 0 && *percent <= 100;
}

bool
ab_diskspace_check_setting(char **newval, void **extra, GucSource source)
{
	Floor	   *f = malloc(sizeof(Floor));
	const char *hint = NULL;
	double		bytes;

	if (f == NULL)
		return false;
	*f = none;
	*extra = f;
	if (parse_percent(*newval, &f->percent))
		return true;
	f->percent = 0;
	if (!parse_real(*newval, &bytes, GUC_UNIT_BYTE, &hint) || bytes < 0 ||
		bytes > (double) PG_INT64_MAX / 2)
	{
		GUC_check_errhint("It is a percentage of the disk, such as \"5%%\", or bytes with a unit, such as \"10GB\".");
		return false;
	}
	f->bytes = (int64) bytes;
	return true;
}

void
ab_diskspace_assign_setting(const char *newval, void *extra)
{
	lowest = extra ? extra : &none;
}

void
ab_diskspace_check(void)
{
	struct statvfs fs;
	double		free;
	double		size;
	double		floor;

	if (lowest->bytes == 0 && lowest->percent == 0)
		return;
	if (statvfs(DataDir, &fs) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not look at the filesystem of \"%s\": %m", DataDir)));
	free = (double) fs.f_bavail * fs.f_frsize;
	size = (double) fs.f_blocks * fs.f_frsize;
	floor = lowest->percent > 0 ? size * lowest->percent / 100 : (double) lowest->bytes;
	if (free >= floor)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("there is not enough free disk space to create a branch"),
			 errdetail("agent_branch.min_free_disk asks for %lld MB, and %lld MB are free.",
					   (long long) (floor / (1024 * 1024)), (long long) (free / (1024 * 1024))),
			 errhint("Free some space; deleting branches and calling branch.gc() may help.")));
}
