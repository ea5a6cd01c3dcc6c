"""Merges of listed tables: what others have is still to come, and nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster
from ab_merge import branch_of_branch
from agent_branch.mergeparts import Base, Part, divide

TABLES = """
CREATE TABLE one (id serial PRIMARY KEY, v int);
CREATE TABLE two (id int PRIMARY KEY, v int);
CREATE TABLE parts (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE high PARTITION OF parts FOR VALUES FROM (100) TO (200);
CREATE TABLE bag (v int);
INSERT INTO one SELECT g, 0 FROM generate_series(1, 5) AS g;
SELECT setval('one_id_seq', 5);
INSERT INTO two SELECT g, 0 FROM generate_series(1, 5) AS g;
INSERT INTO parts SELECT g * 30, 0 FROM generate_series(1, 5) AS g;
INSERT INTO bag VALUES (1), (1);
CREATE TABLE child (id int PRIMARY KEY, two int REFERENCES two, one int REFERENCES one ON DELETE CASCADE);
CREATE SEQUENCE loose;
"""  # noqa: E501


@pytest.fixture(scope="module")
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "merge_listed", {"autovacuum": "off", "fsync": "off"})
    made.sql(TABLES, dbname="main")
    yield made
    made.destroy()


@pytest.fixture
def b(cluster: Cluster) -> Iterator[str]:
    """A branch of p, which is one of main."""
    with branch_of_branch(cluster):
        yield "b"


def merge(
    cluster: Cluster, source: str, target: str, *tables: str, strategy: str = "manual"
) -> tuple[int, int, int]:
    """(merge, rows applied, conflicts)."""
    ((number, applied, conflicts),) = cluster.sql(
        "SELECT merge_id, rows_applied, conflicts"
        " FROM branch.merge(%s, %s, strategy => %s, tables => %s)",
        [source, target, strategy, list(tables) or None],
    )
    return number, applied, conflicts


def values(cluster: Cluster, database: str) -> list[Any]:
    names = ("one", "two", "parts")
    return cluster.sql(
        " UNION ALL ".join(f"SELECT '{n}', id, v FROM {n}" for n in names)
        + " UNION ALL SELECT 'bag', NULL, v FROM bag ORDER BY 1, 2, 3",
        dbname=database,
    )


def test_the_rest_comes_later(cluster: Cluster, b: str) -> None:
    cluster.sql(
        "UPDATE one SET v = 1 WHERE id = 1; UPDATE two SET v = 1 WHERE id = 1;"
        "UPDATE parts SET v = 1; INSERT INTO bag VALUES (2);"
        "INSERT INTO one (v) VALUES (9); SELECT nextval('loose')",
        dbname=b,
    )
    seen = cluster.sql("SELECT table_name FROM branch.preview_merge('b', tables => '{one,two}')")
    assert seen == [("public.one",), ("public.two",)]
    assert merge(cluster, b, "p", "one")[1:] == (2, 0)
    # The branch gets nothing of its own back.
    assert merge(cluster, "p", b, "one", "two")[1:] == (0, 0)
    assert cluster.sql("SELECT last_value FROM one_id_seq", dbname="p") == [(6,)]
    assert cluster.sql("SELECT is_called FROM loose", dbname="p") == [(False,)]
    assert merge(cluster, b, "p")[1:] == (7, 0)
    assert values(cluster, "p") == values(cluster, b)
    assert cluster.sql("SELECT is_called FROM loose", dbname="p") == [(True,)]
    assert merge(cluster, b, "p")[1:] == merge(cluster, "p", b)[1:] == (0, 0)


def test_nothing_comes_twice(cluster: Cluster, b: str) -> None:
    """What the target has changed back since it was merged stays so; in both directions."""
    cluster.sql("UPDATE one SET v = 1; UPDATE two SET v = 1; INSERT INTO bag VALUES (2)", dbname=b)
    assert merge(cluster, b, "p", "one")[1:] == (5, 0)
    cluster.sql("UPDATE one SET v = 0 WHERE id = 1; UPDATE two SET v = 7 WHERE id = 5", dbname="p")
    assert merge(cluster, b, "p", "one")[1:] == (0, 0)
    assert merge(cluster, b, "p", strategy="ours")[1:] == (5, 1)
    assert cluster.sql("SELECT v FROM one WHERE id = 1", dbname="p") == [(0,)]
    assert cluster.sql("SELECT v FROM two WHERE id = 5", dbname="p") == [(7,)]
    assert merge(cluster, b, "p")[1:] == (0, 0)
    # And back: of one table first, then of all.
    assert merge(cluster, "p", b, "two")[1:] == (1, 0)
    assert merge(cluster, "p", b)[1:] == (1, 0)
    assert values(cluster, "p") == values(cluster, b)
    assert merge(cluster, "p", b)[1:] == (0, 0)


def test_partitions(cluster: Cluster, b: str) -> None:
    """A partitioned table stands for its partitions, one of them for itself."""
    cluster.sql("UPDATE parts SET v = 1", dbname=b)
    assert merge(cluster, b, "p", "low")[1:] == (3, 0)
    assert merge(cluster, b, "p", "parts")[1:] == (2, 0)
    assert merge(cluster, b, "p")[1:] == (0, 0)
    ((options,),) = cluster.sql("SELECT options FROM branch.merges WHERE options <> '{}' LIMIT 1")
    assert options["tables"]


def test_strategies_of_partitions(cluster: Cluster, b: str) -> None:
    """A partitioned table's strategy is that of its partitions that have none of their own."""
    cluster.sql("UPDATE parts SET v = 1", dbname=b)
    cluster.sql("UPDATE parts SET v = 2", dbname="p")
    call = "SELECT rows_applied, conflicts FROM branch.merge('b', strategies => %s::jsonb)"
    chosen = '{"low": "ours", "parts": "theirs"}'
    ((rows,),) = cluster.sql(
        "SELECT sum(rows_updated) FROM branch.preview_merge('b', strategies => %s::jsonb)", [chosen]
    )
    assert rows == 2
    assert cluster.sql(call, [chosen]) == [(2, 5)]
    assert cluster.sql("SELECT DISTINCT id >= 100, v FROM parts ORDER BY 1", dbname="p") == [
        (False, 2),
        (True, 1),
    ]
    with pytest.raises(psycopg.errors.UndefinedTable, match="partes"):
        cluster.sql(call, ['{"partes": "theirs"}'])


def test_strategies_of_partitions_in_a_revert(cluster: Cluster, b: str) -> None:
    """As in the merge that it takes back."""
    cluster.sql("UPDATE parts SET v = 1", dbname=b)
    merge = cluster.scalar("SELECT merge_id FROM branch.merge('b')")
    cluster.sql("UPDATE parts SET v = 3", dbname="p")
    call = "SELECT rows_applied, conflicts FROM branch.revert(%s, strategies => %s::jsonb)"
    assert cluster.sql(call, [merge, '{"low": "ours", "parts": "theirs"}']) == [(2, 5)]
    assert cluster.sql("SELECT DISTINCT id >= 100, v FROM parts ORDER BY 1", dbname="p") == [
        (False, 3),
        (True, 0),
    ]
    with pytest.raises(psycopg.errors.UndefinedTable, match=r'"partes" does not exist in .* "p"'):
        cluster.sql(call, [merge, '{"partes": "theirs"}'])


def test_foreign_keys_to_others(cluster: Cluster, b: str) -> None:
    """A row that points to one that is not merged, and one that takes along what is not."""
    cluster.sql(
        "INSERT INTO two VALUES (50, 0); INSERT INTO child VALUES (1, 50, 1);"
        "DELETE FROM one WHERE id = 2",
        dbname=b,
    )
    cluster.sql("INSERT INTO child VALUES (2, 1, 2)", dbname="p")
    number, applied, conflicts = merge(cluster, b, "p", "child", "one")
    assert (applied, conflicts) == (0, 2)
    found = cluster.sql(
        "SELECT table_name, kind, constraint_name FROM branch.conflict_rows(%s) ORDER BY 1",
        [number],
    )
    assert found == [
        ("public.child", "cascade", "child_one_fkey"),
        ("public.child", "constraint", "child_two_fkey"),
    ]
    assert merge(cluster, b, "p", "child", "two")[1:] == (2, 0)


def test_resolved_and_taken_back(cluster: Cluster, b: str) -> None:
    """Conflicts of listed tables are decided for these; a revert takes back these."""
    cluster.sql("UPDATE one SET v = 1; UPDATE two SET v = 1", dbname=b)
    cluster.sql("UPDATE one SET v = 2 WHERE id = 1", dbname="p")
    number, *_ = merge(cluster, b, "p", "one")
    resolve = "SELECT merge_id, rows_applied, conflicts FROM branch.conflicts_resolve(%s, 'theirs')"
    ((number, applied, conflicts),) = cluster.sql(resolve, [number])
    assert (applied, conflicts) == (5, 1)
    assert cluster.sql("SELECT max(v) FROM two", dbname="p") == [(0,)]
    assert cluster.sql("SELECT rows_applied FROM branch.revert(%s)", [number]) == [(5,)]
    assert cluster.sql("SELECT v FROM one WHERE id = 1", dbname="p") == [(2,)]
    # As after any merge, what was taken back is the target's own: it does not come again.
    assert merge(cluster, b, "p")[1:] == (5, 0)
    assert cluster.sql("SELECT max(v) FROM one", dbname="p") == [(2,)]
    assert merge(cluster, "p", b)[1:] == (5, 0)
    assert values(cluster, "p") == values(cluster, b)


def test_decided_again_row_by_row(cluster: Cluster, b: str) -> None:
    """The target has changed meanwhile: the merge is run again, of the same tables."""
    cluster.sql("UPDATE one SET v = 1; UPDATE two SET v = 1", dbname=b)
    cluster.sql("UPDATE one SET v = 2 WHERE id = 1", dbname="p")
    number, *_ = merge(cluster, b, "p", "one")
    cluster.sql("UPDATE one SET v = 1 WHERE id = 3", dbname="p")
    found = cluster.sql(
        "SELECT rows_applied, conflicts FROM branch.conflicts_resolve(%s, 'theirs')", [number]
    )
    assert found == [(4, 1)]
    assert cluster.sql("SELECT max(v) FROM two", dbname="p") == [(0,)]


def test_base_is_kept(cluster: Cluster, b: str) -> None:
    """Bases of listed tables are kept until each of these is merged again."""
    kept = (
        "SELECT count(*) FROM branch.merge_log AS m WHERE m.target_name = 'p' AND EXISTS ("
        " SELECT FROM pg_database AS d"
        " WHERE d.datname = 'agent_branch_snapshot_' || m.source_snapshot)"
    )
    cluster.sql("UPDATE one SET v = 1; UPDATE two SET v = 1", dbname=b)
    merge(cluster, b, "p", "one", "two")
    for expected, tables in ((2, ["one"]), (2, ["two"]), (1, [])):
        cluster.sql("UPDATE one SET v = v + 1; UPDATE two SET v = v + 1", dbname=b)
        merge(cluster, b, "p", *tables)
        cluster.sql("SELECT branch.gc()")
        assert cluster.scalar(kept) == expected
    assert merge(cluster, b, "p")[1:] == (0, 0)
    assert values(cluster, "p") == values(cluster, b)


def test_other_definitions_are_not_looked_at(cluster: Cluster, b: str) -> None:
    cluster.sql(
        "ALTER TABLE two ADD w int; UPDATE one SET v = 1; CREATE TABLE new (id int)", dbname=b
    )
    assert merge(cluster, b, "p", "one")[1:] == (5, 0)
    for name in ("two", "new"):
        number, _, conflicts = merge(cluster, b, "p", name)
        assert conflicts == 1
        kinds = cluster.sql("SELECT kind FROM branch.conflict_rows(%s)", [number])
        assert kinds == [("schema",)]
    result = "SELECT rows_applied, conflicts FROM branch.merge('b', schema => 'additive')"
    assert cluster.sql(result) == [(0, 0)]
    assert cluster.sql("SELECT w FROM two LIMIT 1", dbname="p") == [(None,)]


def test_new_column_after_it_was_left_out(cluster: Cluster, b: str) -> None:
    """A column that a merge of listed tables has ignored comes with its values later."""
    cluster.sql("ALTER TABLE one ADD w int; UPDATE one SET w = id, v = 1", dbname=b)
    ignore = "SELECT rows_applied FROM branch.merge('b', tables => '{one}', schema => 'ignore')"
    assert cluster.sql(ignore) == [(5,)]
    additive = "SELECT conflicts FROM branch.merge('b', schema => 'additive')"
    assert cluster.sql(additive) == [(0,)]
    assert cluster.sql("SELECT count(*) FROM one WHERE w = id AND v = 1", dbname="p") == [(5,)]


def test_new_column_and_what_was_merged_without_it(cluster: Cluster, b: str) -> None:
    """With its values come no rows again that the target has changed back, or deleted, since."""
    cluster.sql(
        "ALTER TABLE one ADD w int DEFAULT 7; UPDATE one SET w = id, v = 1 WHERE id < 3;"
        "INSERT INTO one VALUES (50, 50, 50)",
        dbname=b,
    )
    ignore = "SELECT rows_applied FROM branch.merge('b', tables => '{one}', schema => 'ignore')"
    assert cluster.sql(ignore) == [(3,)]
    cluster.sql("UPDATE one SET v = 0 WHERE id = 1; DELETE FROM one WHERE id = 50", dbname="p")
    cluster.sql("UPDATE one SET w = 9 WHERE id = 3", dbname=b)
    additive = "SELECT conflicts FROM branch.merge('b', schema => 'additive')"
    assert cluster.sql(additive) == [(0,)]
    found = cluster.sql("SELECT id, v, w FROM one WHERE id IN (1, 2, 3, 4, 50)", dbname="p")
    assert sorted(found) == [(1, 0, 1), (2, 1, 2), (3, 0, 9), (4, 0, 7)]


def test_arguments(cluster: Cluster, b: str) -> None:
    for tables, schema, state in (
        (["nothing"], "stop", "42P01"),
        (["one", None], "stop", "22023"),
        ([], "stop", "22023"),
        (["a.b.c"], "stop", "22023"),
        (["one"], "additive", "22023"),
    ):
        for call in (
            "SELECT branch.merge('b', tables => %s, schema => %s)",
            "SELECT branch.preview_merge('b', tables => %s, schema => %s)",
            "SELECT branch.sync('b', tables => %s, schema => %s)",
        ):
            with pytest.raises(psycopg.Error) as refused:
                cluster.sql(call, [tables, schema])
            assert refused.value.sqlstate == state
    cluster.sql("UPDATE one SET v = 3; UPDATE two SET v = 3", dbname="p")
    assert cluster.sql("SELECT rows_applied FROM branch.sync('b', tables => '{one}')") == [(5,)]
    assert cluster.sql("SELECT rows_applied FROM branch.sync('b')") == [(5,)]


A, B, C = ("s", "a"), ("s", "b"), ("s", "c")


def test_parts() -> None:
    of_all = Base("x", 1)
    of_a, of_ab = Base("y", 1, frozenset({A})), Base("z", 2, frozenset({A, B}))
    assert divide([]) == [Part(None)]
    assert divide([of_all, of_a]) == [Part(of_all)]
    found = divide([of_a, of_ab, of_all])
    assert found == [
        Part(of_a, frozenset({A})),
        Part(of_ab, frozenset({B})),
        Part(of_all, None, frozenset({A, B})),
    ]
    assert [[part.has(name) for name in (A, B, C)] for part in found] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert divide([of_a, of_ab], frozenset({B})) == [Part(of_ab, frozenset({B}))]
    assert divide([of_a], frozenset({A, C})) == [
        Part(of_a, frozenset({A})),
        Part(None, frozenset({C})),
    ]
