/*
 * ab_activityfile.c
 *	  Activity in files (ab_activityfile.h).
 *
 * agent_branch/activity.spill: records of databases that found no entry, appended and
 * read under the activity lock by whoever has to; never synced, and removed when the
 * server starts after a crash.
 *
 * agent_branch/activity: what was in shared memory at the end of a clean shutdown, and
 * how far the other file counts.  Written by the postmaster when everybody has gone, and
 * removed durably before it is believed, so that nothing is taken twice.  A crash leaves
 * none.
 */
#include "ab_activityfile.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "ab_file.h"

#define ACTIVITY_MAGIC 0x41624163

/* Bytes of the file that are written to the table at once, and not when it is time. */
#define WAKE_WORKER_AT ((int64) (AB_ACTIVITY_BATCH * sizeof(AbActivity)))

typedef struct AbActivityFile
{
	uint32		magic;
	pg_crc32c	crc;			/* of the whole file, this as zero */
	int64		spilled;
	int64		spill_done;
	int32		n;
	int32		pad;
	AbActivity	entries[FLEXIBLE_ARRAY_MEMBER];
} AbActivityFile;

/* ---- what finds no entry ---- */

void
ab_activity_spill(const AbActivity *what)
{
	int			fd = BasicOpenFile(AB_SPILL_FILE, O_RDWR | O_CREAT | PG_BINARY);

	if (fd < 0 ||
		pg_pwrite(fd, what, sizeof(*what), ab_activity->spilled) != sizeof(*what))
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", AB_SPILL_FILE),
				 errdetail("Activity of database %u is lost.", what->db)));
	else
		ab_activity->spilled += sizeof(*what);
	if (fd >= 0)
		close(fd);
	if (ab_activity->worker != NULL &&
		ab_activity->spilled - ab_activity->spill_done >= WAKE_WORKER_AT)
		SetLatch(ab_activity->worker);
}

static void
merge(AbActivity *into, const AbActivity *record)
{
	if (into->origin_at != record->origin_at)
	{
		*into = *record;		/* the one before it is gone */
		return;
	}
	ab_use_add(&into->pending, &record->pending);
	into->since = Min(into->since, record->since);
	into->last_active = Max(into->last_active, record->last_active);
}

int
ab_activity_read_spill(AbActivity *into, int max, int64 from, int64 *upto)
{
	int			fd = BasicOpenFile(AB_SPILL_FILE, O_RDONLY | PG_BINARY);
	AbActivity	record;
	int			n = 0;

	*upto = from;
	while (fd >= 0 && *upto < ab_activity->spilled &&
		   pg_pread(fd, &record, sizeof(record), *upto) == sizeof(record))
	{
		int			i;

		for (i = 0; i < n && into[i].db != record.db; i++)
			;
		if (i == max)
			break;
		if (i < n)
			merge(&into[i], &record);
		else
			into[n++] = record;
		*upto += sizeof(record);
	}
	if (fd >= 0)
		close(fd);
	if (n == 0 && *upto < ab_activity->spilled)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", AB_SPILL_FILE)));
		*upto = ab_activity->spilled;
	}
	return n;
}

void
ab_activity_empty_spill(void)
{
	(void) unlink(AB_SPILL_FILE);
	ab_activity->spilled = ab_activity->spill_done = 0;
}

/* ---- while the server is down ---- */

static bool
shut_down_cleanly(void)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(".", &crc_ok);

	return crc_ok && control->state == DB_SHUTDOWNED;
}

/*
 * After a crash of a backend the code is not 0; after an immediate shutdown the control
 * file says that the server runs.  Otherwise everybody else has gone by himself.
 */
static void
save(int code, Datum arg)
{
	AbActivityFile *file;
	Size		size;

	if (code != 0 || IsUnderPostmaster || !shut_down_cleanly())
		return;
	size = offsetof(AbActivityFile, entries) + sizeof(AbActivity) * ab_activity->nentries;
	file = malloc(size);
	if (file == NULL)
		return;
	memset(file, 0, offsetof(AbActivityFile, entries));
	file->magic = ACTIVITY_MAGIC;
	file->spilled = ab_activity->spilled;
	file->spill_done = ab_activity->spill_done;
	file->n = ab_activity_all(file->entries, ab_activity->nentries);
	file->crc = ab_crc_without(file, size, offsetof(AbActivityFile, crc));
	PG_TRY();
	{
		ab_file_write_durably(AB_ACTIVITY_FILE, file, size);
	}
	PG_CATCH();
	{
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	free(file);
}

static void
take_entries(const AbActivityFile *file)
{
	for (int i = 0; i < file->n; i++)
	{
		const AbActivity *from = &file->entries[i];
		AbActivity *entry = ab_activity_make(from->db, from->origin_at);

		if (entry == NULL)
		{
			ab_activity_spill(from);
			continue;
		}
		*entry = *from;
		entry->sessions = 0;
		ab_activity->nsuspended += entry->suspended_at != 0;
		ab_activity_touch(entry);
	}
}

void
ab_activity_restore(void)
{
	AbActivityFile *file = NULL;
	size_t		len;

	if (IsUnderPostmaster)
		return;
	on_shmem_exit(save, (Datum) 0);
	if (ab_file_exists(AB_ACTIVITY_FILE))
	{
		file = (AbActivityFile *) ab_file_read(AB_ACTIVITY_FILE, &len);
		(void) ab_file_remove_durably(AB_ACTIVITY_FILE);
	}
	if (file == NULL || len < offsetof(AbActivityFile, entries) ||
		file->magic != ACTIVITY_MAGIC ||
		len != offsetof(AbActivityFile, entries) + sizeof(AbActivity) * (size_t) file->n ||
		file->crc != ab_crc_without(file, len, offsetof(AbActivityFile, crc)))
	{
		(void) unlink(AB_SPILL_FILE);
		return;
	}
	ab_activity->spilled = file->spilled;
	ab_activity->spill_done = file->spill_done;
	take_entries(file);
	pfree(file);
}
