"""What is in the schemas of a database, as text that is the same for the same things.

``OBJECTS`` is one query; every row is an object with what defines it, written by the server
without OIDs, under ``sqltext.SETTINGS`` with every name in its schema.  What belongs to an
extension is left out: the extension stands for it.
"""

from __future__ import annotations

from agent_branch.sqltext import Statement


def _own(catalog: str, oid: str) -> str:
    """Condition: an object is not an extension's."""
    return (
        "NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS e WHERE e.deptype = 'e'"
        f" AND e.classid = 'pg_catalog.{catalog}'::pg_catalog.regclass AND e.objid = {oid})"
    )


def _grants(acl: str, kind: str, owner: str) -> str:
    """Grants as sorted text; NULL where they are what an object has by itself."""
    sorted_text = (
        "(SELECT pg_catalog.string_agg(i.item, E'\\n' ORDER BY i.item) FROM ("
        'SELECT u.item::pg_catalog.text COLLATE "C" AS item'
        " FROM pg_catalog.unnest({}) AS u (item)) AS i)"
    )
    return (
        f"NULLIF(COALESCE({sorted_text.format(acl)}, ''),"
        f" COALESCE({sorted_text.format(f'pg_catalog.acldefault({kind}, {owner})')}, ''))"
    )


# Rows: kind, name, table it is part of ('' if of none), definition.
_RELATIONS = f"""
relations AS MATERIALIZED (
    SELECT c.*, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_catalog.pg_class AS c JOIN schemas AS n ON n.oid = c.relnamespace
    WHERE {_own("pg_class", "c.oid")}
)"""

_SCHEMAS = f"""
schemas AS MATERIALIZED (
    SELECT n.* FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        AND {_own("pg_namespace", "n.oid")}
)"""

_ROUTINES = f"""
routines AS MATERIALIZED (
    SELECT p.*, pg_catalog.format('%I.%I(%s)', n.nspname, p.proname,
        pg_catalog.pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_catalog.pg_proc AS p JOIN schemas AS n ON n.oid = p.pronamespace
    WHERE {_own("pg_proc", "p.oid")}
)"""

# Types that stand for themselves: not the row types of tables, nor arrays and multiranges.
_TYPES = f"""
types AS MATERIALIZED (
    SELECT t.*, pg_catalog.format('%I.%I', n.nspname, t.typname) AS name
    FROM pg_catalog.pg_type AS t JOIN schemas AS n ON n.oid = t.typnamespace
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid
    WHERE {_own("pg_type", "t.oid")} AND (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c')
)"""

_OWNER = "E'\\nOWNER TO ' || pg_catalog.quote_ident(pg_catalog.pg_get_userbyid({}))"

_ACL_KIND = "CASE WHEN c.relkind = 'S' THEN 's'::\"char\" ELSE 'r' END"

