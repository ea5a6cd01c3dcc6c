/*
 * ab_createstmt.c
 *	  CREATE DATABASE name TEMPLATE parent STRATEGY branch: the statement's options,
 *	  turned into those of ab_create_branch().
 *
 * Backends.  No locks of its own.  Encoding, locale and tablespace are the
 * parent's and cannot be otherwise; options that ask for the same are accepted,
 * because tools spell them out.
 */
#include "ab_lifecycle.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "ab_catalogrows.h"

/* Options of CREATE DATABASE, one of them ours, in the order of the table below. */
typedef enum StmtOption
{
	OPT_TEMPLATE,
	OPT_OWNER,
	OPT_STRATEGY,
	OPT_ALLOW_CONNECTIONS,
	OPT_CONNECTION_LIMIT,
	OPT_IS_TEMPLATE,
	OPT_COPY_SETTINGS,
	OPT_TABLESPACE,
	OPT_ENCODING,
	OPT_LOCALE,
	OPT_LC_COLLATE,
	OPT_LC_CTYPE,
	OPT_ICU_LOCALE,
	OPT_LOCALE_PROVIDER,
	OPT_COLLATION_VERSION,
	OPT_OID
} StmtOption;

static const char *const option_names[] = {
	"template", "owner", "strategy", "allow_connections", "connection_limit",
	"is_template", "copy_settings", "tablespace", "encoding", "locale", "lc_collate",
	"lc_ctype", "icu_locale", "locale_provider", "collation_version", "oid"
};

/* options[i] = the element of that name, or NULL if absent. */
static void
sort_options(const CreatedbStmt *stmt, DefElem *options[])
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *defel = lfirst_node(DefElem, lc);
		int			i;

		for (i = 0; i < lengthof(option_names); i++)
			if (strcmp(defel->defname, option_names[i]) == 0)
				break;
		if (i == lengthof(option_names))
			ereport(ERROR,
					(errcode(ERRCODE_SYNTAX_ERROR),
					 errmsg("option \"%s\" not recognized", defel->defname)));
		if (options[i] != NULL)
			errorConflictingDefElem(defel, NULL);
		options[i] = defel;
	}
}

/* The option's text, or NULL when it is absent or DEFAULT. */
static const char *
text_of(DefElem *defel)
{
	return defel != NULL && defel->arg != NULL ? defGetString(defel) : NULL;
}

static void
refuse_difference(StmtOption option, const char *name, const char *parent)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("option \"%s\" of branch \"%s\" cannot differ from its parent",
					option_names[option], name),
			 errdetail("A branch shares the storage of database \"%s\".", parent),
			 errhint("Leave the option out, or use another strategy.")));
}

static bool
same_text(HeapTuple tup, AttrNumber attr, const char *wanted)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(DATABASEOID, tup, attr, &isnull);

	return !isnull && strcmp(TextDatumGetCString(value), wanted) == 0;
}

static bool
same_encoding(DefElem *defel, Form_pg_database form)
{
	if (IsA(defel->arg, Integer))
		return defGetInt32(defel) == form->encoding;
	return pg_valid_server_encoding(defGetString(defel)) == form->encoding;
}

static bool
same_provider(const char *wanted, Form_pg_database form)
{
	if (pg_strcasecmp(wanted, "icu") == 0)
		return form->datlocprovider == COLLPROVIDER_ICU;
	if (pg_strcasecmp(wanted, "libc") == 0)
		return form->datlocprovider == COLLPROVIDER_LIBC;
	return false;
}

/* Does the option ask for what the parent has? */
static bool
same_as_parent(StmtOption option, DefElem *defel, HeapTuple tup)
{
	Form_pg_database form = (Form_pg_database) GETSTRUCT(tup);
	const char *text = text_of(defel);

	if (text == NULL)
		return true;
	switch (option)
	{
		case OPT_TABLESPACE:
			return get_tablespace_oid(text, false) == form->dattablespace;
		case OPT_ENCODING:
			return same_encoding(defel, form);
		case OPT_LOCALE:
			return same_text(tup, Anum_pg_database_datcollate, text) &&
				same_text(tup, Anum_pg_database_datctype, text);
		case OPT_LC_COLLATE:
			return same_text(tup, Anum_pg_database_datcollate, text);
		case OPT_LC_CTYPE:
			return same_text(tup, Anum_pg_database_datctype, text);
		case OPT_ICU_LOCALE:
			return same_text(tup, Anum_pg_database_daticulocale, text);
		case OPT_LOCALE_PROVIDER:
			return same_provider(text, form);
		case OPT_COLLATION_VERSION:
			return same_text(tup, Anum_pg_database_datcollversion, text);
		default:
			return false;		/* a database OID of one's own choice */
	}
}

static void
check_same_as_parent(DefElem *options[], const char *name, const char *parent)
{
	Oid			parent_db = ab_find_parent(parent);
	HeapTuple	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(parent_db));

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_DATABASE),
				 errmsg("parent database \"%s\" does not exist", parent)));
	for (StmtOption i = OPT_TABLESPACE; i <= OPT_OID; i++)
		if (options[i] != NULL && !same_as_parent(i, options[i], tup))
			refuse_difference(i, name, parent);
	ReleaseSysCache(tup);
}

Oid
ab_create_from_statement(const CreatedbStmt *stmt)
{
	DefElem    *options[lengthof(option_names)] = {0};
	AbCreateOptions opt = {0};

	StaticAssertStmt(lengthof(option_names) == OPT_OID + 1, "one name per option");

	sort_options(stmt, options);
	opt.name = stmt->dbname;
	opt.parent = text_of(options[OPT_TEMPLATE]);
	if (opt.parent == NULL)
		opt.parent = "template1";
	opt.owner = text_of(options[OPT_OWNER]);
	opt.connection_limit = -1;
	opt.allow_connections = true;
	if (text_of(options[OPT_CONNECTION_LIMIT]))
		opt.connection_limit = defGetInt32(options[OPT_CONNECTION_LIMIT]);
	if (text_of(options[OPT_ALLOW_CONNECTIONS]))
		opt.allow_connections = defGetBoolean(options[OPT_ALLOW_CONNECTIONS]);
	if (text_of(options[OPT_IS_TEMPLATE]))
		opt.is_template = defGetBoolean(options[OPT_IS_TEMPLATE]);
	if (text_of(options[OPT_COPY_SETTINGS]))
		opt.without_settings = !defGetBoolean(options[OPT_COPY_SETTINGS]);

	check_same_as_parent(options, opt.name, opt.parent);
	return ab_create_branch(&opt);
}
