"""Fixtures: private clusters, a printed seed, the server's log beside a failure."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from ab_cluster import BASE_SETTINGS, Cluster, live_clusters, workspace
from ab_faults import Faults

LOG_LINES = 60

# Files that take longest, first: with several at a time none of these is left for the end.
LONGEST = (
    *("review", "live_standby", "crash", "detach", "live_storm", "live_full", "live_crash"),
    *("witness", "standby", "live_scenarios", "isolation", "transactions", "backup"),
    *("late_sync", "hazards", "wraparound", "branch_chain", "tree_search", "scale", "merge_model"),
    *("one_life", "lifecycle_model", "power_cut", "images_model", "pooling", "child_rows"),
    *("torn_writes", "live_space", "oracle", "live_steps", "jobs", "agent_roles", "attach"),
)

# Autovacuum comes when it likes: tests of it turn it on.
BASE_SETTINGS["autovacuum"] = "off"
# A writer may be held up for long by others' writes; tests of the limit set their own.
BASE_SETTINGS["agent_branch.snapshot_timeout"] = "60s"

# Nothing is timed, and the seed alone says which examples there are.
hypothesis.settings.register_profile(
    "agent_branch",
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("agent_branch")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(_seed())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_report_header() -> str:
    return f"agent_branch seed: {_seed()} (AGENT_BRANCH_SEED sets it)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for cluster in live_clusters():
            report.sections.append((f"log of cluster {cluster.name}", cluster.log_tail(LOG_LINES)))
        report.sections.append(("seed", f"AGENT_BRANCH_SEED={_seed()}"))
    return report


def _seed() -> int:
    """One seed for the whole run, the same in every place that asks."""
    if "AGENT_BRANCH_SEED" not in os.environ:
        os.environ["AGENT_BRANCH_SEED"] = str(random.SystemRandom().randrange(1, 2**31))
    return int(os.environ["AGENT_BRANCH_SEED"])


@pytest.fixture(scope="session")
def cluster_base() -> Iterator[Path]:
    """A directory for data directories that the server's user can reach."""
    path = workspace()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, cluster_base: Path) -> Iterator[Cluster]:
    """One server per module, with the extension in ``postgres`` and a database ``main``; who
    kills it kills processes, not the machine.  The module's CLUSTER: more for Cluster.create."""
    name = str(request.module.__name__).removeprefix("test_")
    options = {"settings": {}, **getattr(request.module, "CLUSTER", {})}
    options["settings"] = {"fsync": "off", **options["settings"]}
    made = Cluster.create(cluster_base, name, **options)
    yield made
    made.destroy()


@pytest.fixture
def make_cluster(cluster_base: Path) -> Iterator[Callable[..., Cluster]]:
    """``make_cluster(name, settings, **options)`` as ``Cluster.create``; all end with the test."""
    before = set(map(id, live_clusters()))

    def make(name: str, settings: dict[str, object] | None = None, **options: Any) -> Cluster:
        return Cluster.create(cluster_base, name, settings, **options)

    yield make
    # Standbys and restored backups that a test made of its clusters end here too.
    for made in live_clusters():
        if id(made) not in before:
            made.destroy()


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Calls of a server that fail or stop its processes (``faults.restart(cluster, ...)``)."""
    place = workspace("ab-faults-")
    made = Faults(place)
    yield made
    made.close()
    shutil.rmtree(place)


@pytest.fixture
def seed() -> int:
    print(f"AGENT_BRANCH_SEED={_seed()}")
    return _seed()


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)
