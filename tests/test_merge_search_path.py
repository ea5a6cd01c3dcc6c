"""A merge in databases whose settings put a schema first that has all names of the server's own.

Whoever owns a database can do that, and a merge runs with the rights of the role that calls.
"""

from __future__ import annotations

import psycopg
import pytest
from ab_cluster import Cluster

# Functions, operators, types and tables by the names of those in pg_catalog: calling one fails.
EVIL = r"""
CREATE SCHEMA evil;
DO $do$
DECLARE r record;
BEGIN
FOR r IN
    SELECT proname, pg_get_function_identity_arguments(oid) AS taken,
        pg_get_function_result(oid) AS given
    FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset
        AND proargmodes IS NULL AND NOT EXISTS (SELECT FROM pg_type AS y
            WHERE y.typtype = 'p' AND y.oid = ANY (proargtypes::oid[] || prorettype))
LOOP
    EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS'
        ' $f$BEGIN RAISE ''function %s of another schema''; END$f$',
        r.proname, r.taken, r.given, r.proname);
END LOOP;
FOR r IN
    SELECT oid, oprname, oprleft::regtype AS one, oprright::regtype AS other,
        oprresult::regtype AS given
    FROM pg_operator
    WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprleft <> 0
        AND NOT EXISTS (SELECT FROM pg_type AS y
            WHERE y.typtype = 'p' AND y.oid IN (oprleft, oprright, oprresult))
LOOP
    EXECUTE format('CREATE FUNCTION evil.op%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS'
        ' $f$BEGIN RAISE ''operator %%s of another schema'', %L; END$f$',
        r.oid, r.one, r.other, r.given, r.oprname);
    EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.op%s)',
        r.oprname, r.one, r.other, r.oid);
END LOOP;
FOR r IN
    SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace
        AND typtype = 'b' AND typcategory <> 'A'
LOOP
    EXECUTE format('CREATE TYPE evil.%I AS (x int)', r.typname);
END LOOP;
FOR r IN
    SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
        AND relkind IN ('r', 'v') AND relname NOT IN (SELECT typname FROM pg_type
            WHERE typnamespace = 'evil'::regnamespace)
LOOP
    EXECUTE format('CREATE TABLE evil.%I (x pg_catalog.int4)', r.relname);
END LOOP;
END $do$;
"""

TABLES = """
CREATE TABLE t (id serial PRIMARY KEY, u int UNIQUE, v text, n numeric, j jsonb);
INSERT INTO t (u, v, n, j) SELECT g, g, g, '{}' FROM generate_series(1, 300) AS g;
CREATE TABLE c (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE);
INSERT INTO c SELECT g, g FROM generate_series(1, 20) AS g;
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog
    AS 'BEGIN RETURN COALESCE(new, old); END';
CREATE TRIGGER x BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION f();
"""
OURS = """
UPDATE t SET v = 'ours' WHERE id % 20 = 0;
INSERT INTO c VALUES (100, 7);
"""
THEIRS = """
UPDATE t SET n = -1 WHERE id % 10 = 0;
UPDATE t SET v = 'theirs' WHERE id = 40;
INSERT INTO t (v) VALUES ('new');
DELETE FROM t WHERE id = 7;
"""


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Cluster:
    cluster.sql("CREATE DATABASE evil")
    cluster.psql(EVIL, "evil")
    return cluster


def both(server: Cluster, name: str, tables: str = TABLES) -> tuple[str, str]:
    """A database and its branch, ours and theirs, in which the settings are not yet changed."""
    server.sql(f"CREATE DATABASE {name} TEMPLATE evil")
    server.psql(tables, name)
    server.sql("SELECT branch.create(%s, %s)", (f"{name}_b", name))
    return f"{name}_b", name


def turn(server: Cluster, databases: tuple[str, str], *, evil: bool) -> None:
    for database in databases:
        how = "SET search_path = evil, pg_catalog, public" if evil else "RESET search_path"
        server.sql(f"ALTER DATABASE {database} {how}")


