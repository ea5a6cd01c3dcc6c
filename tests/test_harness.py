"""The servers of the tests leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ab_cluster import Cluster


def segments() -> set[int]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {int(line.split()[1]) for line in lines}


def test_no_shared_memory_is_left(make_cluster: Callable[..., Cluster]) -> None:
    """A server that ends by kill -9 leaves a segment; 4096 of them, and none starts any more."""
    cluster = make_cluster("gone")
    own = int((cluster.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
    assert own in segments()
    cluster.crash()
    again = int((cluster.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
    cluster.destroy()
    assert not {own, again} & segments()
