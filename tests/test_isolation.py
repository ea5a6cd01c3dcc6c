"""Parent, branch and branch of a branch never see each other's writes.

Each scenario is a kind of object with a way to change it and a way to look at it.
The story is the same for all: branch it, change both sides in turn, branch the
branch, change again, and every database must show what its own history says,
also after a crash of the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_checks import (
    BLOCK,
    by_index_and_by_heap,
    calm_log,
    create,
    create_database,
    digest,
    disk_bytes,
    healthy,
    main_fork,
    oid_of,
    refused,
    relation_files,
    run,
)
from ab_cluster import Cluster

# Every change is told who makes it: a word for contents and a number for choices.
WHO = {"parent": 3, "branch": 4, "again": 5, "leaf": 7}


@dataclass(frozen=True)
class Scenario:
    name: str
    setup: list[str]
    change: Callable[[str, int], list[str]]
    look: list[str]
    indexed: list[tuple[str, str]] = field(default_factory=list)


def look_at(cluster: Cluster, dbname: str, scenario: Scenario) -> list[Any]:
    """What a database shows; an object that is not there shows its SQLSTATE."""
    seen: list[Any] = []
    with cluster.connect(dbname) as conn:
        for query in scenario.look:
            try:
                seen.append(conn.execute(query).fetchall())
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
                seen.append(error.sqlstate)
        for index, query in scenario.indexed:
            seen.append(by_index_and_by_heap(conn, query, index))
    return seen


ROWS = "SELECT count(*), md5(string_agg({0}::text, '|' ORDER BY {0}::text)) FROM {0}"


def modify(table: str, columns: str, values: str, settings: str) -> Callable[[str, int], list[str]]:
    """Inserts, updates and deletes on a table with a column id; {who} is replaced."""

    def change(who: str, number: int) -> list[str]:
        return [
            f"INSERT INTO {table} ({columns}) SELECT {values.format(who=who)}"
            f" FROM generate_series(1, 150) AS i, (SELECT max(id) AS top FROM {table}) AS m",
            f"UPDATE {table} SET {settings.format(who=who)} WHERE id % {number} = 0",
            f"DELETE FROM {table} WHERE id % 11 = {number}",
        ]

    return change


def then(first: Callable[[str, int], list[str]], *more: str) -> Callable[[str, int], list[str]]:
    return lambda who, number: first(who, number) + [text.format(who=who) for text in more]


INDEXED_SETUP = [
    "CREATE TABLE ix (id int, k int, h text, arr int[], rng int4range, pt point)",
    "INSERT INTO ix SELECT i, i * 7 % 1000, 'h' || i % 50, ARRAY[i % 10, i % 13],"
    " int4range(i % 900, i % 900 + 20), point(i % 100, i % 97)"
    " FROM generate_series(1, 2000) AS i",
]
INDEXED_CHANGE = modify(
    "ix",
    "id, k, h, arr, rng, pt",
    "top + i, i * 3 % 1000, 'h' || i % 50, ARRAY[i % 10, 99], int4range(i, i + 30),"
    " point(i % 30, i % 20)",
    "k = k + length('{who}'), h = 'h' || (id + length('{who}')) % 50, arr = arr || 7,"
    " rng = int4range(60, 70), pt = point(id % 40, length('{who}'))",
)


def index_scenario(method: str, target: str, condition: str) -> Scenario:
    query = f"SELECT count(*), coalesce(sum(id), 0), min(k), max(k) FROM ix WHERE {condition}"
    return Scenario(
        f"index_{method}",
        [*INDEXED_SETUP, f"CREATE INDEX ix_{method} ON ix USING {method} ({target})"],
        then(INDEXED_CHANGE, "INSERT INTO ix (id, h) SELECT max(id) + 1, '{who}' FROM ix"),
        [ROWS.format("ix")],
        [(f"ix_{method}", query)],
    )


TABLE_SETUP = [
    "CREATE TABLE t (id int PRIMARY KEY, v text, pad text)",
    "CREATE INDEX t_v ON t (v)",
    "INSERT INTO t SELECT i, 'base' || i, repeat('x', 200) FROM generate_series(1, 1500) AS i",
]
TABLE_CHANGE = modify(
    "t", "id, v, pad", "top + i, '{who}' || i, repeat('y', 200)", "v = '{who}' || id"
)
TABLE_INDEXED = [
    ("t_pkey", "SELECT count(*), sum(length(v)) FROM t WHERE id BETWEEN 100 AND 1400"),
    ("t_v", "SELECT count(*), sum(id) FROM t WHERE v BETWEEN 'a' AND 'q'"),
]


def table_scenario(name: str, *commands: str, setup: tuple[str, ...] = ()) -> Scenario:
    """A table with two indexes, changed, then treated with commands."""
    return Scenario(
        name,
        [*TABLE_SETUP, *setup],
        then(TABLE_CHANGE, *commands),
        [ROWS.format("t")],
        TABLE_INDEXED,
    )


def column_ddl(who: str, number: int) -> list[str]:
    return [
        f"ALTER TABLE t ADD COLUMN added_{who} int DEFAULT {number}",
        f"ALTER TABLE t DROP COLUMN gone_{who}",
        f"ALTER TABLE t ADD CONSTRAINT positive_{who} CHECK (id > -{number})",
        f"UPDATE t SET added_{who} = id WHERE id % {number} = 0",
        f"COMMENT ON TABLE t IS '{who}'",
    ]


def object_ddl(who: str, number: int) -> list[str]:
    return [
        f"CREATE TABLE new_{who} AS SELECT i, '{who}' AS v FROM generate_series(1, {number}) AS i",
        f"CREATE INDEX ON new_{who} (i)",
        f"DROP TABLE old_{who}",
        f"CREATE TYPE mood_{who} AS ENUM ('{who}')",
        f"ALTER TYPE mood ADD VALUE '{who}'",
        f"DROP TYPE old_type_{who}",
        f"CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT '{who}' $$",
        f"DROP FUNCTION old_function_{who}()",
        f"CREATE OR REPLACE VIEW w AS SELECT '{who}'::text AS who, mood FROM moods",
        f"DROP VIEW old_view_{who}",
        f"INSERT INTO moods VALUES ('{who}')",
        f"CREATE SCHEMA s_{who} CREATE TABLE inside (x int)",
        f"CREATE DOMAIN domain_{who} AS int CHECK (VALUE > {number})",
    ]


OBJECT_SETUP = [
    "CREATE TYPE mood AS ENUM ('calm')",
    "CREATE TABLE moods (mood mood)",
    "INSERT INTO moods VALUES ('calm')",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'base' $$",
    "CREATE VIEW w AS SELECT 'base'::text AS who, mood FROM moods",
]
for _who in WHO:
    OBJECT_SETUP += [
        f"CREATE TABLE old_{_who} AS SELECT 1 AS x",
        f"CREATE TYPE old_type_{_who} AS (a int)",
        f"CREATE FUNCTION old_function_{_who}() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        f"CREATE VIEW old_view_{_who} AS SELECT 1 AS x",
    ]

COLUMNS = (
    "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
)
OBJECTS = [
    "SELECT n.nspname, c.relname, c.relkind FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1, 2",
    "SELECT typname, typtype FROM pg_type WHERE typnamespace = 'public'::regnamespace ORDER BY 1",
    "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    "SELECT enum_range(NULL::mood)::text, f()",
    "SELECT * FROM w ORDER BY mood",
    "SELECT * FROM new_parent ORDER BY i",
    "SELECT * FROM new_branch ORDER BY i",
    "SELECT * FROM new_again ORDER BY i",
    "SELECT * FROM new_leaf ORDER BY i",
]

SCENARIOS = [
    Scenario(
        "heap_toast",
        [
            "CREATE TABLE t (id int PRIMARY KEY, note text, big text)",
            "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
            "INSERT INTO t SELECT i, 'base', repeat(md5(i::text), 200)"
            " FROM generate_series(1, 300) AS i",
        ],
        modify(
            "t",
            "id, note, big",
            "top + i, '{who}', repeat(md5('{who}' || i), 150)",
            "note = '{who}', big = repeat(md5('{who}' || id), 210)",
        ),
        [
            "SELECT count(*), md5(string_agg(id || note || md5(big), '|' ORDER BY id)) FROM t",
            "SELECT sum(length(big)), sum(length(substr(big, 4000, 1000))) FROM t",
        ],
        [("t_pkey", "SELECT sum(length(big)) FROM t WHERE id BETWEEN 20 AND 250")],
    ),
    index_scenario("btree", "k", "k BETWEEN 100 AND 300"),
    index_scenario("hash", "h", "h = 'h42'"),
    index_scenario("gin", "arr", "arr @> ARRAY[7]"),
    index_scenario("gist", "rng", "rng && int4range(50, 80)"),
    index_scenario("spgist", "pt", "pt <@ box '((0,0),(30,30))'"),
    index_scenario("brin", "id", "id BETWEEN 500 AND 2050"),
    Scenario(
        "large_objects",
        [
            "SELECT lo_from_bytea(70000 + i, convert_to(repeat('base' || i, 3000), 'UTF8'))"
            " FROM generate_series(1, 20) AS i"
        ],
        lambda who, number: [
            f"SELECT lo_put(70001, 5000, '{who}')",
            f"SELECT lo_from_bytea({71000 + number}, convert_to(repeat('{who}', 2000), 'UTF8'))",
            f"SELECT lo_unlink({70010 + number})",
        ],
        ["SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid"],
    ),
    Scenario(
        "ddl_columns",
        [
            "CREATE TABLE t (id int PRIMARY KEY, gone_parent int, gone_branch text,"
            " gone_again int, gone_leaf text)",
            "INSERT INTO t SELECT i, i, 'b' || i, i, 'l' || i FROM generate_series(1, 500) AS i",
        ],
        column_ddl,
        [
            COLUMNS,
            ROWS.format("t"),
            "SELECT conname FROM pg_constraint WHERE conrelid = 't'::regclass ORDER BY 1",
            "SELECT obj_description('t'::regclass)",
        ],
        [("t_pkey", "SELECT count(*) FROM t WHERE id < 100")],
    ),
    Scenario(
        "ddl_rewrite",
        TABLE_SETUP,
        lambda who, number: [
            f"ALTER TABLE t ALTER COLUMN v TYPE text USING v || '{who}'",
            f"ALTER TABLE t ADD COLUMN volatile_{who} text DEFAULT '{who}' || txid_current() * 0",
            f"DELETE FROM t WHERE id % 11 = {number}",
        ],
        [COLUMNS, ROWS.format("t")],
        TABLE_INDEXED,
    ),
    Scenario(
        "ddl_rename",
        [f"CREATE TABLE old_{who} (col_{who} int, id serial PRIMARY KEY)" for who in WHO],
        lambda who, _: [
            f"ALTER TABLE old_{who} RENAME COLUMN col_{who} TO column_{who}",
            f"ALTER TABLE old_{who} RENAME TO renamed_{who}",
            f"ALTER INDEX old_{who}_pkey RENAME TO index_{who}",
            f"INSERT INTO renamed_{who} (column_{who}) VALUES (1)",
        ],
        [COLUMNS, OBJECTS[0], *(f"SELECT * FROM renamed_{who}" for who in WHO)],
    ),
    Scenario("ddl_objects", OBJECT_SETUP, object_ddl, OBJECTS),
    table_scenario("vacuum", "VACUUM t", "VACUUM (FREEZE, ANALYZE) t"),
    table_scenario("vacuum_full", "VACUUM FULL t"),
    table_scenario("cluster_command", "CLUSTER t USING t_v"),
    table_scenario("reindex", "REINDEX TABLE t", "REINDEX INDEX t_v"),
    table_scenario("reindex_concurrently", "REINDEX TABLE CONCURRENTLY t"),
    table_scenario(
        "create_drop_index", "CREATE INDEX t_{who} ON t (pad, id)", "DROP INDEX t_{who}"
    ),
    table_scenario(
        "truncate",
        "TRUNCATE t",
        "INSERT INTO t SELECT i, '{who}' || i, 'refilled' FROM generate_series(1, 1450) AS i",
    ),
    table_scenario(
        "vacuum_truncates",
        "DELETE FROM t WHERE id > 300",
        "VACUUM (TRUNCATE) t",
        "INSERT INTO t SELECT i, '{who}' || i, repeat('z', 150)"
        " FROM generate_series(301, 900) AS i",
        "DELETE FROM t WHERE id > 700",
        "VACUUM (TRUNCATE) t",
    ),
    table_scenario(
        "catalog_rewrite",
        "CREATE TABLE made_{who} AS SELECT 1 AS x",
        "VACUUM FULL pg_class",
        "VACUUM FULL pg_attribute",
        "REINDEX TABLE pg_class",
        "VACUUM FULL pg_type",
        "ANALYZE t",
    ),
    Scenario(
        "partitions",
        [
            "CREATE TABLE t (id int, v text) PARTITION BY RANGE (id)",
            *(
                f"CREATE TABLE t_{who} PARTITION OF t"
                f" FOR VALUES FROM ({n * 100}) TO ({n * 100 + 100})"
                for who, n in WHO.items()
            ),
            "CREATE TABLE t_default PARTITION OF t DEFAULT",
            "CREATE INDEX t_id ON t (id)",
            "INSERT INTO t SELECT i, 'base' FROM generate_series(1, 900) AS i",
        ],
        lambda who, n: [
            f"UPDATE t SET v = '{who}', id = id + 1 WHERE id % {n} = 0",
            f"ALTER TABLE t DETACH PARTITION t_{who}",
            f"CREATE TABLE t_more_{who} PARTITION OF t"
            f" FOR VALUES FROM ({n * 1000}) TO ({n * 1000 + 1000})",
            f"INSERT INTO t SELECT {n * 1000} + i, '{who}' FROM generate_series(1, 200) AS i",
            f"INSERT INTO t_{who} VALUES (-{n}, 'detached')",
        ],
        [
            ROWS.format("t"),
            *(ROWS.format(f"t_{who}") for who in WHO),
            "SELECT inhrelid::regclass::text FROM pg_inherits"
            " WHERE inhparent = 't'::regclass ORDER BY 1",
        ],
        [("t_default_id_idx", "SELECT count(*), min(v), max(v) FROM t WHERE id < 250")],
    ),
    Scenario(
        "matviews",
        [
            *TABLE_SETUP,
            "CREATE MATERIALIZED VIEW m AS SELECT id, v FROM t WHERE id % 2 = 0",
            "CREATE UNIQUE INDEX m_id ON m (id)",
            "CREATE MATERIALIZED VIEW c AS SELECT id, v FROM t WHERE id % 3 = 0",
            "CREATE UNIQUE INDEX c_id ON c (id)",
        ],
        then(
            TABLE_CHANGE,
            "REFRESH MATERIALIZED VIEW m",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY c",
        ),
        [ROWS.format("t"), ROWS.format("m"), ROWS.format("c")],
        [
            ("m_id", "SELECT count(*), max(v) FROM m WHERE id < 700"),
            ("c_id", "SELECT count(*), max(v) FROM c WHERE id < 700"),
        ],
    ),
    Scenario(
        "extensions",
        [
            "CREATE EXTENSION hstore",
            "CREATE EXTENSION pg_trgm",
            "CREATE TABLE t (id int PRIMARY KEY, h hstore, v text)",
            "INSERT INTO t SELECT i, hstore('k' || i % 7, 'base' || i), md5(i::text)"
            " FROM generate_series(1, 1500) AS i",
            "CREATE INDEX t_trgm ON t USING gin (v gin_trgm_ops)",
            "CREATE INDEX t_gist ON t USING gist (h)",
        ],
        then(
            modify(
                "t",
                "id, h, v",
                "top + i, hstore('k3', '{who}'), md5('{who}' || i)",
                "h = h || hstore('who', '{who}'), v = v || 'abc'",
            ),
            "CREATE EXTENSION IF NOT EXISTS fuzzystrmatch",
            "SELECT set_config('pg_trgm.similarity_threshold', '0.4', false)",
        ),
        [ROWS.format("t"), "SELECT extname, extversion FROM pg_extension ORDER BY 1"],
        [
            ("t_gist", "SELECT count(*), sum(id) FROM t WHERE h ?| ARRAY['who']"),
            ("t_trgm", "SELECT count(*), sum(id) FROM t WHERE v LIKE '%abc%'"),
        ],
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.name))
def test_each_side_sees_only_its_own(cluster: Cluster, scenario: Scenario) -> None:
    """Branch, change the parent, change the branch, branch the branch, change both,
    kill the server: four databases, four histories, none ever mixed."""

    def look(dbname: str) -> list[Any]:
        return look_at(cluster, dbname, scenario)

    def change(dbname: str, who: str) -> list[Any]:
        before = look(dbname)
        run(cluster, dbname, *scenario.change(who, WHO[who]))
        after = look(dbname)
        assert after != before, f"changing {dbname} changed nothing"
        return after

    parent = create_database(cluster, f"p_{scenario.name}", *scenario.setup)
    branch, leaf, late = (f"{kind}_{scenario.name}" for kind in ("b", "l", "n"))
    base = look(parent)

    create(cluster, branch, parent)
    assert look(branch) == base, "a new branch shows its parent's contents"

    in_parent = change(parent, "parent")
    assert look(branch) == base, "the branch sees a write of its parent"

    in_branch = change(branch, "branch")
    assert look(parent) == in_parent, "the parent sees a write of its branch"

    create(cluster, leaf, branch)
    assert look(leaf) == in_branch, "a branch of a branch shows the branch's contents"
    in_branch = change(branch, "again")
    in_leaf = change(leaf, "leaf")
    assert look(branch) == in_branch
    assert look(parent) == in_parent

    create(cluster, late, parent)
    expected = {parent: in_parent, branch: in_branch, leaf: in_leaf, late: in_parent}
    assert {name: look(name) for name in expected} == expected

    cluster.crash()
    assert {name: look(name) for name in expected} == expected, "after a crash"
    healthy(cluster)


def test_sequences(cluster: Cluster) -> None:
    """A branch goes on counting from where its parent was: no number that stands in a
    row it inherited is handed out again, and the two count on independently."""
    parent = create_database(
        cluster,
        "p_sequences",
        "CREATE SEQUENCE s",
        "CREATE TABLE t (id serial PRIMARY KEY, v int GENERATED BY DEFAULT AS IDENTITY)",
        "INSERT INTO t SELECT FROM generate_series(1, 100)",
    )

    def following(dbname: str) -> int:
        return int(cluster.scalar("SELECT nextval('s')", dbname=dbname))

    for expected in range(1, 8):
        assert following(parent) == expected
    create(cluster, "b_sequences", parent)
    first = following("b_sequences")
    assert first >= 8, "the branch repeats a number its parent had used"
    assert following(parent) == 8, "the branch's nextval moved the parent's sequence"

    run(cluster, parent, "SELECT setval('s', 5000)", "ALTER SEQUENCE s INCREMENT 10")
    assert following("b_sequences") == first + 1
    run(cluster, "b_sequences", "SELECT setval('s', 900)")
    assert following("b_sequences") == 901
    assert following(parent) == 5010
    create(cluster, "l_sequences", "b_sequences")
    assert following("l_sequences") > 901

    for dbname in (parent, "b_sequences", "l_sequences"):
        run(cluster, dbname, "INSERT INTO t SELECT FROM generate_series(1, 50)")
    before = {name: following(name) for name in (parent, "b_sequences", "l_sequences")}
    cluster.crash()
    for name, value in before.items():
        assert following(name) > value, f'"{name}" repeats numbers after a crash'
        run(cluster, name, "INSERT INTO t SELECT FROM generate_series(1, 50)")
        assert cluster.scalar("SELECT count(*) FROM t", dbname=name) == 200


def test_unlogged_tables(cluster: Cluster) -> None:
    """Contents of an unlogged table are not inherited: it is empty in a branch, works
    there, with its indexes and sequence, and a crash empties it on both sides."""
    parent = create_database(
        cluster,
        "p_unlogged",
        "CREATE UNLOGGED TABLE u (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text,"
        " big text)",
        "ALTER TABLE u ALTER big SET STORAGE EXTERNAL",
        "CREATE INDEX u_v ON u USING gin (to_tsvector('simple', v))",
        "INSERT INTO u (v, big) SELECT 'word' || i, repeat(md5(i::text), 100)"
        " FROM generate_series(1, 300) AS i",
        "CREATE TABLE logged (id int)",
        "INSERT INTO logged SELECT generate_series(1, 100)",
    )

    def count(dbname: str) -> int:
        with cluster.connect(dbname) as conn:
            rows = by_index_and_by_heap(conn, "SELECT count(*) FROM u WHERE id > 0")
        return int(rows[0][0])

    create(cluster, "b_unlogged", parent)
    assert count(parent) == 300
    assert count("b_unlogged") == 0, "an unlogged table must be empty in a branch"
    run(
        cluster,
        "b_unlogged",
        "INSERT INTO u (v, big) SELECT 'mine', repeat(md5('x'), 200) FROM generate_series(1, 50)",
    )
    assert count("b_unlogged") == 50
    assert count(parent) == 300
    create(cluster, "l_unlogged", "b_unlogged")
    assert count("l_unlogged") == 0
    run(cluster, "l_unlogged", "INSERT INTO u (v) VALUES ('leaf')")

    cluster.restart("fast")
    assert [count(n) for n in (parent, "b_unlogged", "l_unlogged")] == [300, 50, 1]
    cluster.crash()
    for name in (parent, "b_unlogged", "l_unlogged"):
        assert count(name) == 0, f'"{name}": a crash must empty unlogged tables'
        run(
            cluster,
            name,
            "INSERT INTO u (v, big) SELECT 'back', repeat(md5('y'), 200)"
            " FROM generate_series(1, 20)",
            "VACUUM u",
        )
        assert count(name) == 20
        assert cluster.scalar("SELECT count(*) FROM logged", dbname=name) == 100
    run(
        cluster,
        "b_unlogged",
        "ALTER TABLE u SET LOGGED",
        "TRUNCATE u",
        "INSERT INTO u (v) VALUES ('kept')",
    )
    cluster.crash()
    assert [count(n) for n in (parent, "b_unlogged", "l_unlogged")] == [0, 1, 0]


def test_temporary_tables(cluster: Cluster) -> None:
    """A session with temporary tables in the parent does not hinder branching, its
    tables do not appear in the branch, and the branch has temporary tables of its own."""
    parent = create_database(cluster, "p_temporary", "CREATE TABLE t AS SELECT 1 AS x")
    with cluster.connect(parent) as session:
        session.execute("CREATE TEMPORARY TABLE tmp AS SELECT generate_series(1, 500) AS x")
        create(cluster, "b_temporary", parent)
        refused(cluster, "SELECT * FROM tmp", "42P01", dbname="b_temporary")
        with cluster.connect("b_temporary") as other:
            other.execute("CREATE TEMPORARY TABLE tmp (x int, big text)")
            other.execute(
                "INSERT INTO tmp SELECT i, repeat('q', 9000) FROM generate_series(1, 90) i"
            )
            other.execute("CREATE INDEX ON tmp (x)")
            assert digest(other, "tmp")[0] == 90
            assert digest(session, "tmp")[0] == 500
            other.execute("TRUNCATE tmp")
            assert digest(other, "tmp")[0] == 0
        assert digest(session, "tmp")[0] == 500
    run(cluster, "b_temporary", "VACUUM", "INSERT INTO t VALUES (2)")
    assert cluster.scalar("SELECT count(*) FROM t", dbname=parent) == 1


@pytest.fixture(scope="module")
def tablespace(cluster: Cluster) -> str:
    place = cluster.root / "tablespace"
    place.mkdir()
    Cluster.give(place)
    cluster.sql(f"CREATE TABLESPACE roomy LOCATION '{place}'")
    return "roomy"


def test_tables_in_a_tablespace(cluster: Cluster, tablespace: str) -> None:
    """Relations in another tablespace are shared and separated like all others; moving
    one between tablespaces in the branch leaves the parent's where it is."""
    parent = create_database(
        cluster,
        "p_space",
        f"CREATE TABLE t (id int PRIMARY KEY, v text) TABLESPACE {tablespace}",
        f"CREATE INDEX t_v ON t (v) TABLESPACE {tablespace}",
        "INSERT INTO t SELECT i, 'base' || i FROM generate_series(1, 2000) AS i",
        f"CREATE UNLOGGED TABLE u (id int) TABLESPACE {tablespace}",
        "INSERT INTO u VALUES (1)",
        "CREATE TABLE here AS SELECT generate_series(1, 2000) AS id",
    )
    create(cluster, "b_space", parent)

    def look(dbname: str) -> list[Any]:
        with cluster.connect(dbname) as conn:
            return [
                *by_index_and_by_heap(conn, "SELECT count(*), sum(id) FROM t WHERE v > 'c'", "t_v"),
                digest(conn, "t"),
                digest(conn, "here"),
                conn.execute(
                    "SELECT relname, reltablespace <> 0 FROM pg_class"
                    " WHERE relname IN ('t', 't_v', 'here') ORDER BY 1"
                ).fetchall(),
            ]

    base = look(parent)
    assert look("b_space") == base
    assert cluster.scalar("SELECT count(*) FROM u", dbname="b_space") == 0
    run(
        cluster,
        "b_space",
        "UPDATE t SET v = 'z' || id WHERE id % 3 = 0",
        "INSERT INTO u VALUES (7)",
        f"ALTER TABLE here SET TABLESPACE {tablespace}",
    )
    assert look(parent) == base
    in_branch = look("b_space")
    run(
        cluster,
        parent,
        "ALTER TABLE t SET TABLESPACE pg_default",
        "ALTER INDEX t_v SET TABLESPACE pg_default",
        "DELETE FROM t WHERE id < 500",
    )
    in_parent = look(parent)
    assert look("b_space") == in_branch
    create(cluster, "l_space", "b_space")
    run(cluster, "l_space", "ALTER TABLE t SET TABLESPACE pg_default", "VACUUM FULL t")
    in_leaf = look("l_space")
    cluster.crash()
    assert [look(n) for n in (parent, "b_space", "l_space")] == [in_parent, in_branch, in_leaf]
    cluster.sql("SELECT branch.delete('l_space', hard => true)")
    oid = oid_of(cluster, "b_space")
    cluster.sql("SELECT branch.delete('b_space', hard => true)")
    cluster.sql("SELECT * FROM branch.gc()")
    assert not list((cluster.data / "pg_tblspc").glob(f"*/PG_*/{oid}")), (
        "gc left the branch's directory in the tablespace"
    )
    healthy(cluster)


