/*
 * ab_method.h
 *	  Ways of getting a snapshot's pages, behind one interface.
 *
 * A method fills the snapshot's layer file and describes every fork of the
 * source in a manifest builder.  It runs in the backend that takes the snapshot,
 * in the quiet moment, and in the startup process when the record is replayed.
 */
#ifndef AB_METHOD_H
#define AB_METHOD_H

#include "ab_manifest.h"

#include "nodes/pg_list.h"

typedef struct AbLayerWriter AbLayerWriter;

typedef struct AbCapture
{
	Oid			source_db;
	Oid			source_spc;
	const AbManifest *source_manifest;	/* NULL: source is a plain database */
	bool		live;			/* the pages stay in the source's files, there is no
								 * layer to write */
	AbManifestBuilder *builder;
	AbLayerWriter *layer;
	int			source_fd;		/* segment being read; 0: none */
	uint64		listed_at;		/* moment of the list of files and state of the */
	uint64		stamp;			/* directories then (ab_forknotes.h); of a live one */
	bool		taken_over;		/* the list is that of the live snapshot, but for what the
								 * server has changed since */
	int			looked_at;		/* how many forks were looked at, to list them */
	/* In redo the forks and sizes come from WAL (rule 31); else NULL. */
	const AbForkEntry *wal_forks;
	int			wal_nforks;
	/* In redo: the only layers the manifest may name, beside its own. */
	const AbLayerRef *wal_layers;
	int			wal_nlayers;
} AbCapture;

typedef struct AbMethod
{
	const char *name;
	void		(*capture) (AbCapture *c);
} AbMethod;

/* The method for a source; agent_branch.snapshot_method is the layer writer's. */
extern const AbMethod *ab_method_for(const AbCapture *c);

/* ---- ab_method.c: what every method needs ---- */

/* The files of one fork of the source, in its own directories. */
typedef struct AbSourceFork
{
	AbForkKey	key;
	uint32		nsegments;		/* 1 + number of the last segment there is */
	BlockNumber *length;		/* of each segment in blocks, 0 where missing */
} AbSourceFork;

/*
 * All forks of permanent and unlogged relations that have a file, sorted by key.
 * Raises 55000 for names that no part of the server makes (M27), except in redo.
 */
extern AbSourceFork *ab_source_forks(const AbCapture *c, int *n);

/* The files of one fork; false if it has none. */
extern bool ab_source_fork(const AbCapture *c, AbForkKey key, AbSourceFork *fork);

/*
 * Another one after a file came or went in the source's directories, by whomever: usually
 * soon, since it is the clock of the filesystem that tells.
 */
extern uint64 ab_source_stamp(const AbCapture *c);
extern AbSourceFork *ab_source_find(AbSourceFork *forks, int n, AbForkKey key);

/* Put the source's pg_filenode.map into the builder; in redo WAL has it. */
extern void ab_source_relmap(const AbCapture *c);

/* Open a segment and say its path; false if it is gone.  One at a time. */
extern bool ab_source_open(AbCapture *c, AbForkKey key, uint32 segno,
						   char path[MAXPGPATH]);

/* Close it; also after an error, since the startup process has nobody else to. */
extern void ab_source_close(AbCapture *c);

/* Let cancel (in redo: shutdown) requests through. */
extern void ab_capture_interrupts(void);

extern const AbMethod ab_method_files;	/* ab_copy.c: plain database, clone or copy */
extern const AbMethod ab_method_own_pages;	/* ab_copy_own.c: source is a branch */

/* ---- ab_layerwriter.c: the .pages file being written ---- */

extern AbLayerWriter *ab_layer_writer_open(void);	/* under a tmp. name */

/*
 * Append nblocks from a file at a block offset, cloned where possible (auto),
 * necessarily (clone) or never (copy), padded with zeros where the file ends
 * early.  Returns the position of the first block.  With data checksums, copied
 * pages that were caught half-written are read again; relblock is the number that
 * the first block has in its relation, which the checksum depends on.
 */
extern uint32 ab_layer_writer_append_file(AbLayerWriter *w, int fd, const char *path,
										  BlockNumber first, BlockNumber nblocks,
										  BlockNumber relblock);

/* Append one page from memory; returns its position. */
extern uint32 ab_layer_writer_append_page(AbLayerWriter *w, const char *page);

/* Replace a page; the caller has set its checksum if the cluster has them. */
extern void ab_layer_writer_patch(AbLayerWriter *w, uint32 position, const char *page);
extern BlockNumber ab_layer_writer_nblocks(AbLayerWriter *w);

/* CRC of the whole file if all of it was copied; false if some was cloned. */
extern bool ab_layer_writer_crc(AbLayerWriter *w, pg_crc32c *crc);
extern void ab_layer_writer_sync(AbLayerWriter *w);

/*
 * Rename it and close it.  The caller writes .pending beside it durably afterwards,
 * which makes this name durable, too.
 */
extern void ab_layer_writer_publish(AbLayerWriter *w, AbSnapId id);
extern void ab_layer_writer_discard(AbLayerWriter *w);	/* unlink, close; never raises */

#endif							/* AB_METHOD_H */
