/*
 * ab_attach.c
 *	  How this library gets into the storage manager.  The only file that knows.
 *
 * The server calls its storage functions through smgrsw[], a constant table that
 * is not exported.  All functions in it are, and their order is fixed, so the run
 * of their addresses in the server's read-only data identifies the table.  It is
 * made writable for the moment it takes to put our entry points in.
 *
 * This runs in the postmaster, once for each server start; all processes inherit
 * the patched table by fork().  No process ever changes it again.
 *
 * The table's layout and the functions' signatures belong to one minor release:
 * smgr_truncate gained an argument in 15.11.  So the server must be exactly the
 * release this file was compiled for, and every slot we use is called once through
 * the server's own code (ab_attach_self_test) before the server starts: a compiler
 * may call an md function directly although the source goes through the table, as
 * it does in 15 for open, immedsync and init.  We use none of those.
 */
#include "ab_attach.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/md.h"
#include "storage/smgr.h"
#include "utils/guc.h"

#include "ab_smgr.h"

/* Places of the functions in the table of 15. */
enum
{
	SLOT_INIT, SLOT_SHUTDOWN, SLOT_OPEN, SLOT_CLOSE, SLOT_CREATE, SLOT_EXISTS,
	SLOT_UNLINK, SLOT_EXTEND, SLOT_PREFETCH, SLOT_READ, SLOT_WRITE,
	SLOT_WRITEBACK, SLOT_NBLOCKS, SLOT_TRUNCATE, SLOT_IMMEDSYNC,
	NSLOTS
};

typedef void (*AnyFunction) (void);

typedef struct Slot
{
	const char *name;
	AnyFunction server;			/* what the server has there */
	AnyFunction ours;			/* NULL: left alone */
} Slot;

#define FN(f) ((AnyFunction) (f))

static const Slot slots[NSLOTS] = {
	[SLOT_INIT] = {"smgr_init", FN(mdinit), NULL},
	[SLOT_SHUTDOWN] = {"smgr_shutdown", NULL, NULL},
	[SLOT_OPEN] = {"smgr_open", FN(mdopen), NULL},
	[SLOT_CLOSE] = {"smgr_close", FN(mdclose), NULL},
	[SLOT_CREATE] = {"smgr_create", FN(mdcreate), FN(ab_smgr_create)},
	[SLOT_EXISTS] = {"smgr_exists", FN(mdexists), FN(ab_smgr_exists)},
	[SLOT_UNLINK] = {"smgr_unlink", FN(mdunlink), FN(ab_smgr_unlink)},
	[SLOT_EXTEND] = {"smgr_extend", FN(mdextend), FN(ab_smgr_extend)},
	[SLOT_PREFETCH] = {"smgr_prefetch", FN(mdprefetch), FN(ab_smgr_prefetch)},
	[SLOT_READ] = {"smgr_read", FN(mdread), FN(ab_smgr_read)},
	[SLOT_WRITE] = {"smgr_write", FN(mdwrite), FN(ab_smgr_write)},
	[SLOT_WRITEBACK] = {"smgr_writeback", FN(mdwriteback), NULL},
	[SLOT_NBLOCKS] = {"smgr_nblocks", FN(mdnblocks), FN(ab_smgr_nblocks)},
	[SLOT_TRUNCATE] = {"smgr_truncate", FN(mdtruncate), FN(ab_smgr_truncate)},
	[SLOT_IMMEDSYNC] = {"smgr_immedsync", FN(mdimmedsync), NULL},
};

static AnyFunction *table = NULL;	/* the server's, once found */

static void
refuse(const char *detail)
{
	ereport(FATAL,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("agent_branch does not fit this server"),
			 errdetail("%s", detail),
			 errhint("Build agent_branch against exactly this server (make clean && make && make install), or remove it from shared_preload_libraries; branches cannot be read without it.")));
}

/* ---- finding ---- */

typedef struct Search
{
	AnyFunction *found;
	int			count;
} Search;

static bool
table_starts_at(AnyFunction *p)
{
	for (int i = 0; i < NSLOTS; i++)
		if (p[i] != slots[i].server)
			return false;
	return true;
}

/* Callback for each loaded object; the first one is the server itself. */
static int
search_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	Search	   *search = arg;

	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		AnyFunction *p;
		AnyFunction *end;

		if (ph->p_type != PT_LOAD || !(ph->p_flags & PF_R) || (ph->p_flags & PF_X))
			continue;
		p = (AnyFunction *) TYPEALIGN(sizeof(void *), info->dlpi_addr + ph->p_vaddr);
		end = (AnyFunction *) (info->dlpi_addr + ph->p_vaddr + ph->p_memsz);
		for (; p + NSLOTS <= end; p++)
			if (table_starts_at(p))
			{
				search->found = p;
				search->count++;
			}
	}
	return 1;					/* no other object */
}

static void
check_version(void)
{
	const char *running = GetConfigOption("server_version_num", false, false);

	if (atoi(running) != PG_VERSION_NUM)
		refuse(psprintf("It was built for server version %d, this is %s.",
						PG_VERSION_NUM, running));
	if (dlsym(RTLD_DEFAULT, "smgrtruncate2") == NULL)
		refuse("The server has no smgrtruncate2(): its storage functions have other signatures.");
}