def test_database_in_a_tablespace(cluster: Cluster, tablespace: str) -> None:
    """A database whose default is another tablespace can be branched; its branch lives
    in that tablespace too."""
    cluster.sql(f"CREATE DATABASE p_inspace TABLESPACE {tablespace}")
    run(cluster, "p_inspace", *TABLE_SETUP, "CREATE TABLE d TABLESPACE pg_default AS SELECT 5 AS x")
    create(cluster, "b_inspace", "p_inspace")
    run(
        cluster,
        "b_inspace",
        "UPDATE t SET v = 'branch'",
        "UPDATE d SET x = 6",
        "CREATE TABLE mine AS SELECT 1 AS x",
    )
    run(cluster, "p_inspace", "DELETE FROM t WHERE id > 10", "VACUUM FULL t")
    cluster.crash()
    assert cluster.sql("SELECT count(*), max(v) FROM t", dbname="b_inspace") == [(1500, "branch")]
    assert cluster.sql("SELECT count(*), max(v) FROM t", dbname="p_inspace") == [(10, "base9")]
    assert cluster.scalar("SELECT x FROM d", dbname="b_inspace") == 6
    assert cluster.scalar("SELECT x FROM d", dbname="p_inspace") == 5
    assert not (cluster.data / "base" / str(oid_of(cluster, "b_inspace")) / "PG_VERSION").exists()
    healthy(cluster)


