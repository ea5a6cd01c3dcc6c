"""The parts of ``make torture``: each takes a seed and returns what it has done, in figures."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from ab_blockcuts import CUT_SETTINGS, BlockCuts
from ab_checks import calm_log, create, healthy, nothing_left
from ab_cluster import Cluster, identity
from ab_failpoints import (
    BY_ANOTHER,
    CRASH,
    ERROR,
    HOLD,
    ON_STANDBY,
    PLACE_SETTINGS,
    StandbyTrials,
    Trials,
    failpoint_server,
    is_of_start,
    places,
)
from ab_long_storm import PARENT, STORM_SETTINGS, Torture
from ab_power import SETTINGS as POWER_SETTINGS
from ab_power import PowerCuts, failing_disk
from ab_storm import make_parent
from ab_weather import WEATHER_SETTINGS, Weather

HERE = Path(__file__).parent
Figures = Counter[str]
Part = Callable[[int, Path], Figures]


# ---- parts that are tests, with larger numbers --------------------------------------------------


def tests(seed: int, environment: dict[str, str], *names: str) -> Figures:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider"),
            *(str(HERE / name) for name in names),
        ],
        cwd=HERE.parent,
        env={**os.environ, **environment, "AGENT_BRANCH_SEED": str(seed)},
        check=False,
        capture_output=True,
        text=True,
    )
    print(ended.stdout[-20_000:], ended.stderr[-2_000:])
    assert ended.returncode == 0, f"pytest ended with {ended.returncode}"
    found = re.findall(r"(\d+) (passed|skipped)", ended.stdout)
    return Counter({f"tests {what}": int(number) for number, what in found})


def kill(seed: int, base: Path) -> Figures:
    """kill -9 of everything while branches are made, written, reset, deleted."""
    rounds = 50
    done = tests(seed, {"AGENT_BRANCH_ROUNDS": str(rounds)}, "test_crash.py::test_kill_nine")
    return done + Counter({"kill -9 rounds": rounds})


def lifecycle(seed: int, base: Path) -> Figures:
    """Lives of branches against their models, 64 clients and one."""
    times = {"AGENT_BRANCH_LIFECYCLE": "10"}
    return tests(seed, times, "test_lifecycle_model.py", "test_one_life.py")


def errors(seed: int, base: Path) -> Figures:
    """The n-th call on files fails (EIO, ENOSPC) or is the last, n = 1 until there is none."""
    return tests(
        seed,
        {"AGENT_BRANCH_EVERY_CALL": "1"},
        *("test_live_full.py", "test_live_steps.py::test_killed_at_each_step"),
        "test_detach.py::test_interrupted_at_any_call",
    )


# ---- storms, power cuts, weathers ---------------------------------------------------------------


def storm(seed: int, base: Path) -> Figures:
    """Pages of hundreds of snapshots of a written parent, with a standby that is promoted."""
    cluster = Cluster.create(base, "torture", STORM_SETTINGS)
    make_parent(cluster, PARENT)
    torture = Torture(cluster, seed, 60, 25, standby=True)
    torture.fill()
    for number in range(1, 9):
        torture.round(number)
        print(f"round {number}: {dict(torture.done)}", flush=True)
    torture.finish()
    return torture.done


def power(kind: str) -> Part:
    def part(seed: int, base: Path) -> Figures:
        cluster = Cluster.create(base, kind, POWER_SETTINGS)
        with failing_disk(cluster, base / f"{kind}.image", kind) as disk:
            cuts = PowerCuts(cluster, disk, f"{seed}/{kind}")
            try:
                for _ in range(25):
                    cuts.round(clients=4)
                cuts.finish()
            except BaseException:
                cluster.kill()
                shutil.copytree(cluster.data, base / f"{kind}.failed")
                raise
        return cuts.done + Counter({"power cuts": cuts.rounds})

    return part


def blocks(kind: str) -> Part:
    def part(seed: int, base: Path) -> Figures:
        images = base / "images"
        images.mkdir()
        cuts = BlockCuts(Cluster.create(base, "blocks", CUT_SETTINGS), images, kind, seed)
        cuts.record(60)
        for number in range(50):
            cuts.cut(number)
        return cuts.done

    return part


def full(directory: str) -> Part:
    def part(seed: int, base: Path) -> Figures:
        weather = Weather(Cluster.create(base, "full", WEATHER_SETTINGS), seed)
        weather.full_disk(15, directory)
        return weather.done

    return part


def memory(seed: int, base: Path) -> Figures:
    weather = Weather(Cluster.create(base, "memory", WEATHER_SETTINGS), seed)
    weather.no_memory(40)
    return weather.done


def clock(seed: int, base: Path) -> Figures:
    weather = Weather(Cluster.create(base, "clock", WEATHER_SETTINGS), seed)
    weather.jumping_clock(25)
    return weather.done


# ---- failpoints ---------------------------------------------------------------------------------


def failpoints(seed: int, base: Path) -> Figures:
    """Every place, in one way each: killed, crashed or failed; and those of recovery."""
    rng = random.Random(f"{seed}/failpoints")
    names = places()
    with failpoint_server(base):
        trials = Trials(Cluster.create(base, "places", PLACE_SETTINGS), seed)
        trials.count()
        for name, may_fail in names.items():
            if is_of_start(name) and name not in ON_STANDBY:
                trials.in_recovery(name)
            elif name in BY_ANOTHER:
                trials.by_another(name)
            elif trials.hits[name]:
                action = rng.choice([HOLD, CRASH] + [ERROR] * may_fail)
                then = rng.choice([None, *sorted(trials.starts)])
                trials.at(name, action, rng.randint(1, trials.hits[name]), then)
        trials.finish()
    never = sorted(names.keys() - trials.passed - ON_STANDBY)
    print(f"not come to: {never}")
    return trials.done + Counter({"places": len(trials.passed), "places not come to": len(never)})


def standby(seed: int, base: Path) -> Figures:
    """Every place that a standby passes while it replays; there, and again in its start."""
    rng = random.Random(f"{seed}/standby")
    with failpoint_server(base):
        trials = StandbyTrials(Cluster.create(base, "primary", PLACE_SETTINGS), seed)
        trials.count()
        for name in sorted(trials.hits):
            then = rng.choice(sorted(trials.hits))
            trials.at(name, rng.choice((HOLD, CRASH)), rng.randint(1, trials.hits[name]), then)
    assert trials.hits.keys() >= ON_STANDBY, f"not passed on a standby: {ON_STANDBY}"
    return trials.done + Counter({"places": len(trials.passed)})


# ---- queries that nobody would write ------------------------------------------------------------

QUERIES = 20_000


def sqlsmith(seed: int, base: Path) -> Figures:
    """Random queries against the schema branch, and inside a branch."""
    program = shutil.which("sqlsmith")
    if program is None:
        pytest.skip("sqlsmith is not installed (package sqlsmith)")
    cluster = Cluster.create(base, "smith", STORM_SETTINGS)
    make_parent(cluster, PARENT)
    create(cluster, "b", PARENT)
    done: Figures = Counter()
    for dbname in ("postgres", "b"):
        for turn in range(20):
            left = QUERIES // 2 - done[f"queries in {dbname}"]
            if left <= 0:
                break
            ended = subprocess.run(
                [
                    program,
                    f"--target=host={cluster.socket_dir} port={cluster.port} user=postgres"
                    f" dbname={dbname} options='-c statement_timeout=500'",
                    f"--max-queries={left}",
                    f"--seed={seed + turn}",
                ],
                check=False,
                capture_output=True,
                text=True,
                env=cluster.environment(),
                **identity(),
            )
            counted = re.findall(r"queries: (\d+)", ended.stderr)
            done[f"queries in {dbname}"] += int(counted[-1]) if counted else left
            if ended.returncode == 0:
                break
        calm_log(cluster)
    internal = set(re.findall(r" XX000 \S+ ERROR:  (.*)", cluster.log_text()))
    done["internal errors, different"] = len(internal)
    for message in sorted(internal)[:20]:
        print(f"internal error: {message}")
    ours = [message for message in internal if "agent_branch" in message or "branch" in message]
    assert ours == [], f"internal errors of ours: {ours}"
    cluster.crash()
    cluster.sql("SELECT * FROM branch.gc()")
    healthy(cluster)
    nothing_left(cluster, "after sqlsmith")
    return done


PARTS: dict[str, Part] = {
    "failpoints": failpoints,
    "standby": standby,
    "blocks-ext4": blocks("ext4"),
    "blocks-xfs": blocks("xfs"),
    "power-ext4": power("ext4"),
    "power-xfs": power("xfs"),
    "kill": kill,
    "errors": errors,
    "full-base": full("base"),
    "full-store": full("agent_branch"),
    "memory": memory,
    "clock": clock,
    "storm": storm,
    "lifecycle": lifecycle,
    "sqlsmith": sqlsmith,
}
