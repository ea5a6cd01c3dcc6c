"""Origin files are synced late: what a power cut may take away before a checkpoint, redo
makes again, and what a checkpoint leaves behind is on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ab_checks import branches, create, create_database, healthy, nothing_left, run
from ab_cluster import Cluster

MB = 1024 * 1024
MADE = ("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g",)


def origin(cluster: Cluster, name: str) -> Path:
    oid = cluster.scalar("SELECT oid FROM pg_database WHERE datname = %s", (name,))
    return cluster.data / "agent_branch" / "branches" / str(oid)


def directory(cluster: Cluster, name: str) -> Path:
    return cluster.data / "base" / origin(cluster, name).name


def rows(cluster: Cluster, name: str) -> list[tuple[int]]:
    return cluster.sql("SELECT id FROM t ORDER BY id", dbname=name)


@pytest.mark.parametrize("lost", ["name", "contents", "half", "directory", "mark"])
def test_lost_before_a_checkpoint(make_cluster: Callable[..., Cluster], lost: str) -> None:
    """The power goes right after a commit: of what creation wrote beside WAL nothing, or a
    part, has reached the disk.  The branch is there with everything written to it since."""
    server = make_cluster("late", {"checkpoint_timeout": "1h", "full_page_writes": "on"})
    create_database(server, "p", *MADE)
    create(server, "kept", "p")
    server.sql("CHECKPOINT")
    create(server, "b", "p")
    run(server, "b", "INSERT INTO t VALUES (101)", "CREATE TABLE own AS SELECT 1 AS i")
    run(server, "b", "TRUNCATE own", "DELETE FROM t WHERE id = 1")
    file, place = origin(server, "b"), directory(server, "b")
    server.kill()

    data = file.read_bytes()
    if lost == "name":
        file.unlink()
    elif lost == "contents":
        file.write_bytes(b"")
    elif lost == "half":
        file.write_bytes(data[: len(data) // 2])
    elif lost == "directory":
        file.unlink()
        shutil.rmtree(place)
    else:
        file.rename(f"{file}.new")
    server.start()
    assert origin(server, "b").read_bytes()[:64] == data[:64]
    assert rows(server, "b") == [(i,) for i in range(2, 102)]
    assert server.sql("SELECT * FROM own", dbname="b") == []
    assert rows(server, "kept") == [(i,) for i in range(1, 101)]
    healthy(server)


@pytest.fixture
def cut_disk(tmp_path: Path) -> Iterator[Path]:
    """An XFS of its own whose unwritten log can be thrown away."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    if shutil.which("mkfs.xfs") is None or shutil.which("xfs_io") is None:
        pytest.skip("no xfsprogs")
    image = tmp_path / "xfs.img"
    with image.open("wb") as f:
        f.truncate(1024 * MB)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    place = Path(f"/var/tmp/ab-cut-{os.getpid()}")
    place.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"cannot mount an XFS: {mounted.stderr.strip()}")
    (place / "image").symlink_to(image)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def cut_power(server: Cluster, place: Path) -> None:
    """What was not synced is gone; the server starts on what is left."""
    image = (place / "image").readlink()
    server.kill()
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(place)], check=True)
    subprocess.run(["umount", str(place)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    server.start()


def test_durable_after_a_checkpoint(cut_disk: Path) -> None:
    """Branches made before a checkpoint and after it, by several ways for pages of
    pg_database to reach the disk; then the power goes."""
    server = Cluster.create(cut_disk, "cut", {"fsync": "on", "checkpoint_timeout": "1h"})
    try:
        create_database(server, "p", *MADE)
        subprocess.run(["sync", "-f", str(cut_disk)], check=True)  # initdb did not
        expected: list[str] = []

        def make(*names: str) -> None:
            expected.extend(create(server, name, "p") for name in names)

        make("a1", "a2")
        server.sql("CHECKPOINT")
        make("b1")
        cut_power(server, cut_disk)
        make("c1", "c2")
        server.sql("VACUUM FULL pg_database")
        server.sql("CHECKPOINT")
        cut_power(server, cut_disk)
        with server.connect() as one, server.connect() as other:
            # committed after the checkpoint that left its record behind
            one.execute("BEGIN")
            one.execute("SELECT branch.create('d1', 'p')")
            other.execute("CHECKPOINT")
            one.execute("COMMIT")
        expected.append("d1")
        cut_power(server, cut_disk)
        assert set(expected) <= set(branches(server))
        for name in expected:
            assert rows(server, name) == [(i,) for i in range(1, 101)]
        healthy(server)
        nothing_left(server, "by power cuts")
    finally:
        server.destroy()
