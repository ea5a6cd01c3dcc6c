/*
 * ab_layer.c
 *	  Reading pages of snapshots where their manifests say they are, and removing
 *	  .pages files.
 *
 * Any process; no locks.  Open files are kept by snapshot id and closed when a
 * layer was removed anywhere (layer_generation) or when there are too many.
 * A layer that a readable manifest names is never removed (S4).
 */
#include "ab_layer.h"

#include <fcntl.h>
#include <unistd.h>

#include "pgstat.h"
#include "storage/fd.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "ab_file.h"
#include "ab_live.h"
#include "ab_shmem.h"

#define MAX_OPEN_LAYERS 256

typedef struct OpenLayer
{
	AbSnapId	id;				/* hash key */
	File		file;
} OpenLayer;

static HTAB *open_layers = NULL;
static uint32 seen_generation = 0;

static void
close_all(void)
{
	HASH_SEQ_STATUS scan;
	OpenLayer  *l;

	hash_seq_init(&scan, open_layers);
	while ((l = hash_seq_search(&scan)) != NULL)
	{
		FileClose(l->file);
		hash_search(open_layers, &l->id, HASH_REMOVE, NULL);
	}
}

static File
layer_file(AbSnapId id)
{
	OpenLayer  *l;
	char	   *path;
	File		file;
	uint32		generation = pg_atomic_read_u32(&ab_shared->layer_generation);

	if (open_layers == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(AbSnapId);
		ctl.entrysize = sizeof(OpenLayer);
		ctl.hcxt = TopMemoryContext;
		open_layers = hash_create("agent_branch layers", 32, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (generation != seen_generation ||
		hash_get_num_entries(open_layers) > MAX_OPEN_LAYERS)
	{
		close_all();
		seen_generation = generation;
	}

	l = hash_search(open_layers, &id, HASH_FIND, NULL);
	if (l)
		return l->file;

	path = ab_snapshot_path(id, ".pages");
	file = PathNameOpenFile(path, O_RDONLY | PG_BINARY);
	if (file < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open snapshot layer \"%s\": %m", path)));
	pfree(path);
	l = hash_search(open_layers, &id, HASH_ENTER, NULL);
	l->file = file;
	return file;
}

static AbForkKey
key_of(const AbForkEntry *e)
{
	AbForkKey	key = {e->spc, e->rel, e->fork};

	return key;
}

void
ab_snapshot_read(const AbManifest *m, const AbForkEntry *entry,
				 BlockNumber block, char *page)
{
	const AbRun *r = ab_manifest_run(m, entry, block);
	off_t		offset;
	int			nbytes;
	File		file;

	if (r == NULL)
	{
		MemSet(page, 0, BLCKSZ);
		return;
	}
	if (m->layers[r->layer].live_db != InvalidOid)
	{
		ab_live_read(&m->layers[r->layer], key_of(entry), block, page);
		return;
	}
	file = layer_file(m->layers[r->layer].id);
	offset = ((off_t) r->position + (block - r->start)) * BLCKSZ;
	nbytes = FileRead(file, page, BLCKSZ, offset, WAIT_EVENT_DATA_FILE_READ);
	if (nbytes < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read inherited block %u of relation %u from \"%s\": %m",
						block, entry->rel, FilePathName(file))));
	if (nbytes != BLCKSZ)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not read inherited block %u of relation %u from \"%s\": read only %d of %d bytes",
						block, entry->rel, FilePathName(file), nbytes, BLCKSZ)));
}

void
ab_snapshot_prefetch(const AbManifest *m, const AbForkEntry *entry,
					 BlockNumber block)
{
	const AbRun *r = ab_manifest_run(m, entry, block);

	if (r != NULL && m->layers[r->layer].live_db != InvalidOid)
		ab_live_prefetch(&m->layers[r->layer], key_of(entry), block);
	else if (r != NULL)
		(void) FilePrefetch(layer_file(m->layers[r->layer].id),
							((off_t) r->position + (block - r->start)) * BLCKSZ,
							BLCKSZ, WAIT_EVENT_DATA_FILE_PREFETCH);
}

void
ab_layer_remove(AbSnapId id)
{
	char	   *path = ab_snapshot_path(id, ".pages");

	/* other processes may have it open: give the space back now */
	if (truncate(path, 0) < 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not truncate file \"%s\": %m", path)));
	(void) ab_file_remove_durably(path);
	pg_atomic_fetch_add_u32(&ab_shared->layer_generation, 1);
	pfree(path);
}
