"""Snapshots by cloning: on a file system with reflinks they take no space and no copy."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from ab_cluster import Cluster

MB = 1024 * 1024


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def reflink_dir(tmp_path: Path) -> Iterator[Path]:
    """An XFS of its own on a loop device, in a place the server's user can reach."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system with reflinks takes root")
    image = tmp_path / "xfs.img"
    with image.open("wb") as f:
        f.truncate(1536 * MB)
    made = run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
    if made.returncode != 0:
        pytest.skip(f"cannot make an XFS: {made.stderr.strip()}")
    place = Path(f"/var/tmp/ab-xfs-{os.getpid()}")
    place.mkdir(mode=0o755)
    mounted = run("mount", "-o", "loop", str(image), str(place))
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"cannot mount an XFS: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: the cluster's fixture may still have to remove its directory.
        run("umount", "-l", str(place))
        place.rmdir()


def used_bytes(place: Path) -> int:
    v = os.statvfs(place)
    return (v.f_blocks - v.f_bfree) * v.f_frsize


def test_clone_shares_the_parents_blocks(reflink_dir: Path) -> None:
    """A 100 MB parent on XFS: a snapshot adds next to nothing to the space used, the branch
    reads the parent's rows, and afterwards each side keeps its own changes, also when the
    parent's blocks that the clone shares are overwritten and the server is killed."""
    c = Cluster.create(
        reflink_dir, "clone", {"agent_branch.snapshot_method": "clone", "wal_keep_size": 0}
    )
    try:
        c.sql(
            "CREATE TABLE t AS SELECT g AS id, repeat('x', 900) AS v "
            "FROM generate_series(1, 100000) g",
            dbname="main",
        )
        c.sql("VACUUM (FREEZE) t", dbname="main")
        c.sql("CHECKPOINT")
        before = used_bytes(reflink_dir)
        c.sql("SELECT name FROM branch.create('b', 'main')")
        grown = used_bytes(reflink_dir) - before
        (pages,) = (c.data / "agent_branch" / "snapshots").glob("*.pages")
        assert pages.stat().st_size > 100 * MB
        assert grown < 24 * MB, f"the snapshot took {grown} bytes"

        c.sql("UPDATE t SET v = 'parent' WHERE id <= 50000", dbname="main")
        c.sql("UPDATE t SET v = 'branch' WHERE id > 50000", dbname="b")
        c.crash()
        count = (
            "SELECT count(*) FILTER (WHERE v = 'parent'), "
            "count(*) FILTER (WHERE v = 'branch') FROM t"
        )
        assert c.sql(count, dbname="main") == [(50000, 0)]
        assert c.sql(count, dbname="b") == [(0, 50000)]
        assert c.sql("SELECT * FROM branch.verify()") == []

        # A snapshot of a branch clones its own pages, too.
        c.sql("SELECT name FROM branch.create('bb', 'b')")
        assert c.sql(count, dbname="bb") == [(0, 50000)]
    finally:
        c.destroy()


def test_clone_says_when_it_cannot(cluster: Cluster) -> None:
    """Method clone on a file system without reflinks is an error with a hint, not a copy."""
    probe = cluster.data / "probe"
    probe.write_bytes(b"x" * 8192)
    if run("cp", "--reflink=always", str(probe), f"{probe}2").returncode == 0:
        pytest.skip("the tests' own file system has reflinks")
    cluster.sql(
        "CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)", dbname="main"
    )
    with cluster.connect() as session:
        session.execute("SET agent_branch.snapshot_method = clone")
        with pytest.raises(psycopg.errors.FeatureNotSupported) as refused:
            session.execute("SELECT name FROM branch.create('b', 'main')")
    assert "agent_branch.snapshot_method" in (refused.value.diag.message_hint or "")
    assert list((cluster.data / "agent_branch" / "snapshots").iterdir()) == []
    assert cluster.scalar("SELECT count(*) FROM pg_database WHERE datname = 'b'") == 0
