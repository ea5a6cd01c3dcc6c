"""Files of databases that processes have open for snapshots: they keep no space of what was
dropped, and leave enough descriptors to the server."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from ab_checks import calm_log, contents, create, create_database, delete, healthy, oid_of, run
from ab_cluster import Cluster

TABLES = 90
ROWS = "CREATE TABLE {} AS SELECT g AS id, repeat('v', {}) AS v FROM generate_series(1, 9000) AS g"


def open_files(pid: int) -> list[str]:
    """[] if the process has ended."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(str(link.readlink()))
    return found


def deleted_files(cluster: Cluster, directory: str) -> list[str]:
    """Of that directory, those that are gone and that some process of the server has open."""
    found = []
    for (pid,) in cluster.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"):
        for target in open_files(pid):
            if f"/{directory}/" in target and target.endswith(" (deleted)"):
                found.append(f"{pid}: {target}")
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="to look at the server's processes takes root")
def test_nobody_keeps_what_was_dropped(make_cluster: Callable[..., Cluster]) -> None:
    """The checkpointer, and a session elsewhere that needed the buffers, have saved pages of a
    database, and compared pages of its branch with it.  When both are dropped the space of their
    files is free, as long as those two may live."""
    cluster = make_cluster(
        "dropped",
        {"autovacuum": "off", "shared_buffers": "4MB", "agent_branch.sweep_interval": "0"},
    )
    create_database(cluster, "p", ROWS.format("t", 300), "CREATE TABLE u AS SELECT * FROM t")
    create_database(cluster, "other", ROWS.format("o", 900))
    create(cluster, "b", "p")
    numbers = [oid_of(cluster, name) for name in ("p", "b")]
    with cluster.connect("other") as session:
        for _ in range(2):
            run(cluster, "p", "UPDATE t SET id = id + 1 WHERE id % 40 = 0")
            run(cluster, "b", "UPDATE t SET id = id + 1 WHERE id % 50 = 0")
            session.execute("UPDATE o SET id = id + 1")
            run(cluster, "p", "UPDATE u SET id = id + 1 WHERE id % 60 = 0")
            run(cluster, "b", "UPDATE u SET id = id + 1 WHERE id % 70 = 0")
            cluster.sql("CHECKPOINT")
        delete(cluster, "b")
        cluster.sql("SELECT * FROM branch.gc()")
        cluster.sql("DROP DATABASE p")
        kept = [found for number in numbers for found in deleted_files(cluster, f"base/{number}")]
        assert kept == []
    healthy(cluster)


def test_few_descriptors(make_cluster: Callable[..., Cluster]) -> None:
    """As few as a server starts with: parent and branches go on, and no page is lost."""
    cluster = make_cluster(
        "few",
        {
            "autovacuum": "off",
            "max_files_per_process": "64",
            "shared_buffers": "1MB",
            "bgwriter_lru_maxpages": "0",
        },
    )
    create_database(
        cluster,
        "p",
        *(
            f"CREATE TABLE t{i} AS SELECT g AS id, repeat('t', 300) AS v"
            " FROM generate_series(1, 60) AS g"
            for i in range(TABLES)
        ),
    )
    cluster.stop()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (66, hard))
    try:
        cluster.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    create(cluster, "b", "p")
    before = contents(cluster, "p")
    with cluster.connect("p") as parent, cluster.connect("b") as branch:
        for turn in range(2):
            for i in range(TABLES):
                parent.execute(f"UPDATE t{i} SET v = 'p{turn}' WHERE id % 7 = {turn}")
            for i in range(TABLES):
                branch.execute(f"SELECT count(*), max(v) FROM t{i}")
            cluster.sql("CHECKPOINT")
    assert contents(cluster, "b") == before
    run(
        cluster,
        "b",
        *(f"UPDATE t{i} SET v = 'b' WHERE id = 5" for i in range(TABLES)),
        "CHECKPOINT",
    )
    assert contents(cluster, "p") != before
    calm_log(cluster)
    assert "cannot be kept any longer" not in cluster.log_text()
    assert "Too many open files" not in cluster.log_text()
    healthy(cluster)
