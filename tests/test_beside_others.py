"""Beside libraries and types that others have made: those that come with the server.

auto_explain and pg_stat_statements are in the same hooks, before and after ours; bloom is an access
method that logs its pages by the server's generic records.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_checks import healthy, run
from ab_cluster import Cluster

ORDERS = [
    "agent_branch, pg_stat_statements, auto_explain",
    "auto_explain, pg_stat_statements, agent_branch",
]

EXTENSIONS = [
    *("bloom", "citext", "cube", "hstore", "isn", "ltree", "seg", "intarray", "pg_trgm"),
    *("pg_stat_statements", "amcheck"),
]
SETUP = [
    *(f"CREATE EXTENSION {name}" for name in EXTENSIONS),
    "CREATE TABLE kinds (id citext PRIMARY KEY, h hstore, l ltree, c cube, s seg, i isbn13,"
    " a int[])",
    "INSERT INTO kinds SELECT 'K' || g, hstore('a', g::text), ('top.x' || g)::ltree, cube(g),"
    " (g || ' .. ' || g + 1)::seg, isbn13('9780000000002'), ARRAY[g, 1]"
    " FROM generate_series(1, 2000) AS g",
    "CREATE INDEX kinds_l ON kinds USING gist (l)",
    "CREATE INDEX kinds_h ON kinds USING gin (h)",
    "CREATE INDEX kinds_a ON kinds USING gist (a gist__int_ops)",
    "CREATE TABLE words (id int PRIMARY KEY, w text, n int)",
    "INSERT INTO words SELECT g, 'word' || g % 300, g % 17 FROM generate_series(1, 20000) AS g",
    "CREATE INDEX words_bloom ON words USING bloom (w, n)",
    "CREATE INDEX words_trgm ON words USING gin (w gin_trgm_ops)",
]


@pytest.fixture(scope="module", params=ORDERS, ids=["before", "after"])
def beside(cluster_base: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "beside_" + request.param.split(",")[0],
        {
            "shared_preload_libraries": f"'{request.param}'",
            "auto_explain.log_min_duration": "1h",
            "auto_explain.log_analyze": "on",
            "pg_stat_statements.track": "all",
        },
    )
    run(made, "main", *SETUP)
    yield made
    made.destroy()


def counts(cluster: Cluster, database: str) -> tuple[object, ...]:
    """Of rows, by their indexes and by the table; both are the same."""
    conditions = {
        "words": ["w = 'word7' AND n = 3", "w = 'changed'", "w LIKE '%d29%'"],
        "kinds": ["l <@ 'top'", "l <@ 'other'", "h ? 'b'", "a @> '{1}'", "a @> '{-1}'"],
    }
    found = []
    with cluster.connect(database) as conn:
        for table, those in conditions.items():
            for condition in those:
                query = f"SELECT count(*) FROM {table} WHERE {condition}"
                both = []
                for setting in ("on", "off"):
                    conn.execute(f"SET enable_seqscan = {setting}".encode())
                    both += conn.execute(query.encode()).fetchall()
                assert both[0] == both[1], query
                found.append(both[0][0])
    return tuple(found)


def test_branch_merge_and_crash(beside: Cluster) -> None:
    first = counts(beside, "main")
    beside.sql("SELECT branch.create('b', 'main')")
    run(
        beside,
        "b",
        "UPDATE words SET w = 'changed' WHERE id % 100 = 1",
        "INSERT INTO words SELECT g, 'word7', 3 FROM generate_series(30001, 30020) AS g",
        "UPDATE kinds SET h = h || 'b=>1', l = 'other.x', a = '{-1}' WHERE id IN ('k1', 'K2')",
        "DELETE FROM kinds WHERE id = 'k3'",
    )
    run(beside, "main", "UPDATE kinds SET c = cube(-1) WHERE id IN ('k2', 'k4')", "VACUUM words")
    there = counts(beside, "b")
    assert counts(beside, "main") == first
    assert there[1] == 200
    assert there[4:6] == (2, 2)
    assert beside.sql(
        "SELECT rows_applied, conflicts FROM branch.merge('b')",
    ) == [(223, 0)]
    assert counts(beside, "main") == there
    beside.crash()
    assert counts(beside, "main") == counts(beside, "b") == there
    for database in ("main", "b"):
        beside.sql(
            "SELECT bt_index_check(i.indexrelid, true) FROM pg_index AS i"
            " JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam"
            " WHERE a.amname = 'btree'",
            dbname=database,
        )
    healthy(beside)


def test_each_counts(beside: Cluster) -> None:
    """Statements in a branch are counted by both libraries, and explained."""
    beside.sql("SELECT branch.create('counted', 'main')")
    before = beside.scalar("SELECT request_count FROM branch.usage WHERE name = 'counted'")
    with beside.connect("counted") as conn:
        for n in range(5):
            conn.execute("SELECT count(*) FROM words WHERE n = %s", (n,))
        conn.execute("SET auto_explain.log_min_duration = 0; SELECT 'to be explained'")
    assert (
        beside.scalar(
            "SELECT sum(calls)::int FROM pg_stat_statements AS s"
            " JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = 'counted'"
            " AND s.query LIKE '%words WHERE n = %'",
            dbname="main",
        )
        == 5
    )
    assert "Query Text: SET auto_explain" in beside.log_text()
    beside.sql("SELECT branch.suspend('counted')")
    after = beside.scalar("SELECT request_count FROM branch.usage WHERE name = 'counted'")
    assert after - before >= 7
