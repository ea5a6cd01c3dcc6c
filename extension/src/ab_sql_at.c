/*
 * ab_sql_at.c
 *	  Which snapshot the argument "at" means (ab_sql_at.h has the rules).
 *
 * Backends in the control database.  Nothing is locked here: what is found may be
 * gone when it is used, and ab_snapshot_get_at() says so then.
 */
#include "ab_sql_at.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "ab_catalogrows.h"
#include "ab_default.h"
#include "ab_manifest.h"
#include "ab_settings.h"
#include "ab_snapshot.h"
#include "ab_snaptable.h"
#include "ab_sql.h"
#include "ab_storagefiles.h"
#include "ab_tables.h"

typedef enum AtKind
{
	AT_SNAPSHOT,				/* this one, by name or id */
	AT_LSN,
	AT_TIME
} AtKind;

typedef struct At
{
	const char *text;
	AtKind		kind;
	XLogRecPtr	lsn;
	TimestampTz time;
	AbSnapId	id;				/* of AT_SNAPSHOT */
	Oid			owner;
} At;

/* ---- what there is ---- */

static int
compare_known(const void *a, const void *b)
{
	AbSnapId	x = ((const AbKnownSnapshot *) a)->slot.id;
	AbSnapId	y = ((const AbKnownSnapshot *) b)->slot.id;

	if (x.lsn != y.lsn)
		return x.lsn < y.lsn ? -1 : 1;
	return x.tli < y.tli ? -1 : x.tli > y.tli;
}

static AbKnownSnapshot *
find_known(AbKnownSnapshot *known, int n, AbSnapId id)
{
	AbKnownSnapshot key = {.slot.id = id};

	return bsearch(&key, known, n, sizeof(AbKnownSnapshot), compare_known);
}

AbKnownSnapshot *
ab_sql_known_snapshots(int *n)
{
	int			nslots;
	AbSnapSlot *slots = ab_snaptable_all(&nslots);
	AbKnownSnapshot *known = palloc0(Max(nslots, 1) * sizeof(AbKnownSnapshot));
	ListCell   *lc;

	*n = 0;
	for (int i = 0; i < nslots; i++)
	{
		if (!slots[i].confirmed || slots[i].ahead)
			continue;
		known[*n].slot = slots[i];
		known[*n].owner = slots[i].source_db;
		(*n)++;
	}
	qsort(known, *n, sizeof(AbKnownSnapshot), compare_known);
	foreach(lc, ab_tables_names())
	{
		AbNamedSnapshot *s = lfirst(lc);
		AbKnownSnapshot *k = find_known(known, *n, s->id);

		if (k == NULL)
			continue;
		k->owner = s->source_db;
		k->names = lappend(k->names, s->name);
	}
	pfree(slots);
	return known;
}

static TimestampTz
taken_at(AbSnapId id)
{
	AbManifestHeader m;

	return ab_manifest_read_header(id, &m) ? m.taken_at : 0;
}

/* ---- what the text says ---- */

static void
raise_closed(const char *at, TimestampTz when)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("snapshot \"%s\" is closed: no branch can be made of it any more", at),
			 when != 0 ?
			 errdetail("It was found too old at %s: its transaction ids were about to wrap around.",
					   timestamptz_to_str(when)) :
			 errdetail("Snapshots without a name are closed when there is a newer one, all of them before their transaction ids wrap around."),
			 errhint("Choose another one from the view branch.snapshots.")));
}

static bool
parse_name(At *at)
{
	ListCell   *lc;

	foreach(lc, ab_tables_names())
	{
		AbNamedSnapshot *s = lfirst(lc);

		if (strcmp(s->name, at->text) != 0 || !ab_sql_may_see(s->source_db))
			continue;
		if (s->closed_at != 0)
			raise_closed(at->text, s->closed_at);
		at->id = s->id;
		at->owner = s->source_db;
		return true;
	}
	return false;
}

static void
raise_unknown(const char *at)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("snapshot \"%s\" does not exist", at),
			 errhint("The view branch.snapshots lists those that do, by name and id; a timestamp or a position in the WAL can be given, too.")));
}

