"""Shapes of tables, from the catalogs of the database that has them.

``TABLES`` is one query; ``table_from`` turns a row of its answer into a ``TableShape``.
"""

from __future__ import annotations

from agent_branch.hints import Any
from agent_branch.jsontext import parsed
from agent_branch.records import dataclass
from agent_branch.sqltext import Row, Statement
from agent_branch.tablenames import FROM_TABLES
from agent_branch.tableshape import Column, ForeignKey, TableShape, Unique

_STANDARD = frozenset(
    [
        "bit",
        "boolean",
        "character",
        "double",
        "real",
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "interval",
        "time",
        "timestamp",
    ]
)

# Types whose values are compared by their own equality: those whose parts all have one.
# A leaf is what a type is made of in the end: a base type, enum or range.  Types that stand for
# objects of the catalogs (regclass...) are compared by name: their numbers differ between
# databases.
_TYPES = """
used AS (
    SELECT DISTINCT a.atttypid AS root FROM tables AS t
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped
),
parts (root, part) AS (
    SELECT u.root, u.root FROM used AS u
    UNION
    SELECT p.root, x.part FROM parts AS p
    JOIN pg_catalog.pg_type AS y ON y.oid = p.part
    CROSS JOIN LATERAL (
        SELECT y.typbasetype AS part WHERE y.typtype = 'd'
        UNION ALL
        SELECT y.typelem WHERE y.typtype = 'b' AND y.typcategory = 'A' AND y.typelem <> 0
        UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute AS a
        WHERE y.typtype = 'c' AND a.attrelid = y.typrelid
            AND a.attnum > 0 AND NOT a.attisdropped
    ) AS x
),
equalities AS MATERIALIZED (
    SELECT c.oid, c.opcintype AS type, m.amname, i.typispreferred,
        pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS operator
    FROM pg_catalog.pg_opclass AS c
    JOIN pg_catalog.pg_am AS m ON m.oid = c.opcmethod AND m.amname IN ('btree', 'hash')
    JOIN pg_catalog.pg_type AS i ON i.oid = c.opcintype
    JOIN pg_catalog.pg_amop AS f ON f.amopfamily = c.opcfamily
        AND f.amoplefttype = c.opcintype AND f.amoprighttype = c.opcintype
        AND f.amopstrategy = CASE m.amname WHEN 'btree' THEN 3 ELSE 1 END
    JOIN pg_catalog.pg_operator AS o ON o.oid = f.amopopr
    JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE c.opcdefault
),
alike AS MATERIALIZED (
    SELECT k.castsource, k.casttarget FROM pg_catalog.pg_cast AS k
    WHERE k.castmethod = 'b' AND k.castcontext = 'i'
),
leaves AS (
    SELECT p.root, p.part, y.typtype, (
        SELECT e.operator FROM equalities AS e
        WHERE e.type = y.oid OR e.type IN (
            SELECT k.casttarget FROM alike AS k WHERE k.castsource = y.oid)
        ORDER BY e.type = y.oid DESC, e.typispreferred DESC, e.amname, e.oid LIMIT 1
    ) AS operator
    FROM parts AS p JOIN pg_catalog.pg_type AS y ON y.oid = p.part
    WHERE y.typtype IN ('e', 'r', 'm')
        OR y.typtype = 'b' AND NOT (y.typcategory = 'A' AND y.typelem <> 0)
),
comparable AS (
    SELECT l.root, CASE
        WHEN NOT pg_catalog.bool_and(
            l.typtype IN ('e', 'r', 'm')
            OR l.operator IS NOT NULL AND l.part::pg_catalog.regtype::pg_catalog.text
                NOT LIKE 'reg%') THEN NULL
        WHEN pg_catalog.bool_or(l.typtype = 'b' AND NOT EXISTS (
            SELECT FROM parts AS p JOIN pg_catalog.pg_type AS y ON y.oid = p.part
            WHERE p.root = l.root AND (y.typtype = 'c' OR y.typcategory = 'A' AND y.typelem <> 0)
        )) THEN pg_catalog.min(l.operator)
        ELSE 'OPERATOR(pg_catalog.=)' END AS operator
    FROM leaves AS l GROUP BY l.root
),
definitions AS MATERIALIZED (
    SELECT p.root, pg_catalog.string_agg((
        SELECT pg_catalog.array_agg(e.enumlabel ORDER BY e.oid)::pg_catalog.text
        FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = y.oid
    ), ' ' ORDER BY p.part::pg_catalog.regtype::pg_catalog.text COLLATE "C") AS labels,
    pg_catalog.md5(pg_catalog.string_agg(
        pg_catalog.format_type(p.part, NULL) || ' ' || CASE y.typtype
        WHEN 'e' THEN (
            SELECT pg_catalog.array_agg(e.enumlabel ORDER BY e.enumlabel)::pg_catalog.text
            FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = y.oid)
        WHEN 'c' THEN (
            SELECT pg_catalog.array_agg(pg_catalog.quote_ident(a.attname) || ' '
                || pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum
            )::pg_catalog.text
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
        WHEN 'd' THEN pg_catalog.format_type(y.typbasetype, y.typtypmod) || y.typnotnull || (
            SELECT COALESCE(pg_catalog.array_agg(d.def ORDER BY d.def)::pg_catalog.text, '')
            FROM (
                SELECT pg_catalog.pg_get_constraintdef(k.oid) AS def
                FROM pg_catalog.pg_constraint AS k WHERE k.contypid = y.oid) AS d)
        WHEN 'r' THEN (
            SELECT pg_catalog.format_type(g.rngsubtype, NULL)
            FROM pg_catalog.pg_range AS g WHERE g.rngtypid = y.oid)
        END, '; ' ORDER BY p.part::pg_catalog.regtype::pg_catalog.text COLLATE "C")) AS definition
    FROM parts AS p JOIN pg_catalog.pg_type AS y ON y.oid = p.part
    WHERE y.typtype IN ('e', 'c', 'd', 'r') GROUP BY p.root
)"""

