"""What in a database could act on the world outside it: queries, and what their rows mean.

*Active* is what acts by itself, though nobody uses the database: a subscription that is applied,
a scheduled job that is run there, a worker of the server, a replication slot that is read.
Everything else acts when it is used: triggers and event triggers fire at what somebody does,
foreign tables answer somebody's query, autovacuum computes an index's expressions after somebody's
changes.

Where nothing else is said, rows are (kind, object, detail, active).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Extensions of which functions reach other servers; their SQL does not say so by itself.
REACHING_EXTENSIONS = (
    "adminpack",
    "aws_lambda",
    "aws_s3",
    "dblink",
    "http",
    "pg_background",
    "pg_net",
    "plproxy",
    "plsh",
)

# Sessions that are there because somebody uses the database, or the server keeps it.
ORDINARY_PROCESSES = (
    "agent_branch keeper",
    "agent_branch remote",
    "agent_branch sweeper",
    "autovacuum worker",
    "client backend",
    "parallel worker",
    "walsender",
)

# Settings that have code loaded at each connection.
LOADING_SETTINGS = ("local_preload_libraries", "session_preload_libraries")


@dataclass(frozen=True, order=True)
class Effect:
    """One thing that could act; ``active`` None: the caller may not know."""

    kind: str
    object: str
    detail: str
    active: bool | None


def _literals(words: Iterable[str]) -> str:
    return ", ".join("'" + word.replace("'", "''") + "'" for word in words)


# Run in the database that is asked about, with search_path = pg_catalog, pg_temp.
CATALOGS = f"""
WITH functions AS (
    SELECT
        p.oid, p.oid::regprocedure AS name, l.lanname AS language,
        NOT l.lanpltrusted AND l.lanname <> 'internal' AS unconfined,
        EXISTS (
            SELECT FROM pg_depend AS d
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                AND d.deptype = 'e'
        ) AS of_extension
    FROM pg_proc AS p
    INNER JOIN pg_language AS l ON p.prolang = l.oid
)

SELECT
    'subscription', s.subname::text,
    CASE WHEN s.subenabled THEN 'enabled' ELSE 'disabled' END, s.subenabled
FROM pg_subscription AS s
INNER JOIN pg_database AS b ON s.subdbid = b.oid
WHERE b.datname = current_database()
UNION ALL
SELECT
    'subscription', coalesce(s.subname::text, 'OID ' || r.srsubid),
    format('of %s, not of this database; tables of it here: %s',
        coalesce('database ' || quote_ident(b.datname), 'none any more'), count(*))
    || CASE WHEN bool_and(r.srsubstate = 'r') THEN ''
        ELSE '; to drop them DELETE FROM pg_subscription_rel first' END, false
FROM pg_subscription_rel AS r
LEFT JOIN pg_subscription AS s ON r.srsubid = s.oid
LEFT JOIN pg_database AS b ON s.subdbid = b.oid
WHERE b.datname IS DISTINCT FROM current_database()
GROUP BY r.srsubid, s.subname, b.datname
UNION ALL
SELECT 'replication slot', r.slot_name::text, r.plugin::text, r.active
FROM pg_replication_slots AS r
WHERE r.database = current_database()
UNION ALL
SELECT 'worker', a.backend_type, 'process ' || a.pid, true
FROM pg_stat_activity AS a
WHERE a.datname = current_database()
    AND a.backend_type NOT IN ({_literals(ORDINARY_PROCESSES)})
UNION ALL
SELECT
    'publication', p.pubname::text, 'sends nothing without a replication slot', false
FROM pg_publication AS p
UNION ALL
SELECT
    'event trigger', e.evtname::text,
    format('%s%s: %s, language %s', e.evtevent,
        CASE e.evtenabled WHEN 'D' THEN ', disabled' ELSE '' END, f.name, f.language), false
FROM pg_event_trigger AS e
INNER JOIN functions AS f ON e.evtfoid = f.oid
UNION ALL
SELECT
    'trigger', format('%I on %s', t.tgname, t.tgrelid::regclass),
    format('%s%s, language %s',
        CASE t.tgenabled WHEN 'D' THEN 'disabled: ' ELSE '' END, f.name, f.language), false
FROM pg_trigger AS t
INNER JOIN functions AS f ON t.tgfoid = f.oid
WHERE f.unconfined AND NOT t.tgisinternal AND t.tgparentid = 0
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = t.tgrelid
            AND d.deptype = 'e'
    )
