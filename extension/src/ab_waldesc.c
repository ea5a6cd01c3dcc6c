/*
 * ab_waldesc.c
 *	  Describing the library's WAL records, for pg_walinspect and error messages.
 *
 * Any process; reads the record and nothing else.
 */
#include "ab_wal.h"

static void
append_id(StringInfo buf, const char *label, AbSnapId id)
{
	char		text[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(id, text);
	appendStringInfo(buf, "%s %s", label, text);
}

static void
desc_branch_create(StringInfo buf, const xl_ab_branch_create *rec)
{
	appendStringInfo(buf, "db %u; tablespace %u; parent %u; depth %u; timeline %u; ",
					 rec->db, rec->spc, rec->parent_db, rec->depth, rec->tli);
	append_id(buf, "snapshot", rec->snapshot);
}

static void
desc_snapshot(StringInfo buf, const xl_ab_snapshot *rec)
{
	appendStringInfo(buf, "source %u; tablespace %u; forks %u; layers %u; depth %u; "
					 "frozen xid %u; min multi %u; timeline %u",
					 rec->source_db, rec->source_spc, rec->nforks, rec->nlayers, rec->depth,
					 rec->frozen_xid, rec->min_multi, rec->tli);
	if (AbSnapIdIsValid(rec->base))
		append_id(buf, "; base", rec->base);
	if (rec->flags & AB_MANIFEST_LIVE)
		appendStringInfoString(buf, "; live");
}

static void
desc_retire(StringInfo buf, const xl_ab_retire *rec)
{
	append_id(buf, "snapshot", rec->id);
	if (rec->what & AB_RETIRE_MANIFEST)
		appendStringInfoString(buf, "; manifest");
	if (rec->what & AB_RETIRE_PAGES)
		appendStringInfoString(buf, "; pages");
}

static void
desc_before_image(StringInfo buf, const xl_ab_before_image *rec)
{
	appendStringInfo(buf, "rel %u/%u/%u; fork %d; block %u; hole %u/%u; ",
					 rec->spc, rec->db, rec->rel, rec->fork, rec->block,
					 rec->hole_offset, rec->hole_length);
	append_id(buf, "epoch", rec->epoch);
}

void
ab_rm_desc(StringInfo buf, XLogReaderState *record)
{
	char	   *data = XLogRecGetData(record);

	switch (XLogRecGetInfo(record) & ~XLR_INFO_MASK)
	{
		case XLOG_AB_BRANCH_CREATE:
			desc_branch_create(buf, (xl_ab_branch_create *) data);
			break;
		case XLOG_AB_BRANCH_DROP:
			appendStringInfo(buf, "db %u; ", ((xl_ab_branch_drop *) data)->db);
			append_id(buf, "incarnation", ((xl_ab_branch_drop *) data)->incarnation);
			break;
		case XLOG_AB_BRANCH_DETACH:
			appendStringInfo(buf, "db %u; tablespace %u; ", ((xl_ab_branch_detach *) data)->db,
							 ((xl_ab_branch_detach *) data)->spc);
			append_id(buf, "incarnation", ((xl_ab_branch_detach *) data)->incarnation);
			break;
		case XLOG_AB_SNAPSHOT:
			desc_snapshot(buf, (xl_ab_snapshot *) data);
			break;
		case XLOG_AB_CONFIRM:
			append_id(buf, "snapshot", ((xl_ab_confirm *) data)->id);
			break;
		case XLOG_AB_RETIRE:
			desc_retire(buf, (xl_ab_retire *) data);
			break;
		case XLOG_AB_BEFORE_IMAGE:
			desc_before_image(buf, (xl_ab_before_image *) data);
			break;
		case XLOG_AB_WITNESS:
			appendStringInfo(buf, "redo %X/%X",
							 LSN_FORMAT_ARGS(((xl_ab_witness *) data)->redo));
			break;
		case XLOG_AB_GATHER:
			appendStringInfo(buf, "branches %u", ((xl_ab_gather *) data)->n);
			break;
		case XLOG_AB_UNKEEP:
			appendStringInfo(buf, "db %u; relations %u", ((xl_ab_unkeep *) data)->db,
							 ((xl_ab_unkeep *) data)->n);
			break;
	}
}

const char *
ab_rm_identify(uint8 info)
{
	switch (info & ~XLR_INFO_MASK)
	{
		case XLOG_AB_BRANCH_CREATE:
			return "BRANCH_CREATE";
		case XLOG_AB_BRANCH_DROP:
			return "BRANCH_DROP";
		case XLOG_AB_BRANCH_DETACH:
			return "BRANCH_DETACH";
		case XLOG_AB_SNAPSHOT:
			return "SNAPSHOT";
		case XLOG_AB_CONFIRM:
			return "CONFIRM";
		case XLOG_AB_RETIRE:
			return "RETIRE";
		case XLOG_AB_IMAGE:
			return "IMAGE";
		case XLOG_AB_BEFORE_IMAGE:
			return "BEFORE_IMAGE";
		case XLOG_AB_WITNESS:
			return "WITNESS";
		case XLOG_AB_GATHER:
			return "GATHER";
		case XLOG_AB_UNKEEP:
			return "UNKEEP";
	}
	return NULL;
}