# Types of which two values are the same if and only if their texts are, under sqltext.SETTINGS.
# Not so: numeric with any number of digits, float (0, -0), interval (1 day, 24 hours), jsonb,
# what users define.
EXACT = """
CASE
    WHEN y.typtype = 'e' THEN true
    WHEN y.oid >= 10000 THEN false
    WHEN y.typname = ANY ('{text, varchar, bpchar}'::pg_catalog.name[]) THEN
        (y.typname <> 'bpchar' OR a.atttypmod >= 0) AND (
            SELECT o.collisdeterministic FROM pg_catalog.pg_collation AS o
            WHERE o.oid = a.attcollation)
    WHEN y.typname = 'numeric' THEN a.atttypmod >= 0
    ELSE y.typname = ANY (
        '{bool, int2, int4, int8, oid, bytea, uuid, date, time, timestamp, timestamptz, char, name}'
        ::pg_catalog.name[]) END"""


def what_bytes_say(operator: str) -> str:
    """What bytes say of values, if their texts tell of them; of a type with that equality."""
    return f"""
CASE
    WHEN y.typtype = 'e' THEN 'b'
    WHEN y.oid >= 10000 OR {operator} IS NULL THEN 'u'
    WHEN y.typname = ANY ('{{name, numeric}}'::pg_catalog.name[]) THEN 'b'
    ELSE 'p' END"""


# What rows have that are older than the column ``a``; null: they have null, or there are none.
# The array of one element has the brackets of its own type, also if that is one of arrays.
MISSING = """
CASE WHEN a.atthasmissing THEN (a.attmissingval::pg_catalog.text::pg_catalog.text[])[1] END"""

_COLUMNS = f"""
SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
    'name', a.attname,
    'number', a.attnum,
    'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
    'equals', c.operator,
    'definition', COALESCE(f.definition, ''),
    'exact', {EXACT},
    'bytes', {what_bytes_say("c.operator")},
    'stored', a.attnum::pg_catalog.text
        || CASE WHEN a.atthasmissing THEN ' ' || a.attmissingval::pg_catalog.text ELSE '' END
        || COALESCE(' ' || f.labels, ''),
    'missing', {MISSING},
    'not_null', a.attnotnull,
    'generated', a.attgenerated <> '',
    'identity', a.attidentity) ORDER BY a.attnum)
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
LEFT JOIN comparable AS c ON c.root = a.atttypid
LEFT JOIN definitions AS f ON f.root = a.atttypid
WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped"""

