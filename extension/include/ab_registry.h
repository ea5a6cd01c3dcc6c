/*
 * ab_registry.h
 *	  Table branch.registry: what there is to remember of a branch, beyond its files
 *	  and its row in pg_database.
 *
 * Only in the control database.  A branch gets its row when there is something to
 * remember; a plain creation writes none.
 */
#ifndef AB_REGISTRY_H
#define AB_REGISTRY_H

#include "ab_types.h"

#include "datatype/timestamp.h"

/* Columns of the table, but for its key. */
typedef enum AbRegistryField
{
	AB_REGISTRY_CREATED_AT,		/* timestamptz */
	AB_REGISTRY_RESET_AT,		/* timestamptz */
	AB_REGISTRY_EXPIRES_AT,		/* timestamptz */
	AB_REGISTRY_PROTECTED_UNTIL,	/* timestamptz, infinity: no lease */
	AB_REGISTRY_SUSPEND_TIMEOUT,	/* interval */
	AB_REGISTRY_LABELS,			/* jsonb, never null */
	AB_REGISTRY_AGENT_ID,		/* text */
	AB_REGISTRY_AGENT_ROLE,		/* oid */
	AB_REGISTRY_DELETED_AT,		/* timestamptz */
	AB_REGISTRY_DELETED_BY,		/* text */
	AB_REGISTRY_DELETED_NAME,	/* text */
	AB_REGISTRY_DELETED_ALLOWCONN	/* boolean */
} AbRegistryField;

#define AB_REGISTRY_FIELDS (AB_REGISTRY_DELETED_ALLOWCONN + 1)
#define AB_REGISTRY_BIT(field) (1U << (field))

typedef struct AbRegistryRow
{
	Oid			db;
	TimestampTz origin_at;		/* created_at of the origin file it is about */
	Datum		value[AB_REGISTRY_FIELDS];
	bool		isnull[AB_REGISTRY_FIELDS];
} AbRegistryRow;

/*
 * The row of a branch as it is committed now (or changed by this transaction),
 * whatever the transaction's isolation level; palloc'd values.  False: it has none,
 * or what is there is about another database that had the OID.  Where the extension
 * is not created, nothing has one.
 */
extern bool ab_registry_get(Oid db, AbRegistryRow *row);

/*
 * Write the fields in the mask (AB_REGISTRY_BIT), making the row if need be; all
 * others stay.  db and origin_at of the argument are not looked at.  The caller has
 * checked rights and values, and holds a lock on the database object.
 */
extern void ab_registry_put(Oid db, const AbRegistryRow *row, uint32 fields);

/* Write one field; null if isnull. */
extern void ab_registry_put_field(Oid db, AbRegistryField field, Datum value,
								  bool isnull);

/*
 * Until when a branch is protected now; false: it is not.  In the control database;
 * elsewhere ab_request_protection() has the keeper ask.
 */
extern bool ab_registry_protected(Oid db, TimestampTz *until);

/*
 * Raise 55000 if a branch is protected: "cannot <verb> ...".  The caller holds a lock
 * on the database object that keeps branch.protect() out.
 */
extern void ab_registry_check_protection(Oid db, const char *name, const char *verb);

/* That error. */
extern void ab_registry_raise_protected(const char *name, const char *verb,
										TimestampTz until) pg_attribute_noreturn();

/*
 * Branches that this transaction has created are those of agents, with roles of their
 * own or without (InvalidOid).
 */
extern void ab_registry_put_agents(int n, const Oid *dbs, char *const *agent_ids,
								   const Oid *roles);

/*
 * A branch was reset: old_db, whose origin file said old_origin_at, has become
 * new_db.  preserved: the old one lives on under another name, with what is remembered
 * of it, but as nobody's agent branch.
 */
extern void ab_registry_move(Oid old_db, TimestampTz old_origin_at, Oid new_db,
							 bool preserved);

/* Delete the rows of databases that are no more.  Needs a transaction. */
extern void ab_registry_forget(void);

#endif							/* AB_REGISTRY_H */