UNION ALL
SELECT
    'function', f.name::text, 'language ' || f.language, false
FROM functions AS f
WHERE f.unconfined AND NOT f.of_extension AND f.oid >= 16384
UNION ALL
SELECT DISTINCT
    'expression',
    pg_describe_object(d.classid, d.objid, 0),
    format('calls %s, language %s; computed at changes, and by autovacuum after them', f.name,
        f.language), false
FROM pg_depend AS d
INNER JOIN functions AS f ON d.refobjid = f.oid
LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
WHERE d.refclassid = 'pg_proc'::regclass
    AND (c.relkind IN ('i', 'I') OR d.classid = 'pg_statistic_ext'::regclass)
    AND f.unconfined AND f.language <> 'c'
UNION ALL
SELECT
    'foreign server', s.srvname::text,
    format('wrapper %s, foreign tables: %s', w.fdwname,
        (SELECT count(*) FROM pg_foreign_table AS t WHERE t.ftserver = s.oid)), false
FROM pg_foreign_server AS s
INNER JOIN pg_foreign_data_wrapper AS w ON s.srvfdw = w.oid
UNION ALL
SELECT
    'user mapping', format('%I on server %I', u.usename, u.srvname),
    'credentials on another server', false
FROM pg_user_mappings AS u
UNION ALL
SELECT
    'extension', e.extname::text, 'has functions that reach other servers or run programs', false
FROM pg_extension AS e
WHERE e.extname IN ({_literals(REACHING_EXTENSIONS)})
UNION ALL
SELECT
    'setting', split_part(c.setting, '=', 1),
    format('%s%s; loaded at each connection',
        substr(c.setting, strpos(c.setting, '=') + 1),
        CASE WHEN s.setrole <> 0 THEN ' for role ' || pg_get_userbyid(s.setrole) ELSE '' END), false
FROM pg_db_role_setting AS s
INNER JOIN pg_database AS b ON s.setdatabase = b.oid
CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
WHERE b.datname = current_database()
    AND split_part(c.setting, '=', 1) IN ({_literals(LOADING_SETTINGS)})
"""

# One row: is there a table of pg_cron's jobs, and may the role read it?  What else has the name may
# be anybody's, also a view, which calls functions with the rights of who looks.
CRON_TABLE = """
SELECT
    c.oid IS NOT NULL,
    has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM (VALUES (1)) AS v (x)
LEFT JOIN pg_namespace AS n ON n.nspname = 'cron'
LEFT JOIN pg_class AS c ON n.oid = c.relnamespace AND c.relname = 'job' AND c.relkind = 'r'
    AND EXISTS (
        SELECT FROM pg_depend AS d
        INNER JOIN pg_extension AS e ON d.refobjid = e.oid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
            AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'pg_cron'
    )
"""

# (id, name, schedule, database, active)
CRON_JOBS = "SELECT j.jobid, j.jobname, j.schedule, j.database, j.active FROM cron.job AS j"


def effects(rows: Iterable[Sequence[str | None]]) -> list[Effect]:
    """What the rows of CATALOGS say."""
    return [
        Effect(kind or "", name or "", detail or "", None if active is None else active == "t")
        for kind, name, detail, active in rows
    ]


def jobs(
    rows: Iterable[Sequence[str | None]], *, asked: str, stored_in: str, cron_database: str | None
) -> list[Effect]:
    """Which jobs of a table of pg_cron's concern the database ``asked``.

    pg_cron runs those in the table of ``cron_database`` (None: it is not loaded), each in
    the database that its row names.  A copy of the table in another database is not read.
    """
    found = []
    for number, name, schedule, database, active in rows:
        label = f"{number} {name}" if name else f"{number}"
        if stored_in == cron_database:
            if database == asked:
                state = "" if active == "t" else ", switched off"
                found.append(Effect("cron job", label, f"{schedule}{state}", active == "t"))
        elif stored_in == asked:
            why = (
                f"pg_cron runs those in {cron_database}"
                if cron_database
                else "pg_cron is not loaded"
            )
            found.append(Effect("cron job", label, f"{schedule}; a copy: {why}", False))
    return found


def unreadable_jobs(stored_in: str | None) -> Effect:
    """There may be jobs: those in a database (None: nor which that is) may not be read."""
    where = f"in database {stored_in}" if stored_in else "of pg_cron"
    return Effect("cron job", "?", f"the jobs {where} may not be read", None)
