/*
 * ab_format.h
 *	  Everything this library writes to disk, except its WAL records (ab_wal.h)
 *	  and the branches' own pages, which are ordinary relation files.
 *
 * All of it lives in $PGDATA/agent_branch, never below base/ (rule 35):
 *
 *	  branches/<dboid>			 origin file of a branch database
 *	  origins					 those of branches that nobody has been in, gathered
 *	  gathered					 whose they are
 *	  branches/<dboid>.spare	 to be the origin file when there is a slot in it
 *	  branches/<dboid>.new		 empty: its base/<dboid> is being made, origin to come
 *	  branches/<dboid>.lost		 incarnation of a branch whose changes were dropped
 *	  snapshots/<id>.pending	 manifest of a snapshot not yet confirmed
 *	  snapshots/<id>.manifest	 manifest of a usable snapshot
 *	  snapshots/<id>.pages		 the pages that snapshot's own layer holds
 *	  snapshots/<id>.poisoned	 empty, or why; its snapshot must not be read any more
 *								 (behind a zero byte there may be a relation map)
 *	  images/<dboid>/			 before-images of a plain database (ab_images.h)
 *	  journal					 double-write journal of first overlay writes
 *	  witness					 what we last saw of the server's life (ab_witness.c)
 *	  tmp.*						 being written; removed at server start
 *
 * beside it, empty, where nothing in it can be written (ab_poisonmark.c):
 *
 *	  $PGDATA/agent_branch.<id>.poisoned	 as snapshots/<id>.poisoned
 *
 * and, because servers clean up there when they start (ab_witness.c), two that are empty:
 *
 *	  $PGDATA/pg_replslot/agent-branch.tmp	 directory
 *	  $PGDATA/pg_snapshots/agent-branch		 file
 *
 * Integers are in the machine's byte order, as in the rest of the cluster.
 */
#ifndef AB_FORMAT_H
#define AB_FORMAT_H

#include "ab_types.h"

#include "access/transam.h"
#include "access/multixact.h"
#include "datatype/timestamp.h"
#include "port/pg_crc32c.h"

#define AB_DIR				"agent_branch"
#define AB_BRANCH_DIR		AB_DIR "/branches"
#define AB_SNAPSHOT_DIR		AB_DIR "/snapshots"
#define AB_IMAGE_DIR		AB_DIR "/images"
#define AB_INITFILE_DIR		AB_DIR "/relcache"
#define AB_JOURNAL_FILE		AB_DIR "/journal"
#define AB_WITNESS_FILE		AB_DIR "/witness"
#define AB_ACTIVITY_FILE	AB_DIR "/activity"
#define AB_SPILL_FILE		AB_DIR "/activity.spill"
#define AB_WITNESS_TMP		AB_DIR "/" AB_TMP_PREFIX "witness"
#define AB_TRIPWIRE_START	"pg_replslot/agent-branch.tmp"
#define AB_TRIPWIRE_REPLAY	"pg_snapshots/agent-branch"
#define AB_TMP_PREFIX		"tmp."
#define AB_PACK_FILE		AB_DIR "/origins"
#define AB_PACK_TMP			AB_DIR "/" AB_TMP_PREFIX "origins"
#define AB_KEYS_FILE		AB_DIR "/gathered"
#define AB_KEYS_TMP			AB_DIR "/" AB_TMP_PREFIX "gathered"
#define AB_MARK_SUFFIX		".new"
#define AB_LOST_SUFFIX		".lost"
#define AB_SPARE_SUFFIX		".spare"

#define AB_RELMAP_SIZE		512 /* sizeof(RelMapFile) in relmapper.c of 15 */

/* ------------------------------------------------------------------------
 * Manifest: what a snapshot contains.
 *
 * header, then layers[nlayers], forks[nforks] sorted by (spc, rel, fork),
 * runs[nruns], then AB_RELMAP_SIZE bytes of pg_filenode.map.
 *
 * A run says that blocks [start, start + count) of its fork are blocks
 * [position, position + count) of layers[layer]: of its .pages file, or, if that
 * layer is live, of the fork's own file in the database the layer is of, as it was
 * at the layer's snapshot (README.before_images); position = start then.
 * The runs of a fork are sorted by start and do not overlap; a block of the fork
 * that no run covers is all zeros.  layers[0] is the snapshot itself.  So a page
 * is found by two binary searches, whatever the depth of the branch.
 * ------------------------------------------------------------------------
 */
