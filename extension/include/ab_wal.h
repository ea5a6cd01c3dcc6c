/*
 * ab_wal.h
 *	  WAL records of the library's own resource manager.
 *
 * Every record has its content in main data and no block references (rule 11),
 * except IMAGE: a full page image of a branch's block, and nothing else (ab_image.h).
 *
 * Redo (ab_redo.c) of each record is idempotent: it leaves what the record says,
 * whatever a later or torn state of the files was before.
 */
#ifndef AB_WAL_H
#define AB_WAL_H

#include "ab_format.h"

#include "access/xlogreader.h"
#include "lib/stringinfo.h"

/* One of the ids that PostgreSQL leaves to extensions (128..255). */
#define RM_AGENT_BRANCH_ID		186

#define XLOG_AB_BRANCH_CREATE	0x00
#define XLOG_AB_BRANCH_DROP		0x10
#define XLOG_AB_SNAPSHOT		0x20
#define XLOG_AB_CONFIRM			0x30
#define XLOG_AB_RETIRE			0x40
#define XLOG_AB_IMAGE			0x50
#define XLOG_AB_BEFORE_IMAGE	0x60
#define XLOG_AB_WITNESS			0x70
#define XLOG_AB_BRANCH_DETACH	0x80
#define XLOG_AB_GATHER			0x90
#define XLOG_AB_UNKEEP			0xA0

/* The incarnation is (tli, end of this record). */
typedef struct xl_ab_branch_create
{
	AbSnapId	snapshot;
	Oid			db;
	Oid			spc;
	Oid			parent_db;
	uint32		depth;
	TimeLineID	tli;
	uint32		pad;
	TimestampTz created_at;
} xl_ab_branch_create;

/* Everything of database db that belongs to this incarnation goes away. */
typedef struct xl_ab_branch_drop
{
	AbSnapId	incarnation;
	Oid			db;
	uint32		pad;
} xl_ab_branch_drop;

/*
 * That incarnation is a plain database from now on: what it inherited is in WAL before
 * this record, as images and file creations.  Followed by AB_RELMAP_SIZE bytes of
 * relation map.
 */
typedef struct xl_ab_branch_detach
{
	AbSnapId	incarnation;
	Oid			db;
	Oid			spc;
} xl_ab_branch_detach;

/*
 * Followed by nforks AbForkEntry, nlayers AbLayerRef, nruns AbRun and AB_RELMAP_SIZE
 * bytes of relation map.  The id is (tli, end of record).
 *
 * The layers are those that the manifest names beside its own: another server's
 * manifest must not name more, since this one's gc decides when they go.  The runs are
 * there if the source is a branch and its snapshot live; those of a live snapshot of a
 * plain database can be told from the forks, and copies are found where each server
 * puts them (first_run and nruns of the forks mean nothing then).
 */
typedef struct xl_ab_snapshot
{
	AbSnapId	base;
	Oid			source_db;
	Oid			source_spc;
	TransactionId frozen_xid;
	MultiXactId min_multi;
	TimestampTz taken_at;
	TimeLineID	tli;
	uint32		depth;
	uint32		nforks;
	uint32		flags;			/* AB_MANIFEST_LIVE or 0 */
	uint32		nlayers;
	uint32		nruns;
} xl_ab_snapshot;

typedef struct xl_ab_confirm
{
	AbSnapId	id;
} xl_ab_confirm;

#define AB_RETIRE_MANIFEST	0x01	/* nothing can be branched or read from it */
#define AB_RETIRE_PAGES		0x02	/* no other manifest needs its layer */

typedef struct xl_ab_retire
{
	AbSnapId	id;
	uint32		what;
	uint32		pad;
} xl_ab_retire;

/*
 * A page of a plain database as a snapshot has it, saved before it was overwritten.
 * No block reference (rule 11).  Followed by the page without its hole.
 */
typedef struct xl_ab_before_image
{
	AbSnapId	epoch;
	Oid			db;
	Oid			spc;
	Oid			rel;
	int32		fork;
	BlockNumber block;
	uint16		hole_offset;
	uint16		hole_length;
	uint32		flags;			/* AB_IMAGE_* */
} xl_ab_before_image;

#define AB_IMAGE_WINDOW	0x01	/* belongs to a snapshot being taken (step 5) */
#define AB_IMAGE_LOST	0x02	/* none: snapshots up to the epoch, after the LSN that the page
								 * begins with, lack a page that could not be saved */

/*
 * Nothing to replay.  A server without the library cannot replay WAL that has this
 * record (ab_witness.c).
 */
typedef struct xl_ab_witness
{
	XLogRecPtr	redo;			/* the redo pointer it was written for */
} xl_ab_witness;

/*
 * These branches are there, and their origins have no slots in use.  Followed by n
 * AbOriginHeader.  Of none: the file of gathered ones was written without its dead entries.
 */
typedef struct xl_ab_gather
{
	uint32		n;
	uint32		pad;
} xl_ab_gather;

/*
 * Files of relations that db has dropped were kept for snapshots, and go.  Followed by n
 * AbKeptRelation.  Nothing for crash recovery, which has their notes.
 */
typedef struct xl_ab_unkeep
{
	Oid			db;
	uint32		n;
} xl_ab_unkeep;

extern void ab_wal_register(void);	/* RegisterCustomRmgr, from _PG_init */

/* Each returns the end of the record; nothing is flushed. */
extern XLogRecPtr ab_wal_branch_create(xl_ab_branch_create *rec);
extern XLogRecPtr ab_wal_branch_drop(AbSnapId incarnation, Oid db);

extern XLogRecPtr ab_wal_branch_detach(const xl_ab_branch_detach *rec,
									   const char *relmap);

/* As many of each as the record says. */
extern XLogRecPtr ab_wal_snapshot(xl_ab_snapshot *rec, const AbForkEntry *forks,
								  const AbLayerRef *layers, const AbRun *runs,
								  const char *relmap);
extern XLogRecPtr ab_wal_confirm(AbSnapId id);
extern XLogRecPtr ab_wal_retire(AbSnapId id, uint32 what);
extern XLogRecPtr ab_wal_before_image(AbSnapId epoch, Oid db, AbForkKey key,
									  BlockNumber block, uint32 flags, const char *page);
extern XLogRecPtr ab_wal_witness(XLogRecPtr redo);
extern XLogRecPtr ab_wal_gather(const AbOriginHeader *origins, int n);
extern XLogRecPtr ab_wal_unkeep(Oid db, const AbKeptRelation *gone, int n);

/* ab_waldesc.c */
extern void ab_rm_desc(StringInfo buf, XLogReaderState *record);
extern const char *ab_rm_identify(uint8 info);

/* ab_redo.c */
extern void ab_rm_redo(XLogReaderState *record);
extern void ab_rm_startup(void);
extern void ab_rm_cleanup(void);

/*
 * Wrap redo functions of the server: DROP DATABASE removes the origin too, and
 * records for pages of a damaged branch are passed over.
 */
extern void ab_redo_wrap_builtin(void);

#endif							/* AB_WAL_H */
