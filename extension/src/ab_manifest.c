/*
 * ab_manifest.c
 *	  Reading and searching manifests (format: ab_format.h); ab_builder.c makes
 *	  them.
 *
 * Any process; no locks: a confirmed manifest never changes (S2).  Mappings are
 * cached by snapshot id and dropped, oldest first, when more than a few unused
 * ones have gathered.
 */
#include "ab_manifest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "ab_file.h"

#define MAX_UNUSED_MAPPINGS 64

typedef struct CachedManifest
{
	AbSnapId	id;				/* hash key */
	AbManifest	m;
	uint64		last_use;
} CachedManifest;

static HTAB *cache = NULL;
static int	unused_mappings = 0;
static uint64 use_clock = 0;

static uint64
expected_length(const AbManifestHeader *h)
{
	return sizeof(AbManifestHeader) + AB_RELMAP_SIZE +
		(uint64) h->nlayers * sizeof(AbLayerRef) +
		(uint64) h->nforks * sizeof(AbForkEntry) +
		(uint64) h->nruns * sizeof(AbRun);
}

bool
ab_manifest_layout(const char *image, size_t len, AbManifest *out)
{
	const AbManifestHeader *h = (const AbManifestHeader *) image;

	if (len < sizeof(AbManifestHeader) || h->magic != AB_MANIFEST_MAGIC ||
		h->version != AB_MANIFEST_VERSION || len != expected_length(h))
		return false;
	out->h = h;
	out->layers = (const AbLayerRef *) (h + 1);
	out->forks = (const AbForkEntry *) (out->layers + h->nlayers);
	out->runs = (const AbRun *) (out->forks + h->nforks);
	out->relmap = (const char *) (out->runs + h->nruns);
	return true;
}

static char *
check_runs(const AbManifest *m, const AbForkEntry *e)
{
	BlockNumber next = 0;

	if ((uint64) e->first_run + e->nruns > m->h->nruns)
		return psprintf("fork %u/%u/%d names runs that do not exist",
						e->spc, e->rel, e->fork);
	for (uint32 i = 0; i < e->nruns; i++)
	{
		const AbRun *r = &m->runs[e->first_run + i];

		if (r->start < next || r->count == 0 ||
			(uint64) r->start + r->count > e->nblocks ||
			r->layer >= m->h->nlayers)
			return psprintf("fork %u/%u/%d has a bad run at block %u",
							e->spc, e->rel, e->fork, r->start);
		if (m->layers[r->layer].live_db != InvalidOid)
		{
			if (r->position != r->start)
				return psprintf("fork %u/%u/%d has a run of a live layer at another block",
								e->spc, e->rel, e->fork);
		}
		else if (r->layer == 0 &&
			(uint64) r->position + r->count > m->h->pages_blocks)
			return psprintf("fork %u/%u/%d has a run past the end of its layer",
							e->spc, e->rel, e->fork);
		next = r->start + r->count;
	}
	return NULL;
}

int
ab_fork_entry_compare(const void *a, const void *b)
{
	const AbForkEntry *x = a;
	const AbForkEntry *y = b;

	if (x->spc != y->spc)
		return x->spc < y->spc ? -1 : 1;
	if (x->rel != y->rel)
		return x->rel < y->rel ? -1 : 1;
	return (int) x->fork - (int) y->fork;
}

static char *
check_contents(const AbManifest *m)
{
	for (uint32 i = 0; i < m->h->nforks; i++)
	{
		char	   *reason = check_runs(m, &m->forks[i]);

		if (reason)
			return reason;
		if (i > 0 && ab_fork_entry_compare(&m->forks[i - 1], &m->forks[i]) >= 0)
			return pstrdup("forks are not sorted");
	}
	return NULL;
}

static char *
check(const char *image, size_t len, bool sealed, AbManifest *out)
{
	const AbManifestHeader *h = (const AbManifestHeader *) image;

	if (len < sizeof(AbManifestHeader))
		return psprintf("only %zu bytes long", len);
	if (h->magic != AB_MANIFEST_MAGIC || h->version != AB_MANIFEST_VERSION)
		return psprintf("not a manifest of version %d", AB_MANIFEST_VERSION);
	if (!ab_manifest_layout(image, len, out) || h->nlayers == 0)
		return psprintf("%zu bytes long instead of " UINT64_FORMAT, len,
						expected_length(h));
	if (sealed &&
		ab_crc_without(image, len, offsetof(AbManifestHeader, crc)) != h->crc)
		return pstrdup("checksum mismatch");
	return check_contents(out);
}

char *
ab_manifest_check(const char *image, size_t len, AbManifest *out)
{
	return check(image, len, true, out);
}

char *
ab_manifest_check_unsealed(const char *image, size_t len, AbManifest *out)
{
	return check(image, len, false, out);
}

static bool
read_header(AbSnapId id, const char *suffix, AbManifestHeader *h)
{
	char	   *path = ab_snapshot_path(id, suffix);
	int			fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	bool		ok;

	pfree(path);
	if (fd < 0)
		return false;
	ok = pg_pread(fd, h, sizeof(*h), 0) == sizeof(*h) &&
		h->magic == AB_MANIFEST_MAGIC && h->version == AB_MANIFEST_VERSION &&
		AbSnapIdEquals(h->id, id);
	CloseTransientFile(fd);
	return ok;
}

bool
ab_manifest_read_header(AbSnapId id, AbManifestHeader *h)
{
	return read_header(id, ".manifest", h);
}

