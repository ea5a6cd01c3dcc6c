"""Base backups whose files were copied in an order that tools may choose, with work in between:
parts of what snapshots need are older, or newer, than others (README.recovery)."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_byhand import backup_by_hand, copy_live
from ab_checks import create, create_database, healthy, run
from ab_cluster import Cluster
from ab_faults import Faults
from ab_oracle import plain_again

Make = Callable[..., Cluster]

QUIET: dict[str, object] = {"autovacuum": "off", "checkpoint_timeout": "1h"}
STORE = "agent_branch"
ROWS = "SELECT i AS id, repeat('f', 800) AS filler FROM generate_series(1, 60) AS i"


def again(server: Cluster, target: Path, part: str) -> None:
    """Copy that part once more, as it is now."""
    copy_live(server.data / part, target / part, lambda *_: [], more=True)


def contents(server: Cluster, dbname: str) -> list[tuple[object, ...]]:
    return server.sql("SELECT * FROM x ORDER BY id", dbname=dbname)


def test_dropped_for_a_snapshot_to_come(make_cluster: Make, cluster_base: Path) -> None:
    """The list of dropped relations in the backup has one that is dropped for a snapshot that the
    backup has no file of.  Another snapshot that goes before, in WAL, does not take its pages."""
    server = make_cluster("orders", QUIET)
    create_database(server, "p", f"CREATE TABLE x AS {ROWS}", "CHECKPOINT")
    create(server, "old", "p")
    run(server, "p", "UPDATE x SET filler = 'old' WHERE id = 1")
    place = cluster_base / "orders-backup"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        copy_files()
        server.sql("SELECT branch.delete('old', hard => true)")
        server.sql("SELECT * FROM branch.gc()")
        run(server, "p", "UPDATE x SET filler = 'new' WHERE id = 60")
        create(server, "b", "p")
        before = contents(server, "b")
        run(server, "p", "DROP TABLE x", "CHECKPOINT")
        again(server, place / "data", f"{STORE}/images")
    restored = Cluster.from_data(place, "ordersrestored", place / "data", QUIET)
    try:
        assert contents(restored, "b") == before
        healthy(restored)
        restored.sql("SELECT branch.delete('b', hard => true)")
        restored.sql("SELECT * FROM branch.gc()")
        plain_again(restored, "p")
    finally:
        restored.destroy()


def test_dropped_for_a_snapshot_that_was(make_cluster: Make, cluster_base: Path) -> None:
    """Files of a dropped relation were copied while a snapshot needed them, and the list of such
    relations after that: replay of their removal is all that tells the copy."""
    server = make_cluster("orderswas", QUIET)
    create_database(server, "p", f"CREATE TABLE x AS {ROWS}", "CREATE UNLOGGED TABLE u (id int)")
    create(server, "old", "p")
    run(server, "p", "DROP TABLE x, u", "CHECKPOINT")
    place = cluster_base / "orders-was"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        copy_files()
        shutil.rmtree(place / "data" / STORE)
        server.sql("SELECT branch.delete('old', hard => true)")
        server.sql("SELECT * FROM branch.gc()")
        again(server, place / "data", STORE)
    plain_again(server, "p")
    restored = Cluster.from_data(place, "orderswasrestored", place / "data", QUIET)
    try:
        plain_again(restored, "p")
        healthy(restored)
    finally:
        restored.destroy()


def test_given_up_after_it_was_copied(
    make_cluster: Make, cluster_base: Path, faults: Faults
) -> None:
    """A manifest cannot be made durable, so its snapshot is given up; the backup has the store of
    before, and the parent's files of after."""
    server = make_cluster("ordersgivenup", {**QUIET, "fsync": "on", "bgwriter_lru_maxpages": "0"})
    create_database(server, "p", f"CREATE TABLE x AS {ROWS}")
    faults.restart(server, "fast")
    place = cluster_base / "orders-given-up"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        create(server, "b", "p")
        copy_files()
        faults.arm("agent_branch/snapshots", 1, errno.EIO, only="fsync")
        server.sql("CHECKPOINT")
        assert faults.disarm()[1] == 1
        run(server, "p", "UPDATE x SET filler = 'new'", "CHECKPOINT")
        again(server, place / "data", "base")
    restored = Cluster.from_data(place, "ordersgivenupagain", place / "data", QUIET)
    try:
        for cluster in (server, restored):
            with pytest.raises(psycopg.Error, match="cannot be read any more"):
                contents(cluster, "b")
    finally:
        restored.destroy()


def test_unlogged_relations_of_a_branch_made_meanwhile(
    make_cluster: Make, cluster_base: Path
) -> None:
    """The backup has the origin of a branch, and of its directory nothing yet, in which the init
    forks of its unlogged relations are: these are made when its creation is replayed.  A branch
    of the branch finds them there."""
    server = make_cluster("ordersunlogged", QUIET)
    create_database(server, "p", "CREATE UNLOGGED TABLE x (id int PRIMARY KEY)")
    place = cluster_base / "orders-unlogged"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        copy_files()
        create(server, "b", "p")
        again(server, place / "data", STORE)
        create(server, "below", "b")
        run(server, "b", "INSERT INTO x VALUES (1)")
    restored = Cluster.from_data(place, "ordersunloggedagain", place / "data", QUIET)
    try:
        for name in ("b", "below"):
            assert contents(restored, name) == []
            run(restored, name, "INSERT INTO x VALUES (2)")
            assert contents(restored, name) == [(2,)]
        healthy(restored)
    finally:
        restored.destroy()
