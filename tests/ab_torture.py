"""The parts of ``make torture``: each takes a seed and returns what it has done, in figures.

A part goes on until its share of the time is over, or it has done all it has.  Its seed alone says
what comes in which order, so that with more time it only goes further.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
PLACE = "place "  # begins the names of figures that count passes of one place
Figures = Counter[str]


class Share:
    """The time that a part may take, from now on."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.end = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self.end

    def turns(self, most: int) -> Iterator[int]:
        """0, 1, 2 ... while there is time, but 0 in any case."""
        for number in range(most):
            if number and self.over():
                return
            yield number


Part = Callable[[int, Path, Share], Figures]


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


def kill(seed: int, base: Path, share: Share) -> Figures:
    """kill -9 of everything while branches are made, written, reset, deleted."""
    done: Figures = Counter()
    rounds = 10
    for turn in share.turns(10):
        environment = {"AGENT_BRANCH_ROUNDS": str(rounds)}
        done += tests(seed + turn, environment, "test_crash.py::test_kill_nine")
        done["kill -9 rounds"] += rounds
    return done


def lifecycle(seed: int, base: Path, share: Share) -> Figures:
    """Lives of branches against their models, 64 clients and one."""
    done: Figures = Counter()
    for turn in share.turns(10):
        done += tests(seed + turn, {}, "test_lifecycle_model.py", "test_one_life.py")
    return done


EVERY_CALL = (
    "test_live_full.py",
    "test_live_steps.py::test_killed_at_each_step",
    "test_detach.py::test_interrupted_at_any_call",
)


def errors(seed: int, base: Path, share: Share) -> Figures:
    """The n-th call on files fails (EIO, ENOSPC) or is the last, n = 1 until there is none."""
    done: Figures = Counter()
    names = random.Random(f"{seed}/errors").sample(EVERY_CALL, len(EVERY_CALL))
    for turn in share.turns(len(names)):
        done += tests(seed, {"AGENT_BRANCH_EVERY_CALL": "1"}, names[turn])
    return done


# ---- storms, power cuts, weathers ---------------------------------------------------------------


def storm(seed: int, base: Path, share: Share) -> Figures:
    """Pages of hundreds of snapshots of a written parent, with a standby that is promoted."""
    cluster = Cluster.create(base, "torture", STORM_SETTINGS)
    make_parent(cluster, PARENT)
    torture = Torture(cluster, seed, 60, 25, standby=True)
    torture.fill()
    for number in share.turns(8):
        torture.round(number + 1)
        print(f"round {number + 1}: {dict(torture.done)}", flush=True)
    torture.finish()
    return torture.done


def power(kind: str) -> Part:
    def part(seed: int, base: Path, share: Share) -> Figures:
        cluster = Cluster.create(base, kind, POWER_SETTINGS)
        with failing_disk(cluster, base / f"{kind}.image", kind) as disk:
            cuts = PowerCuts(cluster, disk, f"{seed}/{kind}")
            try:
                for _ in share.turns(25):
                    cuts.round(clients=4)
                cuts.finish()
            except BaseException:
                cluster.kill()
                shutil.copytree(cluster.data, base / f"{kind}.failed")
                raise
        return cuts.done + Counter({"power cuts": cuts.rounds})

    return part


def blocks(kind: str) -> Part:
    def part(seed: int, base: Path, share: Share) -> Figures:
        images = base / "images"
        images.mkdir()
        cuts = BlockCuts(Cluster.create(base, "blocks", CUT_SETTINGS), images, kind, seed)
        cuts.record(60)
        for number in share.turns(50):
            cuts.cut(number)
        return cuts.done

    return part


def full(directory: str) -> Part:
    def part(seed: int, base: Path, share: Share) -> Figures:
        weather = Weather(Cluster.create(base, "full", WEATHER_SETTINGS), seed)
        weather.full_disk(share.turns(15), directory)
        return weather.done

    return part


def memory(seed: int, base: Path, share: Share) -> Figures:
    weather = Weather(Cluster.create(base, "memory", WEATHER_SETTINGS), seed)
    weather.no_memory(share.turns(40))
    return weather.done


def clock(seed: int, base: Path, share: Share) -> Figures:
    weather = Weather(Cluster.create(base, "clock", WEATHER_SETTINGS), seed)
    weather.jumping_clock(share.turns(25))
    return weather.done