static AnyFunction *
find_table(void)
{
	Search		search = {NULL, 0};

	dl_iterate_phdr(search_object, &search);
	if (search.count != 1)
		refuse(psprintf("The table of storage functions was found %d times instead of once.",
						search.count));
	return search.found;
}

/* ---- patching ---- */

/* Protection of the table's pages: with or without PROT_WRITE. */
static void
protect(AnyFunction *t, int prot)
{
	uintptr_t	page = sysconf(_SC_PAGESIZE);
	uintptr_t	start = (uintptr_t) t & ~(page - 1);
	uintptr_t	end = (uintptr_t) (t + NSLOTS);

	if (mprotect((void *) start, end - start, prot) != 0)
		refuse(psprintf("mprotect: %s.", strerror(errno)));
}

void
ab_attach(void)
{
	AnyFunction *t;

	check_version();
	t = find_table();
	protect(t, PROT_READ | PROT_WRITE);
	for (int i = 0; i < NSLOTS; i++)
		if (slots[i].ours != NULL)
			t[i] = slots[i].ours;
	protect(t, PROT_READ);
	table = t;
}

/* ---- self-test ---- */

static int	probed;				/* slot whose probe was called last */

static void
probe_create(SMgrRelation reln, ForkNumber fork, bool isRedo)
{
	probed = SLOT_CREATE;
}

static bool
probe_exists(SMgrRelation reln, ForkNumber fork)
{
	probed = SLOT_EXISTS;
	return true;
}

static void
probe_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo)
{
	probed = SLOT_UNLINK;
}

static void
probe_extend(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer,
			 bool skipFsync)
{
	probed = SLOT_EXTEND;
}

static bool
probe_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber block)
{
	probed = SLOT_PREFETCH;
	return true;
}

static void
probe_read(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer)
{
	probed = SLOT_READ;
}

static void
probe_write(SMgrRelation reln, ForkNumber fork, BlockNumber block, char *buffer,
			bool skipFsync)
{
	probed = SLOT_WRITE;
}

static BlockNumber
probe_nblocks(SMgrRelation reln, ForkNumber fork)
{
	probed = SLOT_NBLOCKS;
	return 4711;
}

/* Also shows that the arguments arrive in the places we expect. */
static void
probe_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_blocks,
			   BlockNumber nblocks)
{
	if (old_blocks == 22 && nblocks == 11)
		probed = SLOT_TRUNCATE;
}

static AnyFunction
probe_for(int slot)
{
	switch (slot)
	{
		case SLOT_CREATE:
			return FN(probe_create);
		case SLOT_EXISTS:
			return FN(probe_exists);
		case SLOT_UNLINK:
			return FN(probe_unlink);
		case SLOT_EXTEND:
			return FN(probe_extend);
		case SLOT_PREFETCH:
			return FN(probe_prefetch);
		case SLOT_READ:
			return FN(probe_read);
		case SLOT_WRITE:
			return FN(probe_write);
		case SLOT_NBLOCKS:
			return FN(probe_nblocks);
		case SLOT_TRUNCATE:
			return FN(probe_truncate);
	}
	return NULL;
}

/*
 * Call the server's function that is to end in the slot.  The relation is a
 * temporary one of a backend that is not us: the server then looks for no buffers.
 */
static void
call_through_server(int slot, SMgrRelation reln)
{
	static PGAlignedBlock page;
	ForkNumber	fork = MAIN_FORKNUM;
	BlockNumber from = 22;
	BlockNumber to = 11;

	switch (slot)
	{
		case SLOT_CREATE:
			smgrcreate(reln, fork, false);
			break;
		case SLOT_EXISTS:
			(void) smgrexists(reln, fork);
			break;
		case SLOT_UNLINK:
			smgrdounlinkall(&reln, 1, false);
			break;
		case SLOT_EXTEND:
			smgrextend(reln, fork, 0, page.data, true);
			break;
		case SLOT_PREFETCH:
			(void) smgrprefetch(reln, fork, 0);
			break;
		case SLOT_READ:
			smgrread(reln, fork, 0, page.data);
			break;
		case SLOT_WRITE:
			smgrwrite(reln, fork, 0, page.data, true);
			break;
		case SLOT_NBLOCKS:
			(void) smgrnblocks(reln, fork);
			break;
		case SLOT_TRUNCATE:
			smgrtruncate2(reln, &fork, 1, &from, &to);
			break;
	}
}

void
ab_attach_self_test(void)
{
	SMgrRelationData reln;

	for (int i = 0; i < NSLOTS; i++)
	{
		if (slots[i].ours == NULL)
			continue;
		memset(&reln, 0, sizeof(reln));
		reln.smgr_rnode.node.relNode = 1;
		reln.smgr_rnode.backend = MaxBackends + 1;
		probed = -1;

		protect(table, PROT_READ | PROT_WRITE);
		table[i] = probe_for(i);
		call_through_server(i, &reln);
		table[i] = slots[i].ours;
		protect(table, PROT_READ);

		if (probed != i)
			refuse(psprintf("The server does not call %s through its table.",
							slots[i].name));
	}
}