static bool
parse_id(At *at)
{
	int			n;
	AbKnownSnapshot *known;
	AbKnownSnapshot *found;

	if (!ab_snapid_parse(at->text, &at->id))
		return false;
	known = ab_sql_known_snapshots(&n);
	found = find_known(known, n, at->id);
	if (found == NULL || !ab_sql_may_see(found->owner))
		raise_unknown(at->text);
	at->owner = found->owner;
	return true;
}

/* Does it read as a timestamp?  If so a failing conversion is a user's error. */
static bool
looks_like_timestamp(const char *text)
{
	char		buf[MAXDATELEN + MAXDATEFIELDS];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	struct pg_tm tm;
	fsec_t		fsec;
	int			tz;
	int			nf;
	int			dtype;

	return ParseDateTime(text, buf, sizeof(buf), field, ftype, MAXDATEFIELDS, &nf) == 0 &&
		DecodeDateTime(field, ftype, nf, &dtype, &tm, &fsec, &tz) == 0;
}

static void
parse_at(const char *text, At *at)
{
	bool		bad = false;

	MemSet(at, 0, sizeof(*at));
	at->text = text;
	if (text[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"at\" must not be empty")));
	if (parse_name(at) || parse_id(at))
		return;
	at->kind = AT_LSN;
	at->lsn = pg_lsn_in_internal(text, &bad);
	if (!bad)
		return;
	if (!looks_like_timestamp(text))
		raise_unknown(text);
	at->kind = AT_TIME;
	at->time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
													   CStringGetDatum(text),
													   ObjectIdGetDatum(InvalidOid),
													   Int32GetDatum(-1)));
}

/* ---- the newest one not after a point ---- */

typedef struct Found
{
	const AbKnownSnapshot *best;	/* usable, not after */
	const AbKnownSnapshot *before;	/* not after, usable or not */
	const AbKnownSnapshot *after;
	TimestampTz best_at;		/* when they were taken */
	TimestampTz before_at;
	TimestampTz after_at;
} Found;

/* known is sorted by position, which is the order in which they were taken. */
static void
find_newest(const At *at, const AbKnownSnapshot *known, int n, Oid owner, Found *f)
{
	MemSet(f, 0, sizeof(*f));
	for (int i = 0; i < n; i++)
	{
		const AbKnownSnapshot *k = &known[i];
		TimestampTz t;

		if (k->owner != owner)
			continue;
		CHECK_FOR_INTERRUPTS();
		t = taken_at(k->slot.id);
		if (at->kind == AT_LSN ? k->slot.id.lsn > at->lsn : t > at->time)
		{
			if (f->after == NULL && ab_snapshot_is_usable(&k->slot))
			{
				f->after = k;
				f->after_at = t;
			}
			continue;
		}
		f->before = k;
		f->before_at = t;
		if (ab_snapshot_is_usable(&k->slot))
		{
			f->best = k;
			f->best_at = t;
		}
	}
}

static char *
describe(const AbKnownSnapshot *k, TimestampTz t)
{
	char		id[AB_SNAPID_TEXT_LEN + 1];

	ab_snapid_format(k->slot.id, id);
	return psprintf("\"%s\" of %s (LSN %X/%X)",
					k->names != NIL ? (char *) linitial(k->names) : id,
					timestamptz_to_str(t), LSN_FORMAT_ARGS(k->slot.id.lsn));
}

static char *
nearest(const Found *f)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (f->before)
		appendStringInfo(&buf, "The last one before, %s, cannot be branched any more.",
						 describe(f->before, f->before_at));
	if (f->after)
		appendStringInfo(&buf, "%sThe first one after it is %s.", f->before ? " " : "",
						 describe(f->after, f->after_at));
	if (buf.len == 0)
		appendStringInfoString(&buf, "It has no snapshots that can be branched.");
	return buf.data;
}

static void
raise_nothing_found(const At *at, const char *database, const Found *f)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("database \"%s\" has no snapshot at or before %s \"%s\"",
					database, at->kind == AT_LSN ? "position" : "time", at->text),
			 errdetail("%s", nearest(f)),
			 errhint("branch.snapshot() takes one and branch.schedule_snapshots() has them taken; the view branch.snapshots lists them.")));
}