def test_copy_with_another_default_tablespace(cluster: Cluster, tablespace: str) -> None:
    """CREATE DATABASE ... TEMPLATE is refused where the new default tablespace has tables already
    that name it: ALTER DATABASE ... SET TABLESPACE of the copy would take their files along.  Of
    a branch that inherits them there are none to be seen."""
    table = f"CREATE TABLE t TABLESPACE {tablespace} AS SELECT generate_series(1, 10) AS id"
    parent = create_database(cluster, "p_default", table, "CREATE TABLE here AS SELECT 5 AS x")
    create(cluster, "b_default", parent)
    for template in (parent, "b_default"):
        error = refused(
            cluster, f"CREATE DATABASE c TEMPLATE {template} TABLESPACE {tablespace}", "0A000"
        )
        assert f'"{template}" already has some tables' in str(error.diag.message_detail)
    cluster.sql("CREATE DATABASE c TEMPLATE b_default TABLESPACE pg_default")
    cluster.sql("ALTER DATABASE c SET TABLESPACE pg_default")
    assert cluster.scalar("SELECT count(*) FROM t", dbname="c") == 10
    cluster.sql("DROP DATABASE c")

    run(cluster, "b_default", "DROP TABLE t")
    cluster.sql(f"CREATE DATABASE c TEMPLATE b_default TABLESPACE {tablespace}")
    assert cluster.scalar("SELECT x FROM here", dbname="c") == 5


