/*
 * ab_quota.h
 *	  What limits the making of branches: quotas of roles and of parents, the number of
 *	  branches of the cluster, the space on the disks.
 */
#ifndef AB_QUOTA_H
#define AB_QUOTA_H

#include "ab_quotatable.h"

/*
 * May n more branches of parent be made, of which owner will be the owner?  53400 if
 * not.  Called before anything is made; the places are this (sub)transaction's until it
 * ends.  Two that ask for the last place: the second waits a while for the first to
 * commit or not.
 */
extern void ab_quota_check_create(Oid owner, Oid parent_db, int n);

/*
 * A branch of that owner and parent is none any more, or not a living one, once this
 * transaction has committed.
 */
extern void ab_quota_gone(Oid db);

/* Count anew once this transaction has committed. */
extern void ab_quota_count_anew(void);

/* Let the quota of that key be so when this transaction has committed; NULL: gone. */
extern void ab_quota_change(AbQuotaKey key, const AbQuotaLimits *limits);

/* What is used of a quota now. */
extern int64 ab_quota_branches(AbQuotaKey key);
extern int64 ab_quota_own_bytes(AbQuotaKey key);
extern int64 ab_quota_recent(AbQuotaKey key);

/* 53400 with this message unless used is below the limit. */
extern void ab_quota_refuse(AbQuotaKey key, const char *what, int64 limit, int64 used,
							const char *hint) pg_attribute_noreturn();

#endif							/* AB_QUOTA_H */
