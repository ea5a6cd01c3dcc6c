"""A branch becomes damaged while somebody in another database is about to read it.

To its own sessions it answers XX001; to others it is no branch, since nothing of theirs must fail
for it.  But who copies it, or takes a snapshot of it, must not take it for a plain database.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from ab_checks import create, create_database, exists, run
from ab_cluster import LONG, Cluster, wait_for
from ab_faults import Faults

MakeCluster = Callable[..., Cluster]

STILL: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "shared_buffers": "4MB",
}
COPY = 700000
ROWS = 200000
# The table is the last in pg_class, and hence the last to be copied.
TABLES = (
    "CREATE TABLE cut AS SELECT generate_series(1, 100000) AS x",
    "DELETE FROM cut WHERE x > 10",
    "CREATE TABLE t (id int, v int)",
    f"INSERT INTO t SELECT i, i FROM generate_series(1, {ROWS}) AS i",
    "VACUUM t",
    "VACUUM FULL pg_class",
    *("ALTER TABLE t RENAME TO u", "ALTER TABLE u RENAME TO t") * 20,
)


def damage(server: Cluster, faults: Faults) -> None:
    """Pages that VACUUM cuts off cannot be saved for the branch."""
    faults.arm("agent_branch/images", 1, errno.ENOSPC, sticky=True)
    run(server, "p", "VACUUM (TRUNCATE) cut")
    faults.disarm()
    assert "cannot be kept any longer" in server.log_text()


@pytest.fixture
def server(make_cluster: MakeCluster, faults: Faults) -> Cluster:
    """A branch "b" that has a file of its own of the table, which is mostly a hole."""
    made = make_cluster("meanwhile", STILL)
    create_database(made, "p", *TABLES)
    faults.restart(made, "fast")
    create(made, "b", "p")
    run(made, "b", f"UPDATE t SET v = -1 WHERE id IN (1, {ROWS})", "CHECKPOINT")
    return made


def test_it_is_being_copied(server: Cluster, faults: Faults) -> None:
    """CREATE DATABASE ... TEMPLATE has copied a part of the table: the rest must not be zeros."""
    number = server.scalar("SELECT pg_relation_filenode('t')", dbname="p")
    faults.arm_stop(f"base/{COPY}/{number}", 300, only="pwrite")
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(server.sql, f"CREATE DATABASE c TEMPLATE b OID {COPY}")
        pid = wait_for(faults.stopped, what="the copy to be half way")
        damage(server, faults)
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(psycopg.errors.DataCorrupted, match="is damaged"):
            copying.result(LONG)
    assert not exists(server, "c")


def test_a_snapshot_waits_for_its_writers(server: Cluster, faults: Faults) -> None:
    """branch.create() has looked at the parent, and waits for a transaction in it."""
    with server.connect("b", autocommit=False) as writer, ThreadPoolExecutor(1) as pool:
        writer.execute("INSERT INTO t VALUES (0, 0)")
        creating = pool.submit(create, server, "c", "b")
        wait_for(
            lambda: server.scalar(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE query LIKE '%branch.create%' AND wait_event_type = 'Lock'"
                " AND pid <> pg_backend_pid()"
            ),
            what="the snapshot to wait",
        )
        damage(server, faults)
        writer.rollback()
        with pytest.raises(psycopg.errors.DataCorrupted, match='branch "b" is damaged'):
            creating.result(LONG)
    assert not exists(server, "c")