#define AB_MANIFEST_MAGIC	0x41424D46	/* "ABMF" */
#define AB_MANIFEST_VERSION 2

#define AB_MANIFEST_HAS_PAGES_CRC	0x0001	/* pages_crc is meaningful */
#define AB_MANIFEST_LIVE			0x0002	/* layers[0] is live: there is no .pages */

/* One place where pages of a snapshot are. */
typedef struct AbLayerRef
{
	AbSnapId	id;				/* the snapshot whose layer it is */
	Oid			live_db;		/* live: the database it is of; else 0 */
	uint32		of_branch;		/* live, and that database is a branch: 1; else 0 */
} AbLayerRef;

typedef struct AbManifestHeader
{
	uint32		magic;
	uint32		version;
	pg_crc32c	crc;			/* of the whole file, this field taken as 0 */
	uint32		flags;
	AbSnapId	id;
	AbSnapId	base;			/* snapshot the source hung on; invalid if the
								 * source is a plain database */
	Oid			source_db;
	Oid			source_spc;		/* default tablespace of the source */
	TransactionId frozen_xid;	/* datfrozenxid, datminmxid of the source */
	MultiXactId min_multi;
	TimestampTz taken_at;
	uint32		depth;			/* 0: source is plain, else depth of source */
	uint32		nlayers;
	uint32		nforks;
	uint32		nruns;
	uint32		pages_blocks;	/* length of the .pages file in blocks */
	pg_crc32c	pages_crc;
	uint64		reserved[2];
} AbManifestHeader;

#define AB_FORK_UNLOGGED	0x0001	/* never inherited: made anew from init */

typedef struct AbForkEntry
{
	Oid			spc;
	Oid			rel;
	int16		fork;
	uint16		flags;
	BlockNumber nblocks;
	uint32		first_run;
	uint32		nruns;

	/*
	 * Live snapshot of a branch: a page of layers[0] below this that turns out to be
	 * all zero is not the branch's own, but what snapshot "base" has.
	 */
	BlockNumber inherited;
} AbForkEntry;

typedef struct AbRun
{
	BlockNumber start;
	BlockNumber count;
	uint32		layer;
	uint32		position;
} AbRun;

/* ------------------------------------------------------------------------
 * Origin: says that a database is a branch, of what, and how far each fork
 * still inherits.
 *
 * AB_ORIGIN_BLOCK bytes: header in the first 512, then slots.  The file grows
 * by AB_ORIGIN_BLOCK bytes of empty slots at a time, and always before the
 * slots are needed, so that writing one cannot meet a full disk (rule 20).
 * A slot never crosses a 512-byte sector and carries its own checksum.
 *
 * At AB_ORIGIN_LENGTH_AT of the first 512 bytes: how long the file is at least.  It is put
 * there after the first slot in each further block is durable; zeros stand for one block.
 * Older versions neither wrote nor looked at it.
 * ------------------------------------------------------------------------
 */
#define AB_ORIGIN_MAGIC		0x41424F52	/* "ABOR" */
#define AB_ORIGIN_VERSION	1
#define AB_ORIGIN_BLOCK		4096
#define AB_ORIGIN_HEADER	512

typedef struct AbOriginHeader
{
	uint32		magic;
	uint32		version;
	pg_crc32c	crc;			/* of this struct, this field taken as 0 */
	uint32		pad;
	AbSnapId	incarnation;	/* of the XLOG_AB_BRANCH_CREATE record */
	AbSnapId	snapshot;
	Oid			db;
	Oid			spc;			/* default tablespace, as in pg_database */
	Oid			parent_db;
	uint32		depth;			/* 1: child of a plain database */
	TimestampTz created_at;
} AbOriginHeader;

#define AB_ORIGIN_LENGTH_AT	256

typedef struct AbOriginLength
{
	uint32		length;
	pg_crc32c	crc;			/* of this struct, this field taken as 0 */
} AbOriginLength;

