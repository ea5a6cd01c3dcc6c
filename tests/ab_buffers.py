"""Servers whose pages leave shared buffers when a test says so, and not before."""

from __future__ import annotations

from ab_checks import create_database, run
from ab_cluster import Cluster
from ab_oracle import SETTINGS

# Pages are written by checkpoints and by who needs a buffer, and by nobody else.
STILL: dict[str, object] = {
    **SETTINGS,
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "agent_branch.sweep_interval": "0",
}
# Nobody needs a buffer, either.
ROOMY: dict[str, object] = {**STILL, "shared_buffers": "64MB"}


def make_pages(server: Cluster) -> None:
    """A database "other" with more pages than there are buffers."""
    create_database(
        server,
        "other",
        "CREATE EXTENSION pg_prewarm",
        "CREATE TABLE big AS SELECT i, repeat('b', 900) AS v FROM generate_series(1, 4000) AS i",
    )


def evict(server: Cluster) -> None:
    """Fill all buffers with them, a few times over."""
    run(server, "other", *["SELECT pg_prewarm('big')"] * 6)
