"""Continuous sync of two databases of a server (branch.sync_start)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for
from agent_branch.errors import ReportedError
from agent_branch.syncplan import Published, choose_tables, conninfo, slot_name
from agent_branch.uri import Endpoint

LEFT = (
    "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_subscription)"
    " + (SELECT count(*) FROM branch.syncs)"
)


@pytest.fixture(scope="module")
def cluster(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "sync", {"wal_level": "logical", "autovacuum": "off"})
    yield made
    made.destroy()


def rows(cluster: Cluster, database: str, table: str = "t") -> list[Any]:
    return cluster.sql(f"SELECT * FROM {table} ORDER BY id", dbname=database)


def prepare(cluster: Cluster, name: str) -> None:
    """Database ``name`` and its branch ``name``_b."""
    cluster.sql(f"CREATE DATABASE {name}")
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) AS g;"
        "CREATE TABLE bag (v text)",
        dbname=name,
    )
    cluster.sql("SELECT branch.create(%s, %s)", [f"{name}_b", name])


def test_a_life(cluster: Cluster) -> None:
    """What was changed before and after comes, what the target has of its own stays; nobody
    inherits the sync; it stands in the way of deletion, and leaves nothing when it ends."""
    prepare(cluster, "life")
    cluster.sql("UPDATE t SET v = 'before' WHERE id = 1", dbname="life")
    cluster.sql(
        "UPDATE t SET v = 'own' WHERE id = 9; INSERT INTO t VALUES (100, 'own')", dbname="life_b"
    )
    name = cluster.scalar("SELECT branch.sync_start('life', 'life_b')")
    cluster.sql(
        "UPDATE t SET v = 'after' WHERE id = 2; DELETE FROM t WHERE id = 3;"
        "INSERT INTO t VALUES (11, 'new'); INSERT INTO bag VALUES ('without a key')",
        dbname="life",
    )
    wanted = [(1, "before"), (2, "after"), *((i, "v") for i in range(4, 9)), (9, "own")]
    wanted += [(10, "v"), (11, "new"), (100, "own")]
    wait_for(lambda: rows(cluster, "life_b") == wanted, what="the changes to come")
    assert cluster.sql("SELECT name, source, target, errors FROM branch.syncs") == [
        (name, "life", "life_b", 0)
    ]
    wait_for(
        lambda: cluster.scalar("SELECT state FROM branch.syncs") == "running", what="it to run"
    )
    for parent in ("life", "life_b"):
        cluster.sql("SELECT branch.create(%s, %s)", [f"{parent}_copy", parent])
    assert cluster.scalar("SELECT count(*) FROM pg_subscription") == 1
    for source, target, message in (
        ("life", "life_b", "is synced with .life. already"),
        ("life_b", "life", "is synced with .life_b. already|is synced with .life. already"),
    ):
        with pytest.raises(psycopg.Error, match=message):
            cluster.sql("SELECT branch.sync_start(%s, %s)", [source, target])
    for copy in ("life_b_copy", "life_copy"):
        cluster.sql("SELECT branch.delete(%s, hard => true)", [copy])
    with pytest.raises(psycopg.errors.ObjectInUse, match="subscription"):
        cluster.sql("SELECT branch.delete('life_b', hard => true)")
    cluster.sql("SELECT branch.sync_stop('life', 'life_b')")
    assert cluster.scalar(LEFT) == 0
    assert cluster.sql("SELECT pubname FROM pg_publication", dbname="life") == []
    # Both ways may be merged further; nothing that was replicated is in conflict.
    cluster.sql("UPDATE t SET v = 'later' WHERE id = 2", dbname="life")
    merged = cluster.sql("SELECT rows_applied, conflicts FROM branch.merge('life', 'life_b')")
    assert merged == [(1, 0)]
    cluster.sql("SELECT branch.delete('life_b', hard => true)")
    cluster.sql("DROP DATABASE life")


def test_no_change_is_lost_while_it_starts(cluster: Cluster) -> None:
    """Clients write all the time; each of their rows arrives once."""
    prepare(cluster, "busy")
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        with cluster.connect("busy") as conn:
            number = 1000
            while not stop.is_set():
                conn.execute("INSERT INTO t VALUES (%s, 'x')", [number])
                conn.execute("UPDATE t SET v = v || 'y' WHERE id = %s", [number - 3])
                number += 1
            written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        cluster.sql("SELECT branch.sync_start('busy', 'busy_b')")
        wait_for(lambda: len(rows(cluster, "busy_b")) > 20, what="rows to come")
    finally:
        stop.set()
        writer.join()
    assert written
    wait_for(lambda: rows(cluster, "busy_b") == rows(cluster, "busy"), what="the last rows to come")
    assert cluster.scalar("SELECT errors FROM branch.syncs") == 0
    cluster.sql("SELECT branch.sync_stop(NULL, 'busy_b')")
    assert cluster.scalar(LEFT) == 0


def test_what_fails_leaves_nothing(cluster: Cluster) -> None:
    prepare(cluster, "fails")
    start = "SELECT branch.sync_start('fails', 'fails_b', %s, %s)"
    for tables, connection, message in (
        (["bag"], None, "cannot be told apart"),
        (["t", None], None, "must not have nulls"),
        (["nothing"], None, 'table "nothing" does not exist'),
        (["public.t"], "host=/nowhere", "could not connect to the publisher"),
    ):
        with pytest.raises(psycopg.Error, match=message):
            cluster.sql(start, [tables, connection])
        assert cluster.scalar(LEFT) == 0
        assert cluster.sql("SELECT pubname FROM pg_publication", dbname="fails") == []
    # Both have changed one row: somebody has to decide.
    for name in ("fails", "fails_b"):
        cluster.sql(f"UPDATE t SET v = '{name}' WHERE id = 1", dbname=name)
    with pytest.raises(psycopg.Error, match="in conflict"):
        cluster.sql(start, [["t"], None])
    assert cluster.scalar(LEFT) == 0
    # The slot waits for all who write, this transaction among them.
    with cluster.connect(autocommit=False) as conn:
        conn.execute("CREATE TEMP TABLE x ()")
        with pytest.raises(psycopg.errors.DeadlockDetected):
            conn.execute(start, [["t"], None])
    assert cluster.scalar(LEFT) == 0


def test_commits_that_are_not_on_disk(cluster: Cluster) -> None:
    """What was committed just before without waiting for the disk does not come twice."""
    prepare(cluster, "async")
    with cluster.connect("async") as conn:
        conn.execute("SET synchronous_commit = off")
        stop = threading.Event()
        written: list[int] = []

        def write() -> None:
            number = 1000
            while not stop.is_set():
                conn.execute("INSERT INTO t VALUES (%s, 'x')", [number])
                number += 1
            written.append(number)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            cluster.sql("SELECT branch.sync_start('async', 'async_b')")
        finally:
            stop.set()
            writer.join()
    wait_for(
        lambda: (
            rows(cluster, "async_b") == rows(cluster, "async")
            or cluster.scalar("SELECT sum(errors) FROM branch.syncs") > 0
        ),
        what="the rows to come",
    )
    assert cluster.scalar("SELECT errors FROM branch.syncs") == 0
    cluster.sql("SELECT branch.sync_stop('async', 'async_b')")
    assert cluster.scalar(LEFT) == 0


def test_crash_while_it_starts(cluster: Cluster) -> None:
    """What is left of it is not taken for a sync, nor by another one for its own, and goes."""
    prepare(cluster, "cut")
    start = "SELECT branch.sync_start('cut', 'cut_b')"
    cluster.sql("UPDATE t SET v = 'x' WHERE id = 1", dbname="cut")
    holding = cluster.connect("cut_b", autocommit=False)
    with closing(holding) as holder, ThreadPoolExecutor() as pool:
        holder.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
        starting = pool.submit(cluster.sql, start)
        wait_for(
            lambda: cluster.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted"),
            what="the merge to wait for the table",
        )
        with pytest.raises(psycopg.errors.DuplicateObject, match="is being started"):
            cluster.sql(start)
        assert cluster.scalar(LEFT) == 1
        cluster.crash()
        assert starting.exception() is not None
    assert cluster.scalar(LEFT) == 1
    with pytest.raises(psycopg.errors.DuplicateObject, match="was broken off"):
        cluster.sql(start)
    stop = "SELECT branch.sync_stop('cut', 'cut_b')"
    cluster.sql(stop)
    assert cluster.scalar(LEFT) == 0
    assert cluster.sql("SELECT pubname FROM pg_publication", dbname="cut") == []
    cluster.sql(start)
    cluster.sql(stop)
    with pytest.raises(psycopg.errors.UndefinedObject):
        cluster.sql(stop)


def test_listed_tables(cluster: Cluster) -> None:
    """Only what is listed changes: neither at its begin nor at its end others are merged."""
    prepare(cluster, "few")
    start = "SELECT branch.sync_start('few', 'few_b', ARRAY['t'])"
    cluster.sql("INSERT INTO bag VALUES ('mine')", dbname="few")
    cluster.sql("UPDATE t SET v = 'before' WHERE id = 1", dbname="few")
    cluster.sql(start)
    cluster.sql(
        "INSERT INTO bag VALUES ('mine'); UPDATE t SET v = 'after' WHERE id = 2", dbname="few"
    )
    wait_for(lambda: rows(cluster, "few_b") == rows(cluster, "few"), what="the changes to come")
    with cluster.connect() as conn:
        notices: list[str] = []
        conn.add_notice_handler(lambda d: notices.append(str(d.message_primary)))
        conn.execute("SELECT branch.sync_stop('few', 'few_b')")
    assert notices == []
    assert cluster.scalar(LEFT) == 0
    assert cluster.sql("SELECT * FROM bag", dbname="few_b") == []
    # What was replicated is in common: it is no conflict when it changes again.
    cluster.sql("UPDATE t SET v = 'again' WHERE id IN (1, 2)", dbname="few")
    merged = cluster.sql("SELECT rows_applied, conflicts FROM branch.merge('few', 'few_b')")
    assert merged == [(4, 0)]
    cluster.sql("SELECT branch.delete('few_b', hard => true)")
    cluster.sql("DROP DATABASE few")


KNOWN = [
    Published("a", "t", told_apart=True),
    Published("b", "t", told_apart=True),
    Published("b", "u", told_apart=False),
]


def test_tables() -> None:
    assert choose_tables(KNOWN, None, "d") == KNOWN[:2]
    assert choose_tables(KNOWN, [["b", "t"], ["b", "t"]], "d") == [KNOWN[1]]
    for asked in ([["t"]], [["c", "t"]], [["u"]], [["d", "b", "t"]], []):
        with pytest.raises(ReportedError):
            choose_tables(KNOWN, asked, "d")


def test_connection() -> None:
    endpoint = Endpoint("/run/one, /tmp", "", 5433)
    assert slot_name(1, 4294967295) == "agent_branch_sync_1_4294967295"
    assert conninfo("it's", endpoint, "me", None) == (
        r"host='/run/one' port='5433' user='me' dbname='it\'s'"
    )
    assert conninfo("d", endpoint, "me", "service=x") == "service=x dbname='d'"
