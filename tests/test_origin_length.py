"""An origin file from which limits were cut off is damaged: what a branch has dropped or cut must
not come back.  Files of before the length was noted, and copies that a base backup made while
the file grew, are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_byhand import backup_by_hand
from ab_checks import create, create_database, healthy, oid_of, run
from ab_cluster import Cluster

BLOCK = 4096
LENGTH_AT = 256  # ab_format.h
QUIET: dict[str, object] = {
    "autovacuum": "off",
    "agent_branch.sweep_interval": "0",
    "checkpoint_timeout": "1h",
}
TABLES = 150  # each leaves a limit; 112 are in the first block


def many_tables(cluster: Cluster) -> None:
    tables = [f"CREATE TABLE t{i} AS SELECT {i} AS v" for i in range(TABLES)]
    create_database(cluster, "p", *tables)
    create(cluster, "b", "p")


def drop_all(cluster: Cluster, first: int = 0) -> None:
    run(cluster, "b", *(f"DROP TABLE t{i}" for i in range(first, TABLES)))


def origin(cluster: Cluster) -> Path:
    return cluster.data / "agent_branch" / "branches" / str(oid_of(cluster, "b"))


def tables(cluster: Cluster) -> int:
    query = "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$'"
    return int(cluster.scalar(query, dbname="b"))


def cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


@pytest.mark.parametrize("left", [BLOCK, 2 * BLOCK - 512])
def test_cut_is_damage(make_cluster: Callable[..., Cluster], left: int) -> None:
    """Slots are gone, or only free ones: the branch says so, its parent goes on."""
    server = make_cluster("cut", QUIET)
    many_tables(server)
    drop_all(server)
    path = origin(server)
    assert path.stat().st_size == 2 * BLOCK
    assert tables(server) == 0
    server.stop()
    cut(path, left)
    server.start()
    found = server.sql("SELECT problem FROM branch.verify('b')")
    assert any(f"only {left} of" in problem for (problem,) in found), found
    with pytest.raises(psycopg.Error, match="is damaged"):
        tables(server)
    assert server.scalar("SELECT v FROM t149", dbname="p") == 149
    server.sql("SELECT branch.delete('b', hard => true)")
    healthy(server)


def test_noted_length_is_checked(make_cluster: Callable[..., Cluster]) -> None:
    """A length that nobody has written is damage as well."""
    server = make_cluster("noted", QUIET)
    many_tables(server)
    drop_all(server)
    path = origin(server)
    server.stop()
    with path.open("r+b") as file:
        file.seek(LENGTH_AT)
        file.write(b"\x01")
    server.start()
    with pytest.raises(psycopg.Error, match="is damaged"):
        tables(server)


def test_older_file(make_cluster: Callable[..., Cluster]) -> None:
    """Versions before this one noted no length: their files are read, and get one with the
    next limit that goes beyond the first block."""
    server = make_cluster("older", QUIET)
    many_tables(server)
    run(server, "b", *(f"DROP TABLE t{i}" for i in range(TABLES - 1)))
    path = origin(server)
    server.stop()
    with path.open("r+b") as file:
        file.seek(LENGTH_AT)
        file.write(bytes(8))
    server.start()
    assert tables(server) == 1
    healthy(server)
    drop_all(server, TABLES - 1)
    assert path.read_bytes()[LENGTH_AT : LENGTH_AT + 4] == path.stat().st_size.to_bytes(4, "little")
    server.restart("immediate")
    assert tables(server) == 0
    healthy(server)


def test_backup_while_it_grows(make_cluster: Callable[..., Cluster], cluster_base: Path) -> None:
    """A backup takes the size of the file before it grows, and reads it afterwards: what is
    missing is replayed, whatever block it was in, and no limit is lost."""
    server = make_cluster("grows", QUIET)
    many_tables(server)
    run(server, "b", *(f"DROP TABLE t{i}" for i in range(100)))
    path = origin(server)
    target = cluster_base / "copied"
    with backup_by_hand(server, target) as copy_files:
        drop_all(server, 100)
        copy_files()
        cut(target / path.relative_to(server.data), BLOCK)
    server.stop()
    copy = Cluster.from_data(cluster_base, "restored", target)
    try:
        assert tables(copy) == 0
        assert origin(copy).stat().st_size > BLOCK
        healthy(copy)
        copy.restart("immediate")
        assert tables(copy) == 0
    finally:
        copy.destroy()