# Columns that are computed from others of their rows.
_COMPUTED = """
computed AS (
    SELECT a.attrelid, a.attnum, e.oid
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_attrdef AS e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
    WHERE a.attgenerated <> ''
)"""

# Every index that keeps rows apart.  An index of expressions, of some rows, or of columns that
# are computed depends on more columns than it stores.
_INDEXES = """
SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
    'name', COALESCE(k.conname, n.relname),
    'key', CASE
        WHEN i.indisprimary THEN 'primary'
        WHEN i.indisreplident AND t.relreplident = 'i' THEN 'replica'
        ELSE '' END,
    'columns', COALESCE((
        SELECT pg_catalog.jsonb_agg(x.attnum ORDER BY x.place) FROM (
            SELECT u.attnum, pg_catalog.min(u.place) AS place FROM (
                SELECT s.attnum::pg_catalog.int4, s.place
                FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[])
                    WITH ORDINALITY AS s (attnum, place)
                WHERE s.attnum > 0 AND s.place <= i.indnkeyatts
                UNION ALL
                SELECT d.refobjsubid, 10000 FROM pg_catalog.pg_depend AS d
                WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND d.objid = i.indexrelid AND d.refobjid = t.oid AND d.refobjsubid > 0
                    AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
                UNION ALL
                SELECT d.refobjsubid, 10000 FROM computed AS c
                JOIN pg_catalog.pg_depend AS d ON d.refobjid = t.oid
                    AND (d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                            AND d.objid = c.oid
                        OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                            AND d.objid = t.oid AND d.objsubid = c.attnum)
                WHERE c.attrelid = t.oid AND c.attnum = ANY (i.indkey::pg_catalog.int2[])
                    AND NOT i.indisprimary AND NOT i.indisreplident
                    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND d.refobjsubid > 0
            ) AS u GROUP BY u.attnum
        ) AS x), '[]'),
    'exact', i.indexprs IS NULL AND i.indpred IS NULL AND NOT i.indisexclusion
        AND NOT EXISTS (SELECT FROM computed AS c WHERE c.attrelid = t.oid
            AND NOT i.indisprimary AND NOT i.indisreplident
            AND c.attnum = ANY (i.indkey::pg_catalog.int2[])),
    'deferrable', COALESCE(k.condeferrable, false),
    'nulls_distinct', NOT i.indnullsnotdistinct) ORDER BY n.relname)
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS n ON n.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_constraint AS k
    ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = t.oid AND (i.indisunique OR i.indisexclusion) AND i.indislive"""

# A key that points to a partitioned table points to its leaves.
_FOREIGN_KEYS = """
SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
    'name', k.conname,
    'columns', k.conkey,
    'schema', n.nspname,
    'table', r.relname,
    'target', (
        SELECT pg_catalog.jsonb_agg(a.attname ORDER BY s.place)
        FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS s (attnum, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = s.attnum),
    'deferrable', k.condeferrable,
    'match_full', k.confmatchtype = 'f',
    'on_delete', k.confdeltype) ORDER BY k.conname, n.nspname, r.relname)
FROM pg_catalog.pg_constraint AS k
CROSS JOIN LATERAL (
    SELECT k.confrelid AS oid
    UNION
    SELECT p.relid FROM pg_catalog.pg_partition_tree(k.confrelid) AS p
) AS y
JOIN pg_catalog.pg_class AS r ON r.oid = y.oid AND r.relkind = 'r'
JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conrelid = t.oid"""


def tables_statement(which: str = "") -> Statement:
    """As ``TABLES``; ``which``: a further condition for the table ``c``."""
    return Statement(f"""
WITH RECURSIVE tables AS (
    SELECT c.oid, c.relname, n.nspname, c.relreplident, c.relfilenode, c.reltablespace,
        c.relpersistence,
        CASE WHEN c.relpages > 0 AND c.reltuples >= 0 THEN
            c.reltuples::pg_catalog.float8 OPERATOR(pg_catalog./) c.relpages END AS density
    {FROM_TABLES}{which}
),{_COMPUTED},{_TYPES}
SELECT pg_catalog.jsonb_build_object(
    'oid', t.oid,
    'schema', t.nspname,
    'name', t.relname,
    'tablespace', t.reltablespace,
    'file', t.relfilenode,
    'file_now', pg_catalog.pg_relation_filenode(t.oid),
    'logged', t.relpersistence = 'p',
    'density', t.density,
    'layout', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(a.attlen, a.attalign)
            ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = t.oid AND a.attnum > 0),
    'columns', ({_COLUMNS}),
    'indexes', ({_INDEXES}),
    'foreign_keys', ({_FOREIGN_KEYS}))
FROM tables AS t ORDER BY t.nspname, t.relname""")