/* ---- branch.create ---- */

static void
check_owner(const At *at, Oid db, const char *database)
{
	char	   *owner;

	if (at->owner == db)
		return;
	owner = get_database_name(at->owner);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("snapshot \"%s\" is not one of database \"%s\"", at->text, database),
			 owner != NULL ? errdetail("It was taken of database \"%s\".", owner) :
			 errdetail("The database it was taken of does not exist any more."),
			 errhint("Leave the parent out, or choose another snapshot from the view branch.snapshots.")));
}

static void
find_position(const At *at, AbCreateOptions *opt)
{
	const char *parent = opt->parent ? opt->parent : ab_default_parent_name();
	AbKnownSnapshot *known;
	Found		f;
	int			n;

	opt->parent = parent;
	opt->at_parent = ab_find_parent(parent);
	ab_check_parent_rights(opt->at_parent, parent);
	known = ab_sql_known_snapshots(&n);
	find_newest(at, known, n, opt->at_parent, &f);
	if (f.best == NULL)
		raise_nothing_found(at, parent, &f);
	opt->at = f.best->slot.id;
}

void
ab_sql_find_at(const char *text, AbCreateOptions *opt)
{
	At			at;

	parse_at(text, &at);
	if (at.kind != AT_SNAPSHOT)
	{
		find_position(&at, opt);
		return;
	}
	if (opt->parent)
		check_owner(&at, ab_find_parent(opt->parent), opt->parent);
	else
		opt->parent = get_database_name(at.owner);
	opt->at = at.id;
	opt->at_parent = at.owner;
}

AbSnapId
ab_sql_find_snapshot(const char *text, Oid db, const char *name)
{
	AbKnownSnapshot *known;
	Found		f;
	At			at;
	int			n;

	parse_at(text, &at);
	if (at.kind == AT_SNAPSHOT)
	{
		check_owner(&at, db, name);
		return at.id;
	}
	known = ab_sql_known_snapshots(&n);
	find_newest(&at, known, n, db, &f);
	if (f.best == NULL)
		raise_nothing_found(&at, name, &f);
	return f.best->slot.id;
}

/* ---- branch.restore ---- */

static void
raise_no_branch(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_DATABASE),
			 errmsg("branch \"%s\" does not exist", name),
			 errhint("The view branch.branches lists those that do.")));
}

static void
find_restore_position(const At *at, Oid parent, AbResetOptions *opt)
{
	AbKnownSnapshot *known;
	Found		f;
	int			n;

	known = ab_sql_known_snapshots(&n);
	find_newest(at, known, n, opt->at_db, &f);
	opt->at_own = f.best != NULL;
	if (f.best == NULL && ab_sql_may_see(parent))
	{
		Found		own = f;

		find_newest(at, known, n, parent, &f);
		if (f.best == NULL && (own.before || own.after))
			f = own;
	}
	if (f.best == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("neither branch \"%s\" nor its parent has a snapshot at or before %s \"%s\"",
						opt->name, at->kind == AT_LSN ? "position" : "time", at->text),
				 errdetail("%s", nearest(&f)),
				 errhint("branch.snapshot() takes one and branch.schedule_snapshots() has them taken; the view branch.snapshots lists them.")));
	opt->at = f.best->slot.id;
}

void
ab_sql_find_restore_point(const char *text, AbResetOptions *opt)
{
	AbOriginHeader origin;
	At			at;

	opt->at_db = ab_find_own_branch(opt->name, "restore");
	if (!OidIsValid(opt->at_db) || !ab_storage_read_origin(opt->at_db, &origin))
		raise_no_branch(opt->name);
	parse_at(text, &at);
	if (at.kind != AT_SNAPSHOT)
	{
		find_restore_position(&at, origin.parent_db, opt);
		return;
	}
	opt->at = at.id;
	opt->at_own = at.owner == opt->at_db;
	if (!opt->at_own && at.owner != origin.parent_db)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("snapshot \"%s\" is neither one of branch \"%s\" nor of its parent",
						text, opt->name),
				 errhint("Choose another one from the view branch.snapshots, or create another branch of this one.")));
}
