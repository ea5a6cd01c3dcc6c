"""Power cuts while branches are made, written, reset and deleted: what the file system had not
on disk is lost.  ``make torture TORTURE="--part power-ext4 --part power-xfs"`` does it for as
long as wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ab_cluster import Cluster
from ab_power import SETTINGS, PowerCuts, failing_disk

ROUNDS = 3


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cuts(
    make_cluster: Callable[..., Cluster], cluster_base: Path, kind: str, seed: int
) -> None:
    """Every acknowledged branch has its rows, every other one is whole or is not there, and
    neither files nor directories are left of what is not there."""
    cluster = make_cluster(f"power{kind}", SETTINGS)
    with failing_disk(cluster, cluster_base / f"{kind}.image", kind) as disk:
        cuts = PowerCuts(cluster, disk, f"{seed}/{kind}")
        for _ in range(ROUNDS):
            cuts.round()
        cuts.finish()
    print(dict(cuts.done))
