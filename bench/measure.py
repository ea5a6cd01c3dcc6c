"""What benchmarks share: sizes, pairs of servers, alternation, figures and where they go.

A figure is a list of pairs (ours, other), one for each repeat; its ratio is the median of the
ratios of the pairs.  The other side is a stock server, on which the library is not loaded,
unless the benchmark's text says otherwise.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from ab_cluster import Cluster, workspace

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "bench" / "raw"

Side = Callable[[], float]
Pair = tuple[float, float]
Conn = psycopg.Connection[tuple[Any, ...]]


class Sizes:
    """How much of everything: for a look (quick), for half an hour, or in full."""

    def __init__(self, quick: bool = False, full: bool = False, seed: int = 1) -> None:
        def choose(small: int, usual: int, large: int) -> int:
            return small if quick else large if full else usual

        self.name = "quick" if quick else "full" if full else "usual"
        self.quick = quick
        self.full = full
        self.seed = seed
        self.repeats = choose(3, 5, 5)
        self.calls = choose(50, 300, 500)
        self.scale = choose(2, 20, 50)  # of pgbench
        self.busy_scale = choose(2, 20, 100)  # of pgbench with eight clients
        self.copied_scale = choose(5, 70, 70)  # of what is copied beside branches; 70 is 1 GB
        self.seconds = choose(1, 2, 10)  # of one pgbench run; there are self.rounds of them
        self.rounds = choose(3, 7, 9)
        self.turns = choose(100, 1200, 4000)  # of either side, where CPU time is measured
        self.lives = choose(2, 48, 96)  # of the servers, over which these turns are spread
        self.depth = choose(20, 100, 1000)  # of point reads
        self.chain = choose(20, 500, 500)  # of creations
        self.relations = choose(1000, 10_000, 10_000)
        self.branches = choose(300, 10_000, 100_000)
        self.asleep = choose(100, 1000, 10_000)
        self.later = choose(20, 100, 1000)  # snapshots after the one that is read
        self.rows = choose(20_000, 1_000_000, 1_000_000)  # of about 1 kB, for diff and merge
        self.steps = choose(10, 30, 125)  # of each of the ten clients of a tree search
        self.at_once = choose(50, 200, 1000)
        self.deep = choose(30, 250, 1000)  # of the deep end of a tree search


@dataclass
class Run:
    """What is being measured; report() and series() write it down with their figures."""

    size: Sizes = field(default_factory=Sizes)
    benchmark: str = ""
    began: float = 0.0
    servers: dict[str, dict[str, str]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def begin(self, benchmark: str, size: Sizes) -> None:
        self.size, self.benchmark, self.began = size, benchmark, time.time()
        self.servers, self.written = {}, []


RUN = Run()


# ---- figures ------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratio(pair: Pair) -> float:
    ours, other = pair
    return ours / other if other else (math.inf if ours else 1.0)


def report(
    name: str,
    bar: float,
    more_is_better: bool,
    pairs: list[Pair],
    *,
    unit: str = "",
    absolute: bool = False,
    note: str = "",
    interval: Pair | None = None,
) -> None:
    """Print a figure and write it down.  The bar is for the ratio, or (absolute) for our side
    alone; an infinite one is none: the figure is for the record.  Its range is that of the
    ratios, or the interval."""
    ratios = [ratio(pair) for pair in pairs]
    lowest, highest = interval or (min(ratios), max(ratios))
    ours = statistics.median(p[0] for p in pairs)
    other = statistics.median(p[1] for p in pairs)
    middle = statistics.median(ratios)
    judged = ours if absolute else middle
    good = judged >= bar if more_is_better else judged <= bar
    verdict = "record" if math.isinf(bar) else "ok" if good else "short"
    print(
        f"{name:<30} {ours:>11.4g} {other:>11.4g} {middle:>9.4g} "
        f"[{lowest:.4g}..{highest:.4g}] {bar_text(bar, more_is_better, absolute)} "
        f"{verdict}",
        flush=True,
    )
    save(
        name,
        {
            "bar": None if math.isinf(bar) else bar,
            "more_is_better": more_is_better,
            "absolute": absolute,
            "unit": unit,
            "note": note,
            "pairs": pairs,
            "ours": ours,
            "other": other,
            "ratio": finite(middle),
            "lowest": finite(lowest),
            "highest": finite(highest),
            "verdict": verdict,
        },
    )


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def bar_text(bar: float, more_is_better: bool, absolute: bool) -> str:
    if math.isinf(bar):
        return "-"
    return f"{'ours ' if absolute else ''}{'>=' if more_is_better else '<='} {bar:g}"


def series(name: str, points: dict[str, list[Pair]]) -> None:
    """Write down the points of a plot: lines by their labels."""
    save(f"series-{name}", {"series": points})


def save(name: str, figures: dict[str, Any]) -> None:
    RAW.mkdir(parents=True, exist_ok=True)
    raw = {
        "name": name,
        "benchmark": RUN.benchmark,
        "size": RUN.size.name,
        "seed": RUN.size.seed,
        **figures,
        "began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(RUN.began)),
        "seconds": round(time.time() - RUN.began, 1),
        "load": os.getloadavg(),
        "machine": machine(),
        "servers": RUN.servers,
    }
    (RAW / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    RUN.written.append(name)


def machine() -> dict[str, Any]:
    def first(path: str, pattern: str) -> str:
        try:
            found = re.search(pattern, Path(path).read_text())
        except OSError:
            return "?"
        return found[1].strip() if found else "?"

    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": first("/proc/cpuinfo", r"model name\s*:\s*(.+)"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(first("/proc/meminfo", r"MemTotal:\s*(\d+)")) / 1024**2, 1),
        "filesystem": filesystem(),
        "commit": commit(),
    }


def filesystem() -> str:
    """Of the benchmarks' servers; ext4 may be made without a journal, and makes files slowly then
    for minutes after others were removed."""
    place = os.environ.get("AGENT_BRANCH_TEST_DIR", tempfile.gettempdir())
    done = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", place],
        check=False,
        capture_output=True,
        text=True,
    )
    kind, _, source = done.stdout.strip().partition(" ")
    device = Path(source.strip()).name
    if kind == "ext4" and not list(Path("/proc/fs/jbd2").glob(f"{device}-*")):
        kind += " without a journal"
    return f"{kind} on a loop device" if device.startswith("loop") else kind


def commit() -> str:
    """Of the sources, with a plus sign if there is more than that."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True
        )
        return done.stdout.strip()

    others = "bench/RESULTS.md", "bench/plots"
    changed = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in others))
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


