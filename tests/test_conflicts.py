"""Conflicts that a strategy decides, many at once, and rows that are long."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_cluster import Cluster, wait_for

# Characters of a value: three of them do not fit into the text that is read as one jsonb.
LONG = 23_000_000
# Many rows with such would take minutes.
NOT_SO_LONG = 400_000


@pytest.fixture(scope="module")
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "conflicts", {"autovacuum": "off"})
    yield made
    made.destroy()


def pair(cluster: Cluster, name: str, rows: int, length: int) -> None:
    """Database ``name`` and its branch, in which all rows were changed differently; one is long."""
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, v int, w text);"
        f"INSERT INTO t SELECT g, 0, 'base' FROM generate_series(1, {rows}) AS g;"
        f"UPDATE t SET w = repeat('base', {length // 4}) WHERE id = {rows}",
        name,
    )
    cluster.sql(f"CREATE DATABASE {name}_b TEMPLATE {name} STRATEGY branch")
    for dbname, letter in ((name, "o"), (f"{name}_b", "t")):
        cluster.psql(
            f"UPDATE t SET v = ascii('{letter}'), w = repeat('{letter}', length(w))", dbname
        )


WHOLE = "SELECT id, v, length(w), left(w, 1) FROM t ORDER BY id"
VERSIONS = """
SELECT kind, key, columns, length(base_row ->> 'w'), length(our_row ->> 'w'),
    length(their_row ->> 'w'), left(our_row ->> 'w', 1), resolution
FROM branch.conflict_rows(%s) ORDER BY (key ->> 'id')::int DESC LIMIT 2"""


def versions(rows: int, length: int, resolution: str | None) -> list[tuple[object, ...]]:
    return [
        ("update_update", {"id": n}, ["v", "w"], size, size, size, "o", resolution)
        for n, size in ((rows, length), (rows - 1, 4))
    ]


def test_very_long_row(cluster: Cluster) -> None:
    """A conflict that is longer than what is read as one jsonb is told like others."""
    pair(cluster, "very_long", 2, LONG)
    ((merge, conflicts),) = cluster.sql(
        "SELECT merge_id, conflicts FROM branch.merge('very_long_b', 'very_long')"
    )
    assert conflicts == 2
    assert cluster.sql(VERSIONS, [merge]) == versions(2, LONG, None)


@pytest.mark.parametrize("rows", [3, 200], ids=["one by one", "at once"])
def test_long_rows(cluster: Cluster, rows: int) -> None:
    """Conflicts are told, decided by a strategy or later, and taken back."""
    name = f"long_{rows}"
    pair(cluster, name, rows, NOT_SO_LONG)
    before = cluster.sql(WHOLE, dbname=name)
    there = cluster.sql(WHOLE, dbname=f"{name}_b")
    merge = f"SELECT merge_id, conflicts, rows_applied FROM branch.merge('{name}_b', '{name}'"
    ((done, conflicts, applied),) = cluster.sql(f"{merge}, 'theirs')")
    assert (conflicts, applied) == (rows, rows)
    assert cluster.sql(VERSIONS, [done]) == versions(rows, NOT_SO_LONG, "theirs")
    assert cluster.sql(WHOLE, dbname=name) == there
    assert cluster.sql("SELECT rows_applied FROM branch.revert(%s)", [done]) == [(rows,)]
    assert cluster.sql(WHOLE, dbname=name) == before
    cluster.sql("UPDATE t SET v = 7", dbname=f"{name}_b")
    ((found, conflicts, applied),) = cluster.sql(f"{merge})")
    assert (conflicts, applied) == (rows, 0)
    assert cluster.sql("SELECT count(*) FROM branch.conflict_rows(%s)", [found]) == [(rows,)]
    assert cluster.sql(WHOLE, dbname=name) == before
    resolved = "SELECT rows_applied FROM branch.conflicts_resolve(%s, 'theirs')"
    assert cluster.sql(resolved, [found]) == [(rows,)]
    assert {v for _, v, _, _ in cluster.sql(WHOLE, dbname=name)} == {7}


def highest_memory(pid: int) -> int:
    """In bytes, of all its life."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_long_rows_are_written_down_a_few_at_a_time(cluster: Cluster) -> None:
    """What is done when conflicts are decided at once is kept; rows are long that take little
    space in the table they are staged in."""
    pair(cluster, "few", 24, 4)
    for dbname in ("few", "few_b"):
        cluster.psql("UPDATE t SET w = repeat(left(w, 1), 1000000)", dbname)
    merged = "SELECT merge_id, conflicts FROM branch.merge('few_b', 'few')"
    ((merge, conflicts),) = cluster.sql(merged)
    assert conflicts == 24
    with cluster.connect() as conn:
        conn.execute("SELECT * FROM branch.preview_merge('few_b', 'few')")
        start = highest_memory(conn.info.backend_pid)
        resolved = "SELECT rows_applied FROM branch.conflicts_resolve(%s, 'theirs')"
        assert conn.execute(resolved, [merge]).fetchall() == [(24,)]
        grown = highest_memory(conn.info.backend_pid) - start
    print(f"{grown / (1 << 20):.1f} MB more than before")
    assert grown < 32 << 20
    assert {letter for _, _, _, letter in cluster.sql(WHOLE, dbname="few")} == {"t"}


def test_decided_by_two_at_once(cluster: Cluster) -> None:
    """One merges, what was found and no more; the other one says that it is done."""
    name = "two"
    pair(cluster, name, 3, 4)
    ((merge,),) = cluster.sql("SELECT merge_id FROM branch.merge(%s)", (f"{name}_b",))
    resolve = "SELECT merge_id FROM branch.conflicts_resolve(%s, 'theirs')"
    cluster.psql("UPDATE t SET v = 0 WHERE id = 1", f"{name}_b")
    with cluster.connect(name, autocommit=False) as holder, ThreadPoolExecutor() as pool:
        holder.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
        calls = [pool.submit(cluster.sql, resolve, (merge,)) for _ in range(2)]
        wait_for(
            lambda: (
                cluster.scalar(
                    "SELECT count(DISTINCT locktype) FROM pg_locks WHERE NOT granted"
                    " AND locktype IN ('advisory', 'relation')"
                )
                == 2
            ),
            what="both to wait",
        )
        holder.rollback()
        done = [call.result() for call in calls if call.exception() is None]
        (refused,) = (call.exception() for call in calls if call.exception() is not None)
    assert isinstance(refused, psycopg.errors.ObjectNotInPrerequisiteState)
    assert cluster.sql("SELECT DISTINCT v FROM t", dbname=name) == [(ord("t"),)]
    note = cluster.scalar("SELECT note FROM branch.merges WHERE id = %s", (merge,))
    assert note == f"merge {done[0][0][0]}"


def test_unknown_merge(cluster: Cluster) -> None:
    cluster.sql("CREATE ROLE somebody")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="has made no merge 0"):
        cluster.sql("SELECT * FROM branch.conflict_rows(0)")
    with cluster.connect() as conn:
        ((merge,),) = conn.execute("SELECT max(id) FROM branch.merges")
        conn.execute("SET ROLE somebody")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=f"no merge {merge}"):
            conn.execute("SELECT * FROM branch.conflict_rows(%s)", [merge])