SEGMENT_BLOCKS = (1 << 30) // BLOCK


def grow(file: Path, blocks: int) -> None:
    """Extend a relation's first segment with zero pages while its server is stopped."""
    with file.open("r+b") as opened:
        opened.truncate(blocks * BLOCK)


def test_more_than_one_segment(cluster: Cluster) -> None:
    """A relation of over 1 GB, nearly all zero pages, spans two files.  Rows on both
    sides of the boundary, written by the parent before, and by each side after the
    branch, stay apart; so does the branch's first step over the boundary; vacuum in the
    branch may cut both files while the parent keeps its rows."""
    parent = create_database(
        cluster,
        "p_segments",
        "CREATE TABLE t (id int, v text) WITH (fillfactor = 50, autovacuum_enabled = off)",
        "INSERT INTO t SELECT i, 'low' FROM generate_series(1, 100) AS i",
    )
    file = main_fork(cluster, parent, "t")
    cluster.stop()
    grow(file, SEGMENT_BLOCKS - 3)
    cluster.start()

    def fill(dbname: str, who: str, first: int) -> None:
        run(
            cluster,
            dbname,
            f"INSERT INTO t SELECT {first} + i, '{who}' || repeat('p', 300)"
            " FROM generate_series(1, 150) AS i",
        )

    def low_rows(dbname: str) -> list[tuple[Any, ...]]:
        return cluster.sql("SELECT count(*), min(v), max(v) FROM t WHERE id <= 100", dbname=dbname)

    def high_rows(dbname: str) -> list[tuple[Any, ...]]:
        """Rows near the boundary: how many on each side, and their contents."""
        return cluster.sql(
            "SELECT count(*) FILTER (WHERE ctid < %s::tid),"
            " count(*) FILTER (WHERE ctid >= %s::tid), md5(string_agg(id || v, '|' ORDER BY id))"
            " FROM t WHERE ctid >= %s::tid",
            (f"({SEGMENT_BLOCKS},0)", f"({SEGMENT_BLOCKS},0)", f"({SEGMENT_BLOCKS - 10},0)"),
            dbname,
        )

    # The branch crosses the boundary by itself: its parent has one segment only.
    create(cluster, "b_before", parent)
    fill("b_before", "branch", 1000)
    in_before = high_rows("b_before")
    assert min(in_before[0][:2]) > 0, "the rows span the boundary"
    assert high_rows(parent)[0][:2] == (0, 0)
    fill(parent, "parent", 2000)
    in_parent = high_rows(parent)
    assert min(in_parent[0][:2]) > 0, "the rows span the boundary"

    # The boundary is inherited.
    create(cluster, "b_after", parent)
    assert high_rows("b_after") == in_parent
    run(cluster, "b_after", "UPDATE t SET v = 'changed' || id WHERE id > 100 AND id % 2 = 0")
    fill("b_after", "later", 3000)
    in_after = high_rows("b_after")
    run(cluster, parent, "DELETE FROM t WHERE id > 100 AND id % 3 = 0")
    fill(parent, "last", 4000)
    in_parent = high_rows(parent)

    create(cluster, "b_cut", "b_after")
    run(cluster, "b_cut", "DELETE FROM t WHERE id > 100", "VACUUM (TRUNCATE) t")
    assert high_rows("b_cut")[0][:2] == (0, 0)
    fill("b_cut", "new", 5000)

    expected = {parent: in_parent, "b_before": in_before, "b_after": in_after}
    for turn in ("before the crash", "after the crash"):
        for name, rows in expected.items():
            assert high_rows(name) == rows, f"{name} {turn}"
            assert low_rows(name) == [(100, "low", "low")], f"{name} {turn}"
        assert cluster.sql(
            "SELECT count(*), count(*) FILTER (WHERE id > 5000) FROM t", dbname="b_cut"
        ) == [(250, 150)], turn
        if turn == "before the crash":
            cluster.crash()
    assert disk_bytes(relation_files(cluster, "b_after")) < 64 << 20, "own files stay sparse"
    healthy(cluster)
    calm_log(cluster)
