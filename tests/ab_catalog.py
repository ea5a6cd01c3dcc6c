"""What an extension has put into a database, as text: equal if two ways lead to the same.

``contents`` describes each member (pg_depend, deptype e) and everything that hangs on it:
definitions, columns, defaults, constraints, indexes, triggers, privileges, initial privileges,
comments, and what pg_dump is to keep.  OIDs, the gaps that dropped columns leave, and the marks
of time that newer minor releases put beside columns (pg_attver) are not in it.
"""

from __future__ import annotations

from ab_checks import Conn

Contents = dict[tuple[str, str], str]  # (name, aspect) -> text

# Kinds of members whose definitions the queries know; another kind needs a query first.
KNOWN = {"pg_class", "pg_language", "pg_namespace", "pg_proc", "pg_type"}

MEMBERS = """
    members AS (
        SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS name
        FROM pg_depend AS d
        INNER JOIN pg_extension AS e ON e.oid = d.refobjid AND d.deptype = 'e'
        WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'agent_branch'
    ),
    relations AS (
        SELECT c.*, m.name FROM members AS m
        INNER JOIN pg_class AS c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
    )
"""

ACL = """
    (SELECT coalesce(string_agg(concat_ws(' ', a.grantor::regrole, a.grantee::regrole,
        a.privilege_type, a.is_grantable), ', ' ORDER BY a.grantor::regrole::text,
        a.grantee::regrole::text, a.privilege_type), 'none') FROM aclexplode({}) AS a)
"""

# Each: name, aspect, text.
QUERIES = {
    "members": "SELECT m.name, 'is there', '' FROM members AS m",
    "comments": """
        SELECT m.name || coalesce(' column ' || a.attname, ''), 'comment', c.description
        FROM members AS m
        INNER JOIN pg_description AS c ON c.objoid = m.objid AND c.classoid = m.classid
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.objoid AND a.attnum = c.objsubid
            AND c.objsubid > 0
    """,
    "owners": """
        SELECT m.name, 'owner', s.refobjid::regrole::text FROM members AS m
        INNER JOIN pg_shdepend AS s ON s.objid = m.objid AND s.classid = m.classid
            AND s.deptype = 'o'
    """,
    "functions": f"""
        SELECT m.name, 'definition', pg_get_functiondef(p.oid) || {ACL.format("p.proacl")}
        FROM members AS m
        INNER JOIN pg_proc AS p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
    """,
    "schemas": f"""
        SELECT m.name, 'privileges', {ACL.format("n.nspacl")} FROM members AS m
        INNER JOIN pg_namespace AS n ON n.oid = m.objid AND m.classid = 'pg_namespace'::regclass
    """,
    "languages": f"""
        SELECT m.name, 'language', concat_ws(' ', l.lanpltrusted, l.lanplcallfoid::regprocedure,
            l.laninline::regprocedure, l.lanvalidator::regprocedure, {ACL.format("l.lanacl")})
        FROM members AS m
        INNER JOIN pg_language AS l ON l.oid = m.objid AND m.classid = 'pg_language'::regclass
    """,
    "relations": f"""
        SELECT r.name, 'relation', concat_ws(' ', r.relkind, r.relpersistence, r.reloptions,
            r.relrowsecurity, r.relforcerowsecurity, r.relreplident, {ACL.format("r.relacl")},
            CASE WHEN r.relkind IN ('v', 'm') THEN pg_get_viewdef(r.oid) END)
        FROM relations AS r
    """,
    "columns": f"""
        SELECT r.name || ' column ' || a.attname, 'column', concat_ws(' ',
            row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum),
            format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
            a.attcollation::regcollation, a.attstorage, a.attcompression,
            (SELECT array_agg(o) FROM unnest(a.attoptions) AS o
                WHERE NOT starts_with(o, 'pg_attver')),
            pg_get_expr(f.adbin, f.adrelid), {ACL.format("a.attacl")})
        FROM relations AS r
        INNER JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
        WHERE r.relkind <> 'i'
    """,
    "constraints": """
        SELECT r.name || ' constraint ' || c.conname, 'constraint', pg_get_constraintdef(c.oid)
        FROM relations AS r INNER JOIN pg_constraint AS c ON c.conrelid = r.oid
    """,
    "indexes": """
        SELECT r.name || ' index ' || i.indexrelid::regclass, 'index', pg_get_indexdef(i.indexrelid)
        FROM relations AS r INNER JOIN pg_index AS i ON i.indrelid = r.oid
    """,
    "triggers": """
        SELECT r.name || ' trigger ' || t.tgname, 'trigger',
            concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
        FROM relations AS r INNER JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    """,
    "policies": """
        SELECT r.name || ' policy ' || p.polname, 'policy', concat_ws(' ', p.polcmd, p.polroles,
            pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
        FROM relations AS r INNER JOIN pg_policy AS p ON p.polrelid = r.oid
    """,
    "sequences": """
        SELECT r.name, 'sequence', concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement,
            s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
        FROM relations AS r INNER JOIN pg_sequence AS s ON s.seqrelid = r.oid
    """,
    "initial privileges": f"""
        SELECT m.name || coalesce(' column ' || a.attname, ''), 'initial privileges',
            {ACL.format("i.initprivs")}
        FROM members AS m
        INNER JOIN pg_init_privs AS i ON i.objoid = m.objid AND i.classoid = m.classid
        LEFT JOIN pg_attribute AS a ON a.attrelid = i.objoid AND a.attnum = i.objsubid
            AND i.objsubid > 0
    """,
    "dumped": """
        SELECT t.oid::regclass::text, 'dumped', t.condition
        FROM pg_extension AS e, unnest(e.extconfig, e.extcondition) AS t (oid, condition)
        WHERE e.extname = 'agent_branch'
    """,
    "extension": """
        SELECT e.extname::text, 'extension', concat_ws(' ', e.extowner::regrole,
            e.extnamespace::regnamespace, e.extrelocatable)
        FROM pg_extension AS e WHERE e.extname = 'agent_branch'
    """,
}


def contents(conn: Conn) -> Contents:
    """All that the extension is made of in this session's database."""
    kinds = {
        kind
        for (kind,) in conn.execute(
            f"WITH {MEMBERS} SELECT DISTINCT classid::regclass::text FROM members"
        )
    }
    assert kinds <= KNOWN, f"no query describes {kinds - KNOWN}: add one to ab_catalog.py"
    found: Contents = {}
    for query in QUERIES.values():
        for name, aspect, text in conn.execute(f"WITH {MEMBERS} {query}"):
            assert (name, aspect) not in found
            found[name, aspect] = text
    return found


def differences(one: Contents, other: Contents) -> list[str]:
    """One line for each aspect of an object that is not the same in both."""
    return [
        f"{aspect} of {name}: {one.get((name, aspect))!r}, not {other.get((name, aspect))!r}"
        for name, aspect in sorted(one.keys() | other.keys())
        if one.get((name, aspect)) != other.get((name, aspect))
    ]