bool
ab_manifest_read_pending_header(AbSnapId id, AbManifestHeader *h)
{
	return read_header(id, ".pending", h);
}

/* NULL if all layers are there, the snapshot's own in its full length. */
static char *
check_layers(const AbManifest *m)
{
	for (uint32 i = 0; i < m->h->nlayers; i++)
	{
		char	   *path;
		struct stat st;

		if (m->layers[i].live_db != InvalidOid)
			continue;
		path = ab_snapshot_path(m->layers[i].id, ".pages");
		if (stat(path, &st) < 0)
		{
			if (errno != ENOENT)
				ereport(ERROR,
						(errcode_for_file_access(),
						 errmsg("could not stat file \"%s\": %m", path)));
			return psprintf("Layer \"%s\" is missing", path);
		}
		if (i == 0 && st.st_size < (off_t) m->h->pages_blocks * BLCKSZ)
			return psprintf("Layer \"%s\" is too short", path);
		pfree(path);
	}
	return NULL;
}

static void
map_manifest(AbSnapId id, CachedManifest *c)
{
	char	   *path = ab_snapshot_path(id, ".manifest");
	char	   *poisoned = ab_snapshot_path(id, ".poisoned");
	char	   *reason;
	char	   *why;
	size_t		len;
	struct stat st;
	void	   *mapping;
	int			fd;

	why = ab_file_read(poisoned, &len);
	if (why != NULL)
	{
		why[len] = '\0';
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the snapshot this branch hangs on cannot be read any more"),
				 len > 0 ? errdetail("%s", why) :
				 errdetail("File \"%s\" says that its pages could not be kept.", poisoned),
				 errhint("Delete the branch, or reset it to its parent.")));
	}
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0 || fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open snapshot manifest \"%s\": %m", path)));
	mapping = mmap(NULL, Max(st.st_size, 1), PROT_READ, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not map snapshot manifest \"%s\": %m", path)));
	CloseTransientFile(fd);

	reason = ab_manifest_check(mapping, st.st_size, &c->m);
	if (reason == NULL && !AbSnapIdEquals(c->m.h->id, id))
		reason = pstrdup("it belongs to another snapshot");
	if (reason == NULL)
		reason = check_layers(&c->m);
	if (reason)
	{
		munmap(mapping, Max(st.st_size, 1));
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("snapshot manifest \"%s\" is damaged", path),
				 errdetail("%s.", reason)));
	}
	c->m.mapping = mapping;
	c->m.mapped = st.st_size;
	c->m.refs = 0;
	pfree(path);
	pfree(poisoned);
}

static void
drop_oldest_unused(void)
{
	HASH_SEQ_STATUS scan;
	CachedManifest *c;
	CachedManifest *oldest = NULL;

	hash_seq_init(&scan, cache);
	while ((c = hash_seq_search(&scan)) != NULL)
		if (c->m.refs == 0 && (!oldest || c->last_use < oldest->last_use))
			oldest = c;
	if (oldest)
	{
		munmap(oldest->m.mapping, oldest->m.mapped);
		hash_search(cache, &oldest->id, HASH_REMOVE, NULL);
		unused_mappings--;
	}
}

AbManifest *
ab_manifest_acquire(AbSnapId id)
{
	CachedManifest *c;
	bool		found;

	if (cache == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(AbSnapId);
		ctl.entrysize = sizeof(CachedManifest);
		ctl.hcxt = TopMemoryContext;
		cache = hash_create("agent_branch manifests", 32, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	c = hash_search(cache, &id, HASH_FIND, NULL);
	if (c == NULL)
	{
		CachedManifest fresh;

		/* map first: an error must not leave an empty entry */
		map_manifest(id, &fresh);
		c = hash_search(cache, &id, HASH_ENTER, &found);
		c->m = fresh.m;
		unused_mappings++;
	}
	if (c->m.refs++ == 0)
		unused_mappings--;
	c->last_use = ++use_clock;
	return &c->m;
}

void
ab_manifest_release(AbManifest *m)
{
	Assert(m->refs > 0);
	if (--m->refs == 0 && ++unused_mappings > MAX_UNUSED_MAPPINGS)
		drop_oldest_unused();
}

const AbForkEntry *
ab_manifest_find(const AbManifest *m, AbForkKey key)
{
	AbForkEntry wanted;

	wanted.spc = key.spc;
	wanted.rel = key.rel;
	wanted.fork = key.fork;
	return bsearch(&wanted, m->forks, m->h->nforks, sizeof(AbForkEntry),
				   ab_fork_entry_compare);
}

bool
ab_manifest_has_relation(const AbManifest *m, Oid spc, Oid rel)
{
	for (int fork = 0; fork <= MAX_FORKNUM; fork++)
	{
		AbForkKey	key = {spc, rel, fork};

		if (ab_manifest_find(m, key) != NULL)
			return true;
	}
	return false;
}

const AbRun *
ab_manifest_run(const AbManifest *m, const AbForkEntry *e, BlockNumber block)
{
	const AbRun *runs = m->runs + e->first_run;
	uint32		low = 0;
	uint32		high = e->nruns;

	/* first run that ends after block */
	while (low < high)
	{
		uint32		mid = low + (high - low) / 2;

		if (runs[mid].start + runs[mid].count > block)
			high = mid;
		else
			low = mid + 1;
	}
	if (low < e->nruns && runs[low].start <= block)
		return &runs[low];
	return NULL;
}