# ---- taking turns -----------------------------------------------------------------


def alternate(repeats: int, ours: Side, other: Side) -> list[Pair]:
    """One warm-up, then pairs; who begins changes, so that drift hits both."""
    pairs = []
    for turn in range(repeats + 1):
        if turn % 2:
            second = other()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, other()))
    return pairs[1:]


def ms(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def call_by_call(
    repeats: int, calls: int, ours: Callable[[], object], other: Callable[[], object]
) -> list[tuple[list[float], list[float]]]:
    """Milliseconds of calls of either side in turn, by repeat; one warm-up before."""
    found = []
    for _ in range(repeats + 1):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(calls):
            times[0].append(ms(ours))
            times[1].append(ms(other))
        found.append(times)
    return found[1:]


def report_calls(
    name: str,
    found: list[tuple[list[float], list[float]]],
    p50: float,
    p99: float,
    note: str = "",
) -> None:
    """Both against the median of the other side."""
    for label, share, bar in (("p50", 0.5, p50), ("p99", 0.99, p99)):
        pairs = [(quantile(a, share), quantile(b, 0.5)) for a, b in found]
        report(f"{name}-{label}", bar, False, pairs, unit="ms", note=note)


# ---- servers ------------------------------------------------------------------------

COMMON: dict[str, Any] = {"log_statement": "none"}
# Between two looks at the same thing nothing else should happen.
CALM: dict[str, Any] = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "shared_buffers": "512MB",
}

