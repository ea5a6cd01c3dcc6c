"""What owners of databases can write into them, where others compare, merge and decide."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from ab_cluster import Cluster


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Cluster:
    """alice has nothing; Bob and bob are two."""
    for role in ("alice", '"Bob"', "bob", '"PUBLIC"'):
        cluster.sql(f"CREATE ROLE {role} LOGIN")
    return cluster


NUMBERS = count()


@pytest.fixture
def both(server: Cluster) -> Iterator[tuple[str, str]]:
    """A branch and its database."""
    name = f"d{next(NUMBERS)}"
    server.sql(f"CREATE DATABASE {name}")
    server.psql(
        "CREATE SCHEMA pgx; CREATE TABLE pgx.t (id int PRIMARY KEY, v text);"
        "CREATE TABLE s (id int PRIMARY KEY, v text);"
        "INSERT INTO s VALUES (1, 'x'); INSERT INTO pgx.t VALUES (1, 'x');",
        name,
    )
    server.sql("SELECT branch.create(%s, %s)", (f"{name}_b", name))
    yield f"{name}_b", name
    server.sql("SELECT branch.delete(%s, hard => true, if_exists => true)", (f"{name}_b",))


def merge(server: Cluster, source: str) -> None:
    answer = server.sql("SELECT conflicts FROM branch.merge(%s, schema => 'additive')", (source,))
    details = "SELECT kind, table_name, detail FROM branch.conflicts WHERE source_name = %s"
    assert answer == [(0,)], server.sql(details, (source,))


@pytest.mark.parametrize("side", [0, 1, 2])
def test_literals_end_where_they_end(server: Cluster, both: tuple[str, str], side: int) -> None:
    """standard_conforming_strings of the source, of the target, or of both is off."""
    source, target = both
    server.psql(
        r"CREATE TYPE mood AS ENUM ('a\', 'it''s');"
        r"CREATE FUNCTION oops() RETURNS int LANGUAGE sql AS 'SELECT 1 / 0';"
        r"UPDATE s SET v = $$a\'; SELECT oops(); --$$; INSERT INTO s VALUES (2, E'\\');"
        r"UPDATE pgx.t SET v = 'y';"
        r"ALTER TABLE s ADD c text DEFAULT $$a\'; SELECT public.oops(); --$$ CHECK (c <> '\');"
        r"COMMENT ON TABLE s IS $$a\'; SELECT public.oops(); --$$;",
        source,
    )
    for database in both[side:] if side < 2 else both:
        server.sql(f"ALTER DATABASE {database} SET standard_conforming_strings = off")
    summary = "SELECT table_name, rows_added, rows_modified FROM branch.diff_summary(%s)"
    assert server.sql(summary, (source,)) == [("pgx.t", 0, 1), ("public.s", 1, 1)]
    merge(server, source)
    assert server.sql("SELECT table_name FROM branch.diff_summary(%s)", (source,)) == []
    assert server.sql("SELECT * FROM branch.schema_diff(%s, %s)", both) == []
    for database in both:
        server.sql(f"ALTER DATABASE {database} RESET standard_conforming_strings")
    assert server.sql("SELECT v FROM pgx.t", dbname=target) == [("y",)]
    given = r"a\'; SELECT public.oops(); --"
    rows = server.sql("SELECT v, c FROM s ORDER BY id", dbname=target)
    assert rows == [(r"a\'; SELECT oops(); --", given), ("\\", given)]
    assert server.sql("SELECT * FROM branch.schema_diff(%s, %s)", both) == []


def test_more_labels_with_backslashes(server: Cluster, both: tuple[str, str]) -> None:
    source, target = both
    server.psql("CREATE TYPE mood AS ENUM ('glad')", target)
    server.sql("SELECT branch.reset(%s)", (source,))
    server.psql(r"ALTER TYPE mood ADD VALUE 'sa\d'; ALTER TYPE mood ADD VALUE 'it''s'", source)
    merge(server, source)
    labels = "SELECT enumlabel FROM pg_enum ORDER BY enumsortorder"
    assert server.sql(labels, dbname=target) == [("glad",), ("sa\\d",), ("it's",)]


def test_texts_that_speak_of_owners(server: Cluster, both: tuple[str, str]) -> None:
    """Definitions of some objects end with their owner; others only look so."""
    source, target = both
    server.psql(
        "COMMENT ON TABLE s IS E'a\nOWNER TO alice';"
        "ALTER TABLE s ADD CONSTRAINT k CHECK (v <> E'a\nOWNER TO alice');"
        "CREATE POLICY p ON s USING (v <> E'a\nOWNER TO alice');"
        "CREATE VIEW w WITH (security_barrier) AS SELECT text E'a\nOWNER TO alice' AS c;",
        source,
    )
    merge(server, source)
    assert server.sql("SELECT * FROM branch.schema_diff(%s, %s)", both) == []
    owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 2200"
    assert server.sql(owners, dbname=target) == [("postgres",)]


def test_texts_that_speak_of_identity(server: Cluster, both: tuple[str, str]) -> None:
    """Options of the sequence of an identity column were put where a default, or the name of a
    type, said so, and with the name of a sequence that ended what it stood in."""
    source, target = both
    words = "x GENERATED ALWAYS AS IDENTITY"
    for n, column in enumerate((f"text DEFAULT '{words}'", f'public."{words}"')):
        server.psql(
            f"CREATE TYPE public.\"{words}\" AS ENUM ('a');" if n == 1 else "",
            source,
        )
        mark = "'" if n == 0 else ""
        name = f'"q{mark}); CREATE ROLE taken{n}; --"'
        server.psql(
            f"ALTER TABLE s ADD i{n} {column}; CREATE SEQUENCE {name} OWNED BY s.i{n}", source
        )
    merge(server, source)
    assert server.sql("SELECT * FROM branch.schema_diff(%s, %s)", both) == []
    assert server.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'taken%%'") == []
    assert server.scalar("SELECT DISTINCT i0 FROM s", dbname=target) == words


def test_grants_are_for_whom_they_were(server: Cluster, both: tuple[str, str]) -> None:
    """In an ACL some names have no quotes that need them in statements."""
    source, target = both
    server.psql(
        'CREATE TABLE mine (id int PRIMARY KEY); GRANT SELECT ON mine TO "Bob";'
        'CREATE TABLE ours (id int PRIMARY KEY); GRANT SELECT ON ours TO "PUBLIC";',
        source,
    )
    merge(server, source)
    may = (
        "SELECT t FROM unnest('{mine,ours}'::text[]) AS t"
        " WHERE has_table_privilege(%s, t, 'SELECT')"
    )
    for role, tables in (("Bob", [("mine",)]), ("bob", []), ("PUBLIC", [("ours",)])):
        assert server.sql(may, (role,), dbname=target) == tables, role
    assert server.sql("SELECT * FROM branch.schema_diff(%s, %s)", both) == []


def test_conflicts_are_decided_in_the_databases_they_are_of(
    server: Cluster, both: tuple[str, str]
) -> None:
    """Other databases had the names by then: they would have been merged."""
    source, target = both
    for database, value in ((source, "theirs"), (target, "ours")):
        server.psql(f"UPDATE s SET v = '{value}'", database)
    number = server.scalar("SELECT merge_id FROM branch.merge(%s)", (source,))
    server.sql("SELECT branch.rename(%s, %s)", (source, f"{source}_now"))
    server.sql(f"ALTER DATABASE {target} RENAME TO {target}_now")
    server.sql(f"CREATE DATABASE {target}")
    table = "CREATE TABLE s (id int PRIMARY KEY, v text); INSERT INTO s VALUES (1, 'x')"
    server.psql(table, target)
    server.sql("SELECT branch.create(%s, %s)", (source, target))
    server.psql("UPDATE s SET v = 'of another'", source)
    server.sql("SELECT branch.conflicts_resolve(%s, 'theirs')", (number,))
    assert server.sql("SELECT v FROM s", dbname=target) == [("x",)]
    assert server.sql("SELECT v FROM s", dbname=f"{target}_now") == [("theirs",)]


def test_conflicts_of_a_database_that_is_no_more(server: Cluster, both: tuple[str, str]) -> None:
    source, target = both
    for database, value in ((source, "theirs"), (target, "ours")):
        server.psql(f"UPDATE s SET v = '{value}'", database)
    number = server.scalar("SELECT merge_id FROM branch.merge(%s)", (source,))
    server.sql("SELECT branch.delete(%s)", (source,))
    with pytest.raises(psycopg.errors.InvalidCatalogName, match=f'"{source}" does not exist'):
        server.sql("SELECT branch.conflicts_resolve(%s, 'theirs')", (number,))
