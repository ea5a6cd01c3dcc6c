"""Power cuts in which a disk loses, reorders and tears what it was not told to keep.
``make torture TORTURE="--part blocks-ext4"`` does it for as long as wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ab_blockcuts import CUT_SETTINGS, BlockCuts
from ab_cluster import Cluster

STEPS = 40
CUTS = 4


def test_reordered_and_torn_writes(
    make_cluster: Callable[..., Cluster], cluster_base: Path, seed: int
) -> None:
    """At some moments of a run of branch operations the power fails: every acknowledged step
    is there, every later one is not, and nothing is left of what is not there."""
    place = cluster_base / "images"
    place.mkdir()
    kind = ("ext4", "xfs")[seed % 2]
    cuts = BlockCuts(make_cluster("blocks", CUT_SETTINGS), place, kind, seed)
    cuts.record(STEPS)
    for number in range(CUTS):
        cuts.cut(number)
    print(kind, dict(cuts.done))
