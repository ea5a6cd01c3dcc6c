"""What branches inherit, in a base backup whose copy of the parent's files is from a later time.

The images of those pages come further on in WAL, before the backup's end.  Replay must not take the
parent's pages of later for the branch's meanwhile: where the server sets in a page, without an
image, that all of its rows are visible, and where it changes a visibility map (ab_awaited.c)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ab_byhand import backup_by_hand, copy_live
from ab_checks import create, create_database, healthy, run
from ab_cluster import Cluster, wait_for
from ab_visible import QUIET, ROWS, Row, rows

Make = Callable[..., Cluster]


DEAD, DELETED, CHANGED = 50, 20, 3


def with_parent(server: Cluster, *statements: str) -> Cluster:
    table = "CREATE TABLE t (id int PRIMARY KEY, filler text)"
    create_database(server, "p", table, ROWS, *statements, "CHECKPOINT")
    create(server, "b", "p")
    return server


def copied_later(server: Cluster, place: Path, *parent: str) -> str:
    """Further on the parent changes, and its files are copied again.  That, and the images of what
    was there before, is in other files of WAL than what was logged before: its last file is
    returned."""
    last = str(server.scalar("SELECT pg_walfile_name(pg_switch_wal())"))
    run(server, "p", *parent)
    create(server, "c", "p")  # writes the parent's pages, and no branch's
    copy_live(server.data / "base", place / "data" / "base", lambda *_: [], more=True)
    return last


@contextmanager
def restored(place: Path, name: str, last: str, interrupted: bool) -> Iterator[Cluster]:
    """A server of the backup; interrupted: its first recovery did not come to the backup's end."""
    settings = {**QUIET, "restore_command": "false"}
    cluster = Cluster.from_data(place, name, place / "data", settings, start=False)
    try:
        if interrupted:
            waiting = cluster.data / "standby.signal"
            waiting.touch()
            cluster.give(waiting)
            wal = cluster.data / "pg_wal"
            later = [path for path in wal.iterdir() if path.is_file() and path.name > last]
            assert later
            for path in later:
                path.rename(place / path.name)
            cluster.kill_in_recovery()
            for path in later:
                (place / path.name).rename(path)
            waiting.rename(cluster.data / "recovery.signal")
        cluster.start()
        wait_for(lambda: not cluster.scalar("SELECT pg_is_in_recovery()"), what="recovery's end")
        yield cluster
    finally:
        cluster.destroy()


def goes_on(cluster: Cluster, expected: list[Row]) -> None:
    """The rows are right, also when what buffers have is forgotten, and after another change."""
    assert rows(cluster, "b") == expected
    cluster.crash()
    assert rows(cluster, "b") == expected
    run(cluster, "b", f"DELETE FROM t WHERE id = {CHANGED}")
    cluster.restart()
    assert rows(cluster, "b") == [row for row in expected if row[0] != CHANGED]
    healthy(cluster)


@pytest.mark.parametrize("interrupted", [False, True])
def test_pages_that_all_see(make_cluster: Make, cluster_base: Path, interrupted: bool) -> None:
    """VACUUM in a branch finds that all rows are visible to all; the parent's are updated after
    that: they did not stay out of the branch."""
    server = with_parent(make_cluster(f"inherited{interrupted}", QUIET))
    expected = rows(server, "b")
    place = cluster_base / f"inherited-{interrupted}"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        copy_files()
        run(server, "b", "VACUUM t")
        last = copied_later(server, place, "UPDATE t SET filler = 'new' WHERE id % 9 = 0")
    with restored(place, f"inheritedr{interrupted}", last, interrupted) as cluster:
        goes_on(cluster, expected)
    assert rows(server, "b") == expected


@pytest.mark.parametrize("interrupted", [False, True])
def test_map_of_later(make_cluster: Make, cluster_base: Path, interrupted: bool) -> None:
    """A row of another page is deleted in a branch, and the parent is vacuumed after that: a row
    that was dead when the branch was made came back, by index-only scans."""
    server = make_cluster(f"inheritedmap{interrupted}", QUIET)
    with_parent(server, "VACUUM t", f"DELETE FROM t WHERE id = {DEAD}")
    place = cluster_base / f"inherited-map-{interrupted}"
    place.mkdir()
    with backup_by_hand(server, place / "data") as copy_files:
        copy_files()
        run(server, "b", f"DELETE FROM t WHERE id = {DELETED}")
        expected = rows(server, "b")
        last = copied_later(server, place, "VACUUM t")
    with restored(place, f"inheritedmapr{interrupted}", last, interrupted) as cluster:
        goes_on(cluster, expected)
    assert rows(server, "b") == expected