# ---- failpoints ---------------------------------------------------------------------------------


def tried(trials: Trials | StandbyTrials) -> Figures:
    return trials.done + Counter({PLACE + name: 1 for name in trials.passed})


def failpoints(seed: int, base: Path, share: Share) -> Figures:
    """Every place, in one way each: killed, crashed or failed; and those of recovery."""
    rng = random.Random(f"{seed}/failpoints")
    names = places()
    order = rng.sample(sorted(names), len(names))
    never = set(names) - ON_STANDBY
    with failpoint_server(base):
        trials = Trials(Cluster.create(base, "places", PLACE_SETTINGS), seed)
        trials.count()
        for turn in share.turns(len(order)):
            name = order[turn]
            if is_of_start(name) and name not in ON_STANDBY:
                trials.in_recovery(name)
            elif name in BY_ANOTHER:
                trials.by_another(name)
            elif trials.hits[name]:
                action = rng.choice([HOLD, CRASH] + [ERROR] * names[name])
                then = rng.choice([None, *sorted(trials.starts)])
                # Not all processes pass it as often each time.
                if not trials.at(name, action, rng.randint(1, trials.hits[name]), then):
                    trials.at(name, action, 1, then)
        trials.finish()
    print(f"not come to: {sorted(never - trials.passed)}")
    return tried(trials)


def standby(seed: int, base: Path, share: Share) -> Figures:
    """Every place that a standby passes while it replays; there, and again in its start."""
    rng = random.Random(f"{seed}/standby")
    with failpoint_server(base):
        trials = StandbyTrials(Cluster.create(base, "primary", PLACE_SETTINGS), seed)
        trials.count()
        assert trials.hits.keys() >= ON_STANDBY, f"not passed on a standby: {ON_STANDBY}"
        order = rng.sample(sorted(trials.hits), len(trials.hits))
        for turn in share.turns(len(order)):
            name, then = order[turn], rng.choice(order)
            trials.at(name, rng.choice((HOLD, CRASH)), rng.randint(1, trials.hits[name]), then)
    return tried(trials)


# ---- queries that nobody would write ------------------------------------------------------------

QUERIES = 20_000
SOME_QUERIES = 500  # by one process


def sqlsmith(seed: int, base: Path, share: Share) -> Figures:
    """Random queries against the schema branch, and inside a branch."""
    program = shutil.which("sqlsmith")
    if program is None:
        pytest.skip("sqlsmith is not installed (package sqlsmith)")
    cluster = Cluster.create(base, "smith", STORM_SETTINGS)
    make_parent(cluster, PARENT)
    create(cluster, "b", PARENT)
    cluster.sql("SELECT branch.create_many(ARRAY['g1', 'g2'], 'b')")
    cluster.sql("SELECT * FROM branch.gc()")
    done: Figures = Counter()
    for turn in share.turns(QUERIES // SOME_QUERIES):
        dbname = ("postgres", "b")[turn % 2]
        ended = subprocess.run(
            [
                program,
                f"--target=host={cluster.socket_dir} port={cluster.port} user=postgres"
                f" dbname={dbname} options='-c statement_timeout=500'",
                f"--max-queries={SOME_QUERIES}",
                f"--seed={seed + turn}",
            ],
            check=False,
            capture_output=True,
            text=True,
            env=cluster.environment(),
            **identity(),
        )
        counted = re.findall(r"queries: (\d+)", ended.stderr)
        done[f"queries in {dbname}"] += int(counted[-1]) if counted else SOME_QUERIES
        calm_log(cluster)
    internal = set(re.findall(r" XX000 \S+ ERROR:  (.*)", cluster.log_text()))
    done["internal errors, different"] = len(internal)
    for message in sorted(internal)[:20]:
        print(f"internal error: {message}")
    # The server quotes what it was given, such as a statement of ours for a file's name.
    ours = [message for message in internal if "branch" in re.sub(r'"[^"]*("|$)', "", message)]
    assert ours == [], f"internal errors of ours: {ours}"
    damage = re.findall(r" XX00[12] \S+ (?:ERROR|FATAL|PANIC):  (.*)", cluster.log_text())
    assert damage == [], f"damage: {damage}"
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

# What a part gets of the time, beside 1.
WEIGHTS = {"failpoints": 5, "standby": 6, "errors": 2, "storm": 2, "sqlsmith": 2}