# Tables with rows of their own, by name: ordinary ones and leaves of partitioned ones.
# One row for each, one column of jsonb.  To be run under sqltext.SETTINGS: their search_path has
# every other type written with its schema, and compiling the query would take seconds.
TABLES = tables_statement()


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one database.

    ``file``: number of its file, in ``tablespace`` (0: the database's default), as the
    transaction sees it; ``file_now``: as it is.  ``density``: rows in a page, about, as of the
    last VACUUM or ANALYZE; None: not known.  ``layout``: (length, alignment) of each column by
    its number, dropped ones too, as in pg_attribute.  ``logged``: if not, snapshots have none.
    """

    shape: TableShape
    oid: int
    tablespace: int
    file: int
    file_now: int
    density: float | None = None
    layout: tuple[tuple[int, str], ...] = ()
    logged: bool = True


def table_from(row: Row) -> Table:
    """A table from a row that ``TABLES`` answered."""
    assert row[0] is not None
    return table_of(parsed(row[0]))


def table_of(found: dict[str, Any]) -> Table:
    """A table from what stands in such a row."""
    columns = found["columns"] or []
    place = {column["number"]: i for i, column in enumerate(columns)}
    indexes = [
        {**index, "columns": tuple(place[number] for number in index["columns"])}
        for index in found["indexes"] or []
    ]
    key = _key(indexes)
    apart = tuple(
        Unique(
            index["name"],
            index["columns"],
            exact=index["exact"],
            deferrable=index["deferrable"],
            nulls_distinct=index["nulls_distinct"],
        )
        for index in indexes
        if index["columns"] != key or not index["exact"]
    )
    shape = TableShape(
        found["schema"],
        found["name"],
        tuple(
            Column(
                column["name"],
                type_text(column["type"]),
                column["equals"],
                not_null=column["not_null"],
                generated=column["generated"],
                identity=column["identity"],
                definition=column["definition"],
                exact=column["exact"],
                stored=column["stored"],
                missing=column["missing"],
                number=column["number"],
                bytes="b" if column["bytes"] == "p" and not column["exact"] else column["bytes"],
            )
            for column in columns
        ),
        key,
        _other_keys(columns, apart),
        apart,
        tuple(_foreign_key(key, place) for key in found["foreign_keys"] or []),
    )
    oid, tablespace, file, file_now = (
        int(found[name]) for name in ("oid", "tablespace", "file", "file_now")
    )
    layout = tuple((length, align) for length, align in found["layout"] or [])
    return Table(
        shape, oid, tablespace, file, file_now, found["density"], layout, logged=found["logged"]
    )


def type_text(name: str) -> str:
    """A type as ``format_type`` wrote it, so that no other type can be meant under any path.

    The server leaves out the schema of what is in pg_catalog; names of the SQL standard are
    words of the grammar and take none.
    """
    word = name.partition("(")[0].partition("[")[0].partition(" ")[0]
    return name if "." in name or word in _STANDARD else f"pg_catalog.{name}"


def _key(indexes: list[dict[str, Any]]) -> tuple[int, ...]:
    for kind in ("primary", "replica"):
        for index in indexes:
            if index["key"] == kind:
                columns: tuple[int, ...] = index["columns"]
                return columns
    return ()


def _other_keys(
    columns: list[dict[str, Any]], uniques: tuple[Unique, ...]
) -> tuple[tuple[int, ...], ...]:
    return tuple(
        unique.columns
        for unique in uniques
        if unique.exact and all(columns[i]["not_null"] for i in unique.columns)
    )


def _foreign_key(found: dict[str, Any], place: dict[int, int]) -> ForeignKey:
    return ForeignKey(
        found["name"],
        tuple(place[number] for number in found["columns"]),
        (found["schema"], found["table"]),
        tuple(found["target"]),
        deferrable=found["deferrable"],
        match_full=found["match_full"],
        on_delete=found["on_delete"],
    )
