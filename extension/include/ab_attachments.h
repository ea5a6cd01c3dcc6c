/*
 * ab_attachments.h
 *	  What people attach to a database in the shared catalogs.
 */
#ifndef AB_ATTACHMENTS_H
#define AB_ATTACHMENTS_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/acl.h"

typedef struct AbAttachments
{
	Acl		   *acl;			/* pg_database.datacl; NULL: the default */
	List	   *settings;		/* ALTER DATABASE and ALTER ROLE IN DATABASE ... SET */
	List	   *labels;			/* security labels */
	char	   *comment;		/* or NULL */
} AbAttachments;

/* Read all of it.  The database cannot be dropped meanwhile. */
extern AbAttachments *ab_attachments_save(Oid db);

/*
 * Attach it to a database of this transaction that has nothing attached yet.  The
 * grants are not among it: they come with the row (AbNewBranch.acl), which
 * ab_insert_branch() writes together with their pg_shdepend rows.
 */
extern void ab_attachments_restore(Oid db, const AbAttachments *a);

/*
 * What a new branch gets of its parent's: grants, made over to the branch's owner as
 * ALTER DATABASE ... OWNER TO does it, and settings, as they are now.
 */
extern AbAttachments *ab_attachments_inherit(Oid parent, Oid owner);

/* Attach that, if it is anything (NULL: it is not), and say so in an event. */
extern void ab_attachments_give(Oid db, const char *name, const char *parent,
								const AbAttachments *a);

#endif							/* AB_ATTACHMENTS_H */
