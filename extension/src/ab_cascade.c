/*
 * ab_cascade.c
 *	  Deleting a branch with all branches of it, and of them.
 *
 * Backends in the control database, in one transaction: all of the tree, or an error
 * and nothing.  Locks: the names in order of name, then the database objects, parents
 * before children; nobody makes a branch of one whose object is locked.
 */
#include "ab_lifecycle.h"

#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"
#include "ab_origin.h"
#include "ab_softdelete.h"
#include "ab_storagefiles.h"

typedef struct TreeNode
{
	Oid			db;
	char	   *name;			/* the one it has */
	bool		deleted;		/* recoverably, before */
} TreeNode;

/* ---- who belongs to it ---- */

typedef struct Link
{
	Oid			parent;
	Oid			child;
} Link;

static int
compare_links(const void *a, const void *b)
{
	const Link *x = a;
	const Link *y = b;

	if (x->parent != y->parent)
		return x->parent < y->parent ? -1 : 1;
	return x->child < y->child ? -1 : x->child > y->child;
}

/* All branches that have a row, with their parents, sorted. */
static Link *
read_links(int *n)
{
	AbOrigins  *origins = ab_origin_all();
	Link	   *links = palloc(Max(origins->n, 1) * sizeof(Link));
	int			nlinks = 0;

	AcceptInvalidationMessages();
	for (int i = 0; i < origins->n; i++)
	{
		AbOriginHeader header;

		CHECK_FOR_INTERRUPTS();
		if (!ab_storage_read_listed(origins, i, &header) ||
			!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(origins->dbs[i])))
			continue;
		links[nlinks].parent = header.parent_db;
		links[nlinks].child = origins->dbs[i];
		nlinks++;
	}
	qsort(links, nlinks, sizeof(Link), compare_links);
	ab_origins_free(origins);
	*n = nlinks;
	return links;
}

static List *
add_node(List *nodes, Oid db)
{
	TreeNode	   *node = palloc(sizeof(TreeNode));

	node->db = db;
	node->name = ab_database_name(db);
	if (node->name == NULL)
		return nodes;			/* gone meanwhile */
	node->deleted = ab_database_is_deleted(db);
	return lappend(nodes, node);
}

/* The first link of a parent. */
static int
first_link(const Link *links, int n, Oid parent)
{
	int			low = 0;

	while (low < n)
	{
		int			mid = low + (n - low) / 2;

		if (links[mid].parent < parent)
			low = mid + 1;
		else
			n = mid;
	}
	return low;
}

/* The tree under a branch, itself first, parents before their children. */
static List *
read_tree(Oid root)
{
	int			n;
	Link	   *links = read_links(&n);
	List	   *nodes = add_node(NIL, root);

	for (int i = 0; i < list_length(nodes); i++)
	{
		TreeNode	   *node = list_nth(nodes, i);

		CHECK_FOR_INTERRUPTS();
		for (int k = first_link(links, n, node->db); k < n && links[k].parent == node->db; k++)
			nodes = add_node(nodes, links[k].child);
	}
	pfree(links);
	return nodes;
}

/* ---- locks ---- */

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(((TreeNode *) lfirst(a))->name, ((TreeNode *) lfirst(b))->name);
}

/* Rights come first: who has none must not be able to hold a name. */
static void
lock_names(List *nodes)
{
	List	   *sorted = list_copy(nodes);
	ListCell   *lc;

	list_sort(sorted, compare_names);
	foreach(lc, sorted)
	{
		TreeNode	   *node = lfirst(lc);

		if (!node->deleted)
			(void) ab_find_own_branch(node->name, "delete");
	}
	foreach(lc, sorted)
		if (!((TreeNode *) lfirst(lc))->deleted)
			ab_lock_branch_name(((TreeNode *) lfirst(lc))->name);
	list_free(sorted);
}

static void
raise_changed(const TreeNode *node)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("branch \"%s\" has been changed by another transaction", node->name),
			 errhint("Try again.")));
}

static void
lock_node(const TreeNode *node, const AbDeleteOptions *opt)
{
	if (!node->deleted)
	{
		if (ab_find_own_branch(node->name, "delete") != node->db)
			raise_changed(node);
		ab_check_not_template(node->db, node->name);
		if (!ab_lock_for_delete(node->db, node->name, "delete", true, opt->force))
			raise_changed(node);
	}
	else if (opt->hard && ab_lock_deleted(node->name) != node->db)
		raise_changed(node);
}

/*
 * Lock a tree.  A branch that was made while we waited for a lock is found when it is
 * read again: when that finds nothing new there cannot be more.
 */
static List *
lock_tree(Oid root, const AbDeleteOptions *opt)
{
	List	   *nodes = read_tree(root);
	List	   *locked = NIL;

	lock_names(nodes);
	for (;;)
	{
		bool		news = false;
		ListCell   *lc;

		foreach(lc, nodes)
		{
			TreeNode	   *node = lfirst(lc);

			if (list_member_oid(locked, node->db))
				continue;
			lock_node(node, opt);
			locked = lappend_oid(locked, node->db);
			news = true;
		}
		if (!news)
			return nodes;
		nodes = read_tree(root);
	}
}

/* ---- delete ---- */

void
ab_delete_tree(Oid root, const AbDeleteOptions *opt)
{
	List	   *nodes = lock_tree(root, opt);

	for (int i = list_length(nodes) - 1; i >= 0; i--)
	{
		TreeNode	   *node = list_nth(nodes, i);

		CHECK_FOR_INTERRUPTS();
		if (!node->deleted)
			ab_delete_locked(node->db, node->name, opt->hard);
		else if (opt->hard)
			ab_purge(node->db);
	}
}