_PARTS = [
    # schemas and extensions
    f"""
SELECT 'schema', pg_catalog.quote_ident(n.nspname), '',
    pg_catalog.format('CREATE SCHEMA %I', n.nspname) || {_OWNER.format("n.nspowner")}
FROM schemas AS n""",
    """
SELECT 'extension', pg_catalog.quote_ident(x.extname), '',
    pg_catalog.format('CREATE EXTENSION %I SCHEMA %I VERSION %L',
        x.extname, n.nspname, x.extversion)
FROM pg_catalog.pg_extension AS x JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace""",
    # types
    f"""
SELECT 'type', t.name, '', CASE t.typtype
    WHEN 'e' THEN pg_catalog.format('CREATE TYPE %s AS ENUM (%s)', t.name, (
        SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', '
            ORDER BY e.enumsortorder)
        FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = t.oid))
    WHEN 'c' THEN pg_catalog.format('CREATE TYPE %s AS (%s)', t.name, (
        SELECT pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname,
            pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
    WHEN 'd' THEN pg_catalog.format('CREATE DOMAIN %s AS %s', t.name,
            pg_catalog.format_type(t.typbasetype, t.typtypmod))
        || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
        || COALESCE(' DEFAULT ' || t.typdefault, '')
        || COALESCE((
            SELECT pg_catalog.string_agg(pg_catalog.format(E'\\n    CONSTRAINT %I %s', k.conname,
                pg_catalog.pg_get_constraintdef(k.oid)), '' ORDER BY k.conname)
            FROM pg_catalog.pg_constraint AS k WHERE k.contypid = t.oid), '')
    ELSE (
        SELECT pg_catalog.format('CREATE TYPE %s AS RANGE (SUBTYPE = %s%s%s)', t.name,
            pg_catalog.format_type(r.rngsubtype, NULL),
            CASE WHEN r.rngcanonical <> 0
                THEN ', CANONICAL = ' || r.rngcanonical::pg_catalog.text ELSE '' END,
            CASE WHEN r.rngsubdiff <> 0
                THEN ', SUBTYPE_DIFF = ' || r.rngsubdiff::pg_catalog.text ELSE '' END)
        FROM pg_catalog.pg_range AS r WHERE r.rngtypid = t.oid)
    END || {_OWNER.format("t.typowner")}
FROM types AS t""",
    # tables, without their columns
    f"""
SELECT 'table', c.name, '',
    CASE c.relpersistence WHEN 'u' THEN 'CREATE UNLOGGED ' ELSE 'CREATE ' END
    || CASE c.relkind WHEN 'f' THEN 'FOREIGN ' ELSE '' END || 'TABLE ' || c.name
    || COALESCE(' OF ' || NULLIF(c.reloftype, 0)::pg_catalog.regtype::pg_catalog.text, '')
    || COALESCE((
        SELECT pg_catalog.format(CASE WHEN c.relispartition THEN ' PARTITION OF %s'
            ELSE ' INHERITS (%s)' END, pg_catalog.string_agg(
            i.inhparent::pg_catalog.regclass::pg_catalog.text, ', ' ORDER BY i.inhseqno))
        FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid
        HAVING pg_catalog.count(*) > 0), '')
    || COALESCE(' ' || pg_catalog.pg_get_expr(c.relpartbound, c.oid), '')
    || COALESCE(' PARTITION BY ' || pg_catalog.pg_get_partkeydef(c.oid), '')
    || COALESCE(' USING ' || (
        SELECT pg_catalog.quote_ident(m.amname) FROM pg_catalog.pg_am AS m
        WHERE m.oid = c.relam AND m.amname <> 'heap'), '')
    || COALESCE(' WITH (' || pg_catalog.array_to_string(c.reloptions, ', ') || ')', '')
    || COALESCE((
        SELECT ' SERVER ' || pg_catalog.quote_ident(s.srvname)
            || COALESCE(' OPTIONS (' || pg_catalog.array_to_string(f.ftoptions, ', ') || ')', '')
        FROM pg_catalog.pg_foreign_table AS f
        JOIN pg_catalog.pg_foreign_server AS s ON s.oid = f.ftserver
        WHERE f.ftrelid = c.oid), '')
    || CASE WHEN c.relrowsecurity THEN E'\\nENABLE ROW LEVEL SECURITY' ELSE '' END
    || CASE WHEN c.relforcerowsecurity THEN E'\\nFORCE ROW LEVEL SECURITY' ELSE '' END
    || CASE c.relreplident WHEN 'd' THEN '' WHEN 'f' THEN E'\\nREPLICA IDENTITY FULL'
        WHEN 'n' THEN E'\\nREPLICA IDENTITY NOTHING'
        ELSE E'\\nREPLICA IDENTITY USING INDEX ' || COALESCE((
            SELECT pg_catalog.quote_ident(y.relname) FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS y ON y.oid = i.indexrelid
            WHERE i.indrelid = c.oid AND i.indisreplident), '?') END
    || {_OWNER.format("c.relowner")}
FROM relations AS c WHERE c.relkind IN ('r', 'p', 'f')""",
    # columns
    """
SELECT 'column', c.name || '.' || pg_catalog.quote_ident(a.attname), c.name,
    pg_catalog.format_type(a.atttypid, a.atttypmod)
    || COALESCE((
        SELECT pg_catalog.format(' COLLATE %I.%I', m.nspname, l.collname)
        FROM pg_catalog.pg_collation AS l
        JOIN pg_catalog.pg_namespace AS m ON m.oid = l.collnamespace
        WHERE l.oid = a.attcollation AND a.attcollation <> t.typcollation), '')
    || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
    || CASE a.attidentity WHEN 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
        WHEN 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY' ELSE '' END
    || COALESCE(CASE WHEN a.attgenerated = '' THEN ' DEFAULT ' || d.def
        ELSE ' GENERATED ALWAYS AS (' || d.def || ') STORED' END, '')
    || CASE WHEN a.attstorage <> t.typstorage THEN ' STORAGE ' || CASE a.attstorage
        WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
        ELSE 'EXTENDED' END ELSE '' END
    || CASE a.attcompression WHEN 'p' THEN ' COMPRESSION pglz' WHEN 'l' THEN ' COMPRESSION lz4'
        ELSE '' END
    || COALESCE(' OPTIONS (' || pg_catalog.array_to_string(a.attfdwoptions, ', ') || ')', '')
FROM relations AS c
JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN LATERAL (
    SELECT pg_catalog.pg_get_expr(x.adbin, x.adrelid) AS def
    FROM pg_catalog.pg_attrdef AS x WHERE x.adrelid = c.oid AND x.adnum = a.attnum
) AS d ON true
WHERE c.relkind IN ('r', 'p', 'f')""",
    # constraints and indexes
    """
SELECT 'constraint', c.name || '.' || pg_catalog.quote_ident(k.conname), '',
    pg_catalog.pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_constraint AS k JOIN relations AS c ON c.oid = k.conrelid
WHERE k.contype <> 't'""",
    """
SELECT 'index', c.name, '', pg_catalog.pg_get_indexdef(c.oid)
    || CASE WHEN i.indisclustered THEN E'\\nCLUSTER' ELSE '' END
    || CASE WHEN i.indisvalid THEN '' ELSE E'\\nINVALID' END
FROM relations AS c JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_constraint AS k
    WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x'))""",
    """
SELECT 'statistics', pg_catalog.format('%I.%I', n.nspname, s.stxname), '',
    pg_catalog.pg_get_statisticsobjdef(s.oid)
FROM pg_catalog.pg_statistic_ext AS s JOIN schemas AS n ON n.oid = s.stxnamespace""",
    # views and sequences
    f"""
SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, c.name, '',
    CASE c.relkind WHEN 'v' THEN 'CREATE VIEW ' ELSE 'CREATE MATERIALIZED VIEW ' END || c.name
    || COALESCE(' WITH (' || pg_catalog.array_to_string(c.reloptions, ', ') || ')', '')
    || E' AS\\n' || pg_catalog.pg_get_viewdef(c.oid) || {_OWNER.format("c.relowner")}
FROM relations AS c WHERE c.relkind IN ('v', 'm')""",
    f"""
SELECT 'sequence', c.name, '', pg_catalog.format(
        'CREATE SEQUENCE %s AS %s INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s%s',
        c.name, pg_catalog.format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax,
        s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END)
    || COALESCE((
        SELECT pg_catalog.format(E'\\nOWNED BY %s.%I', o.name, a.attname)
        FROM pg_catalog.pg_depend AS d JOIN relations AS o ON o.oid = d.refobjid
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.oid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.deptype IN ('a', 'i')), '')
    || {_OWNER.format("c.relowner")}
FROM relations AS c JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = c.oid""",
    # functions
    f"""
SELECT CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
    p.name, '', CASE WHEN p.prokind <> 'a' THEN pg_catalog.pg_get_functiondef(p.oid) ELSE (
        SELECT pg_catalog.concat_ws(', ',
            pg_catalog.format('CREATE AGGREGATE %s (SFUNC = %s', p.name, g.aggtransfn),
            'STYPE = ' || pg_catalog.format_type(g.aggtranstype, NULL),
            CASE WHEN g.aggfinalfn <> 0 THEN 'FINALFUNC = ' || g.aggfinalfn::pg_catalog.text END,
            CASE WHEN g.aggcombinefn <> 0
                THEN 'COMBINEFUNC = ' || g.aggcombinefn::pg_catalog.text END,
            CASE WHEN g.aggsortop <> 0
                THEN 'SORTOP = ' || g.aggsortop::pg_catalog.regoperator::pg_catalog.text END,
            'INITCOND = ' || pg_catalog.quote_literal(g.agginitval)) || ')'
        FROM pg_catalog.pg_aggregate AS g WHERE g.aggfnoid = p.oid) END
    || {_OWNER.format("p.proowner")}
FROM routines AS p""",
    # triggers, rules, policies
    """
SELECT 'trigger', c.name || '.' || pg_catalog.quote_ident(t.tgname), '',
    pg_catalog.pg_get_triggerdef(t.oid) || CASE t.tgenabled WHEN 'O' THEN ''
        WHEN 'D' THEN E'\\nDISABLED' WHEN 'R' THEN E'\\nENABLE REPLICA'
        ELSE E'\\nENABLE ALWAYS' END
FROM pg_catalog.pg_trigger AS t JOIN relations AS c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal""",
    f"""
SELECT 'event trigger', pg_catalog.quote_ident(t.evtname), '',
    pg_catalog.format('CREATE EVENT TRIGGER %I ON %s%s EXECUTE FUNCTION %s', t.evtname, t.evtevent,
        COALESCE(' WHEN TAG IN (' || pg_catalog.array_to_string(t.evttags, ', ') || ')', ''),
        t.evtfoid::pg_catalog.regprocedure)
    || CASE t.evtenabled WHEN 'O' THEN '' WHEN 'D' THEN E'\\nDISABLED'
        WHEN 'R' THEN E'\\nENABLE REPLICA' ELSE E'\\nENABLE ALWAYS' END
FROM pg_catalog.pg_event_trigger AS t WHERE {_own("pg_event_trigger", "t.oid")}""",
    """
SELECT 'rule', c.name || '.' || pg_catalog.quote_ident(r.rulename), '',
    pg_catalog.pg_get_ruledef(r.oid)
    || CASE r.ev_enabled WHEN 'O' THEN '' WHEN 'D' THEN E'\\nDISABLED'
        WHEN 'R' THEN E'\\nENABLE REPLICA' ELSE E'\\nENABLE ALWAYS' END
FROM pg_catalog.pg_rewrite AS r JOIN relations AS c ON c.oid = r.ev_class
WHERE r.rulename <> '_RETURN'""",
    """
SELECT 'policy', c.name || '.' || pg_catalog.quote_ident(p.polname), '',
    pg_catalog.format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname, c.name,
        CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
        CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
            WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, (
            SELECT pg_catalog.string_agg(r.role, ', ' ORDER BY r.role) FROM (
                SELECT CASE u.role WHEN 0 THEN 'PUBLIC'
                    ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(u.role)) END AS role
                FROM pg_catalog.unnest(p.polroles) AS u (role)) AS r))
    || COALESCE(' USING (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')', '')
    || COALESCE(' WITH CHECK (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')
FROM pg_catalog.pg_policy AS p JOIN relations AS c ON c.oid = p.polrelid""",
    # publications
    """
SELECT 'publication', pg_catalog.quote_ident(p.pubname), '',
    pg_catalog.format('CREATE PUBLICATION %I FOR %s (%s)', p.pubname,
        CASE WHEN p.puballtables THEN 'ALL TABLES' ELSE 'TABLE ' || COALESCE((
            SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I', t.schemaname, t.tablename),
                ', ' ORDER BY t.schemaname, t.tablename)
            FROM pg_catalog.pg_publication_tables AS t WHERE t.pubname = p.pubname), '') END,
        pg_catalog.concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END,
            CASE WHEN p.pubupdate THEN 'update' END, CASE WHEN p.pubdelete THEN 'delete' END,
            CASE WHEN p.pubtruncate THEN 'truncate' END,
            CASE WHEN p.pubviaroot THEN 'via root' END))
FROM pg_catalog.pg_publication AS p""",
    # grants
    f"""
SELECT 'grants', CASE WHEN c.relkind = 'S' THEN 'sequence ' ELSE 'table ' END || c.name, '',
    {_grants("c.relacl", _ACL_KIND, "c.relowner")}
FROM relations AS c WHERE c.relacl IS NOT NULL""",
    f"""
SELECT 'grants', 'column ' || c.name || '.' || pg_catalog.quote_ident(a.attname), '',
    {_grants("a.attacl", "'c'", "c.relowner")}
FROM relations AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
WHERE a.attacl IS NOT NULL AND NOT a.attisdropped""",
    f"""
SELECT 'grants', 'schema ' || pg_catalog.quote_ident(n.nspname), '',
    {_grants("n.nspacl", "'n'", "n.nspowner")}
FROM schemas AS n WHERE n.nspacl IS NOT NULL""",
    f"""
SELECT 'grants', 'function ' || p.name, '', {_grants("p.proacl", "'f'", "p.proowner")}
FROM routines AS p WHERE p.proacl IS NOT NULL""",
    f"""
SELECT 'grants', 'type ' || t.name, '', {_grants("t.typacl", "'T'", "t.typowner")}
FROM types AS t WHERE t.typacl IS NOT NULL""",
    """
SELECT 'default grants', pg_catalog.format('%s of %s%s', CASE d.defaclobjtype WHEN 'r' THEN 'tables'
        WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions' WHEN 'T' THEN 'types'
        ELSE 'schemas' END,
        pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(d.defaclrole)),
        COALESCE(' in schema ' || pg_catalog.quote_ident(n.nspname), '')), '', COALESCE((
        SELECT pg_catalog.string_agg(i.item, E'\\n' ORDER BY i.item) FROM (
            SELECT u.item::pg_catalog.text COLLATE "C" AS item
            FROM pg_catalog.unnest(d.defaclacl) AS u (item)) AS i), 'none')
FROM pg_catalog.pg_default_acl AS d
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = d.defaclnamespace""",
    # comments: what users have made has OIDs from 16384 on
    """
SELECT 'comment', i.type || ' ' || i.identity, '', d.description
FROM pg_catalog.pg_description AS d
CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classoid, d.objoid, d.objsubid) AS i
WHERE d.objoid >= 16384 AND i.identity IS NOT NULL AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend AS e
    WHERE e.deptype = 'e' AND e.classid = d.classoid AND e.objid = d.objoid)""",
]

OBJECTS = Statement(
    f"WITH {_SCHEMAS},{_RELATIONS},{_ROUTINES},{_TYPES}" + "\nUNION ALL".join(_PARTS)
)
