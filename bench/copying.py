"""What a copy costs where we make a branch: CREATE DATABASE's own strategies, and a clone of the
files by a filesystem that shares blocks."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ab_cluster import Cluster, workspace
from measure import Conn, Sizes, alternate, branch, filled, ms, pair, report, server

COPYING: dict[str, Any] = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "4GB",
    "shared_buffers": "128MB",
}
GB = 1 << 30


def create_template(size: Sizes) -> None:
    """A branch beside CREATE DATABASE ... TEMPLATE on a stock server, both strategies: of a parent
    with a branch, whose snapshot both share, and the parent's first.  The bar is for 1 GB; for a
    smaller parent it is as much weaker.  Each finds the disk idle: what the other has left to be
    written, and to be removed, is not waited for by its commit."""
    with pair("template", **COPYING) as (ours, stock):
        for cluster in (ours, stock):
            filled(cluster, "main", size.copied_scale)
            cluster.sql("CHECKPOINT")
        place = stock.scalar("SELECT pg_database_size('main')")
        bar = 0.001 * max(1.0, GB / place)
        note = f"a parent of {place / GB:.2f} GB"
        number = count()
        with ours.connect() as session, stock.connect() as other:

            def make(conn: Conn, strategy: str) -> float:
                name = f"c{next(number)}"
                os.sync()
                took = ms(
                    lambda: conn.execute(
                        f"CREATE DATABASE {name} TEMPLATE main STRATEGY {strategy}"
                    )
                )
                conn.execute(f"DROP DATABASE {name}")
                return took

            def beside(figure: str, strategy: str, ours: Callable[[], float]) -> None:
                pairs = alternate(size.repeats, ours, lambda: make(other, strategy))
                report(figure, bar, False, pairs, unit="ms", note=note)

            def first() -> float:
                session.execute("SELECT * FROM branch.gc()")
                assert ours.scalar("SELECT count(*) FROM branch.snapshots") == 0
                return make(session, "branch")

            beside("create-first-vs-file_copy", "file_copy", first)
            branch(session, "standing")
            for strategy in ("wal_log", "file_copy"):
                beside(f"create-vs-{strategy}", strategy, lambda: make(session, "branch"))


@contextmanager
def xfs(gigabytes: int) -> Iterator[Path]:
    """A new XFS filesystem in a file, mounted through a loop device."""
    base = workspace("ab-xfs-")
    image, mount = base / "image", base / "m"
    with image.open("wb") as file:
        file.truncate(gigabytes * GB)
    mount.mkdir()
    try:
        subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
        try:
            mount.chmod(0o755)
            yield mount
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def cannot_mount() -> str | None:
    if os.geteuid() != 0:
        return "only root can mount"
    if not shutil.which("mkfs.xfs"):
        return "mkfs.xfs is missing (package xfsprogs)"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return None


def cloned(cluster: Cluster, dbname: str) -> float:
    """Milliseconds to clone a database's directory with cp --reflink, and to have it on disk,
    its server's dirty pages written before."""
    oid = cluster.scalar("SELECT oid::int8 FROM pg_database WHERE datname = %s", (dbname,))
    source, target = cluster.data / "base" / str(oid), cluster.data / "clone"
    cluster.sql("CHECKPOINT")

    def copy() -> None:
        subprocess.run(["cp", "-r", "--reflink=always", str(source), str(target)], check=True)
        subprocess.run(["sync", "-f", str(target)], check=True)

    took = ms(copy)
    shutil.rmtree(target)
    return took


def create_reflink(size: Sizes) -> None:
    """A branch beside a reflink copy of the same database's files, both on XFS.  The copy is of
    files only: of a stopped or checkpointed database, and nobody could connect to it yet."""
    if why := cannot_mount():
        print(f"create-vs-reflink: skipped, {why}")
        return
    with xfs(8) as mount, server("reflink", place=mount, **COPYING) as cluster:
        filled(cluster, "main", size.copied_scale)
        number = count()
        with cluster.connect() as session:
            pairs = alternate(
                size.repeats,
                lambda: ms(lambda: branch(session, f"b{next(number)}")),
                lambda: cloned(cluster, "main"),
            )
        place = cluster.scalar("SELECT pg_database_size('main')")
        note = f"{place / GB:.2f} GB in XFS on a loop device"
        report("create-vs-reflink", math.inf, False, pairs, unit="ms", note=note)