@pytest.mark.parametrize("options", ["", ", fire_triggers => false", ", tables => '{public.t}'"])
def test_nothing_of_another_schema_is_called(server: Cluster, options: str) -> None:
    name = {"f": "no_triggers", "t": "listed"}.get(options[2:3], "plain")
    databases = source, target = both(server, name)
    server.psql(THEIRS, source)
    server.psql(OURS, target)
    before = server.sql("SELECT t::text FROM t ORDER BY id", dbname=target)
    turn(server, databases, evil=True)
    server.sql("SELECT * FROM branch.diff_summary(%s)", (source,))
    server.sql("SELECT * FROM branch.preview_merge(%s)", (source,))
    ((merge, conflicts),) = server.sql(
        f"SELECT merge_id, conflicts FROM branch.merge(%s, %s{options})", (source, target)
    )
    assert conflicts == 1, "id 40"
    resolve = "SELECT merge_id, conflicts, message FROM branch.conflicts_resolve(%s, 'theirs')"
    ((merge, conflicts, message),) = server.sql(resolve, (merge,))
    if "open" in message:
        # The row that only the target has, and that would be gone with the one it points to.
        ((merge, _, message),) = server.sql(resolve, (merge,))
    assert "decided" in message
    turn(server, databases, evil=False)
    answer = "SELECT count(*), count(*) FILTER (WHERE v = 'ours') FROM t WHERE n = -1"
    assert server.sql(answer, dbname=target) == [(30, 14)]
    answer = "SELECT id, v FROM t WHERE v IN ('new', 'theirs') ORDER BY id"
    assert server.sql(answer, dbname=target) == [(40, "theirs"), (301, "new")]
    assert server.scalar("SELECT last_value FROM t_id_seq", dbname=target) == 301
    assert server.sql("SELECT t FROM c WHERE t = 7", dbname=target) == []
    turn(server, databases, evil=True)
    server.sql("SELECT branch.sync(%s)", (source,))
    assert server.scalar("SELECT conflicts FROM branch.revert(%s)", (merge,)) == 0
    turn(server, databases, evil=False)
    assert server.sql("SELECT t::text FROM t ORDER BY id", dbname=target) == before


def test_new_columns(server: Cluster) -> None:
    """The shape of a table that got a column is asked for while rows are written."""
    kind = "CREATE TYPE public.mood AS ENUM ('glad', 'sad');"
    databases = source, target = both(server, "additive", kind + TABLES)
    server.psql(
        "ALTER TABLE t ADD m public.mood DEFAULT 'sad'; UPDATE t SET m = 'glad' WHERE id = 4;"
        "CREATE TABLE fresh (id serial PRIMARY KEY, m public.mood);"
        "INSERT INTO fresh (m) VALUES ('glad');",
        source,
    )
    server.psql("UPDATE t SET v = 'ours' WHERE id = 4", target)
    turn(server, databases, evil=True)
    merged = server.sql("SELECT conflicts FROM branch.merge(%s, schema => 'additive')", (source,))
    assert merged == [(0,)]
    turn(server, databases, evil=False)
    assert server.sql("SELECT v, m FROM t WHERE id = 4", dbname=target) == [("ours", "glad")]
    assert server.sql("SELECT id, m::text FROM fresh", dbname=target) == [(1, "glad")]


def test_they_would_be_called(server: Cluster) -> None:
    """By who asks without naming a schema."""
    databases = _, target = both(server, "called", "")
    turn(server, databases, evil=True)
    for query in (
        "SELECT pg_current_xact_id()",
        "SELECT 1 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a"
        " ON c.oid = a.attrelid",
        "SELECT 1 FROM pg_catalog.pg_class AS c WHERE c.relname <> 'x'",
    ):
        with pytest.raises(psycopg.errors.RaiseException, match="of another schema"):
            server.sql(query, dbname=target)
    with pytest.raises(psycopg.errors.CannotCoerce):
        server.sql("SELECT pg_catalog.pg_current_xact_id()::text", dbname=target)