_made: dict[bool, Path] = {}


def made_once(library: bool) -> Path:
    """A data directory that new servers begin with a copy of."""
    if library not in _made:
        base = workspace("ab-bench-")
        atexit.register(shutil.rmtree, base, ignore_errors=True)
        cluster = Cluster.create(base, "made", COMMON, library=library, extension=library)
        if not library:
            cluster.sql("CREATE DATABASE main")
        cluster.stop()
        kept = base / "kept"
        shutil.move(cluster.data, kept)
        cluster.destroy()
        _made[library] = kept
    return _made[library]


@contextmanager
def server(
    name: str, library: bool = True, place: Path | None = None, **settings: Any
) -> Iterator[Cluster]:
    """A server with an empty database main, and everything of ours if it has the library."""
    base = place or workspace("ab-bench-")
    copy = base / f"{name}-copy"
    subprocess.run(["cp", "-a", str(made_once(library)), str(copy)], check=True)
    cluster = Cluster.from_data(base, name, copy, {**COMMON, **settings})
    try:
        rows = cluster.sql(
            "SELECT name, setting || coalesce(unit, '') FROM pg_settings"
            " WHERE source IN ('configuration file', 'command line')"
            " AND name !~ '^(port|unix_socket.*|cluster_name|log_.*|DateStyle|lc_.*|.*TimeZone)$'"
        )
        RUN.servers[name] = {"version": cluster.scalar("SHOW server_version"), **dict(rows)}
        yield cluster
    finally:
        cluster.destroy()
        if place is None:
            shutil.rmtree(base, ignore_errors=True)


@contextmanager
def pair(name: str, **settings: Any) -> Iterator[tuple[Cluster, Cluster]]:
    """Ours, and a stock server beside it with the same settings."""
    stock = {key: value for key, value in settings.items() if "." not in key}
    with server(name, **settings) as ours, server(f"{name}-stock", library=False, **stock) as other:
        yield ours, other


def filled(cluster: Cluster, dbname: str, scale: int) -> None:
    if not cluster.scalar("SELECT count(*) FROM pg_database WHERE datname = %s", (dbname,)):
        cluster.sql(f"CREATE DATABASE {dbname}")
    cluster.pgbench(["-i", "-q", "-s", str(scale)], dbname)


def tps(cluster: Cluster, dbname: str, *options: str) -> float:
    """Transactions per second of a pgbench run of the size in force."""
    output = cluster.pgbench(
        [
            *("-n", "-c", "2", "-T", str(RUN.size.seconds)),
            *(f"--random-seed={RUN.size.seed}", *options),
        ],
        dbname,
    )
    found = re.search(r"tps = ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def branch(session: Conn, name: str, parent: str = "main") -> None:
    session.execute(f"CREATE DATABASE {name} TEMPLATE {parent} STRATEGY branch")


def drop(session: Conn, name: str) -> None:
    """Without the checkpoint that DROP DATABASE makes."""
    session.execute("SELECT branch.delete(%s, hard => true)", (name,))


def insert_one(cluster: Cluster) -> tuple[Conn, Callable[[], object]]:
    """A session, and a committed single-row INSERT in it."""
    session = cluster.connect()
    session.execute("CREATE TABLE IF NOT EXISTS one (i int)")
    return session, lambda: session.execute("INSERT INTO one VALUES (1)")


def used(cluster: Cluster) -> tuple[int, int]:
    """Bytes on disk and inodes of the data directory, but for WAL; hard links count once."""
    found: dict[int, int] = {}
    for place, directories, files in os.walk(cluster.data):
        if Path(place) == cluster.data:
            directories.remove("pg_wal")
        for name in (*directories, *files):
            try:
                status = (Path(place) / name).lstat()
            except FileNotFoundError:
                continue
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values()), len(found)
