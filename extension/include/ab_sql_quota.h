/*
 * ab_sql_quota.h
 *	  Quotas, for other functions that SQL calls.
 */
#ifndef AB_SQL_QUOTA_H
#define AB_SQL_QUOTA_H

#include "ab_types.h"

/* 53400 if the caller, or the database, has as many named snapshots as it may. */
extern void ab_sql_check_snapshot_quota(Oid source);

/* A reset gives a parent another OID: its quotas go with it. */
extern void ab_sql_move_quotas(Oid from, Oid to);

#endif							/* AB_SQL_QUOTA_H */
