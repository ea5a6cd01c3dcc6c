"""Which tables of a database are compared, by name: asked before anything else is known.

So that this can be sent to a database while the modules that go on from there are imported,
nothing else is here.
"""

from __future__ import annotations

from agent_branch.sqltext import Statement

# Of tables with rows of their own: ordinary ones and leaves of partitioned ones.
FROM_TABLES = """
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't'
        AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"""

# Catalogs of large objects that the role may read.
READABLE = (
    "SELECT 'pg_catalog', c.relname FROM pg_catalog.pg_class AS c"
    " WHERE c.oid IN ('pg_catalog.pg_largeobject'::pg_catalog.regclass,"
    " 'pg_catalog.pg_largeobject_metadata'::pg_catalog.regclass)"
    " AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"
)

# Schema and name of what is held, so that its files stay what they are.
HELD = Statement(f"SELECT n.nspname, c.relname{FROM_TABLES} UNION ALL {READABLE} ORDER BY 1, 2")