/* spc = rel = 0: free.  fork = AB_ALL_FORKS: the relation was dropped here. */
#define AB_ALL_FORKS		(-1)

typedef struct AbLimitSlot
{
	Oid			spc;
	Oid			rel;
	int32		fork;
	BlockNumber limit;			/* only blocks below it are inherited */
	uint32		pad[3];
	pg_crc32c	crc;
} AbLimitSlot;

StaticAssertDecl(sizeof(AbLimitSlot) == 32, "slots must not cross a sector");
StaticAssertDecl(sizeof(AbOriginHeader) <= AB_ORIGIN_LENGTH_AT, "origin header");
StaticAssertDecl(AB_ORIGIN_LENGTH_AT + sizeof(AbOriginLength) <= AB_ORIGIN_HEADER,
				 "origin header");

/* ------------------------------------------------------------------------
 * Gathered origins: the headers of many origin files that have no slots in use.
 *
 * Header (AB_PACK_HEADER bytes), then n entries sorted by database, then the n databases
 * they are of and the checksum of these.  The file is written once, synced, and gets its
 * name then.  After that only "dead" of an entry is ever changed, once, in place: the
 * branch is gone.  It is a word of its own, which no checksum covers and no sector's end
 * cuts, so that whoever reads or copies the file meanwhile sees it old or new.
 * ------------------------------------------------------------------------
 */
#define AB_PACK_MAGIC		0x41424F50	/* "ABOP" */
#define AB_PACK_VERSION		1
#define AB_PACK_HEADER		512
#define AB_PACK_DEAD		0x44454144	/* "DEAD" */

typedef struct AbPackHeader
{
	uint32		magic;
	uint32		version;
	pg_crc32c	crc;			/* of this struct, this field taken as 0 */
	uint32		n;
} AbPackHeader;

typedef struct AbPackEntry
{
	AbOriginHeader origin;
	uint32		dead;			/* 0 or AB_PACK_DEAD */
	uint32		pad;
} AbPackEntry;

StaticAssertDecl(sizeof(AbPackEntry) == 80, "entries are of one size");

/*
 * The databases they are of once more, in a file of their own, for when that one is damaged:
 * header, then n databases, sorted.  All that live in any version of that file are here before
 * it has its name; there may be more.  Older versions of the library had none.
 */
#define AB_KEYS_MAGIC		0x41424F4B	/* "ABOK" */
#define AB_KEYS_VERSION		1

typedef struct AbKeysHeader
{
	uint32		magic;
	uint32		version;
	pg_crc32c	crc;			/* of the whole file, this field taken as 0 */
	uint32		n;
} AbKeysHeader;

/* ------------------------------------------------------------------------
 * Witness: what the library last saw of the server's life.
 * ------------------------------------------------------------------------
 */
#define AB_WITNESS_MAGIC	0x41425749	/* "ABWI" */
#define AB_WITNESS_VERSION	1

typedef enum AbWitnessState
{
	AB_WITNESS_CLEAN = 1,		/* shut down with us; pg_control is as it was then */
	AB_WITNESS_STARTING,		/* started with us; pg_control is as it was before, or
								 * the server has gone on */
	AB_WITNESS_RUNNING			/* the tripwires have been put up since */
} AbWitnessState;

/* A base backup: nothing yet shows that its server ran with the library. */
#define AB_WITNESS_UNPROVEN	0x0001
/* Files that were changed without being captured, until replay is consistent. */
#define AB_WITNESS_MIXED	0x0002

typedef struct AbWitness
{
	uint32		magic;
	uint32		version;
	pg_crc32c	crc;			/* of this struct, this field taken as 0 */
	uint32		state;			/* AbWitnessState */
	uint32		flags;
	uint32		checksum_version;	/* these from pg_control: */
	uint64		system_identifier;
	uint32		control_state;	/* DBState */
	pg_crc32c	control_crc;	/* of all of it */
	XLogRecPtr	checkpoint;		/* its newest one, or that of backup_label */
} AbWitness;

/* A relation that was dropped, of a database that the context names (in WAL). */
typedef struct AbKeptRelation
{
	Oid			spc;
	Oid			rel;
} AbKeptRelation;

#endif							/* AB_FORMAT_H */
