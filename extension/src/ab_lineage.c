/*
 * ab_lineage.c
 *	  What a database descends from, and what two have in common.
 *
 * Backends, in any database.  Read from origin files and heads of manifests, which never
 * change once they are there; no locks.  A reset gives a branch a new OID, so an OID means
 * one history: of two states of one database the later contains the earlier.
 */
#include "ab_lineage.h"

#include "miscadmin.h"

#include "ab_manifest.h"
#include "ab_storagefiles.h"

static bool
hangs_on(Oid db, AbSnapId at)
{
	AbOriginHeader origin;

	return ab_storage_read_origin(db, &origin) && AbSnapIdEquals(origin.snapshot, at);
}

static List *
add_ancestor(List *list, Oid db, AbSnapId at, Oid holder)
{
	AbAncestor *a = palloc0(sizeof(AbAncestor));

	a->db = db;
	a->at = at;
	a->holder = holder;
	return lappend(list, a);
}

/*
 * A manifest says what its source hung on when it was taken, whatever became of the source
 * since.
 */
List *
ab_lineage(Oid db)
{
	AbSnapId	none = {0};
	List	   *list = add_ancestor(NIL, db, none, InvalidOid);
	AbOriginHeader origin;
	AbManifestHeader m;
	AbSnapId	at;
	Oid			child = db;

	if (!ab_storage_read_origin(db, &origin))
		return list;
	for (at = origin.snapshot; AbSnapIdIsValid(at); at = m.base)
	{
		CHECK_FOR_INTERRUPTS();
		if (!ab_manifest_read_header(at, &m))
			break;
		list = add_ancestor(list, m.source_db, at,
							hangs_on(child, at) ? child : InvalidOid);
		child = m.source_db;
	}
	return list;
}

/* The earlier of two states of one database; of equal ones one that somebody holds. */
static const AbAncestor *
earlier(const AbAncestor *x, const AbAncestor *y)
{
	if (!AbSnapIdIsValid(x->at))
		return y;
	if (!AbSnapIdIsValid(y->at))
		return x;
	if (x->at.lsn != y->at.lsn)
		return x->at.lsn < y->at.lsn ? x : y;
	return OidIsValid(x->holder) ? x : y;
}

bool
ab_merge_base(Oid a, Oid b, AbAncestor *found, Oid *via)
{
	List	   *lines[2] = {ab_lineage(a), ab_lineage(b)};
	ListCell   *lx;
	ListCell   *ly;

	foreach(lx, lines[0])
		foreach(ly, lines[1])
		{
			const AbAncestor *x = lfirst(lx);
			const AbAncestor *y = lfirst(ly);

			if (x->db != y->db)
				continue;
			*found = *earlier(x, y);
			*via = AbSnapIdEquals(found->at, x->at) ? a : b;
			return true;
		}
	return false;
}
