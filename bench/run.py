"""Figures side by side with stock PostgreSQL: ``run.py [--quick] [NAME ...]``.

Each benchmark sets up its own servers, alternates between the two sides, discards one
warm-up and prints the median of the ratios with their range:

    name  ours  other  ratio  [min..max]  bar  ok|short

Times are milliseconds (less is better, the bar is an upper one) or transactions per
second (more is better, a lower bar).  Raw figures go to bench/raw/NAME.json.  Absolute
numbers mean nothing on a machine that does other things; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ab_cluster import Cluster, workspace  # noqa: E402

Side = Callable[[], float]
RAW = ROOT / "bench" / "raw"


class Sizes:
    """How much of everything: quick figures or real ones."""

    def __init__(self, quick: bool) -> None:
        self.repeats = 3 if quick else 5
        self.calls = 100 if quick else 500
        self.scale = 2 if quick else 20
        self.seconds = 3 if quick else 20
        self.depth = 10 if quick else 50


def report(name: str, bar: float, more_is_better: bool, pairs: list[tuple[float, float]]) -> None:
    ratios = [ours / other for ours, other in pairs]
    middle = statistics.median(ratios)
    good = middle >= bar if more_is_better else middle <= bar
    ours = statistics.median(p[0] for p in pairs)
    other = statistics.median(p[1] for p in pairs)
    print(
        f"{name:<28} {ours:>10.3f} {other:>10.3f} {middle:>8.3f} "
        f"[{min(ratios):.3f}..{max(ratios):.3f}] {'>=' if more_is_better else '<='} {bar:g} "
        f"{'ok' if good else 'short'}",
        flush=True,
    )
    RAW.mkdir(exist_ok=True)
    raw = {"name": name, "bar": bar, "pairs": pairs, "machine": platform.platform()}
    (RAW / f"{name}.json").write_text(json.dumps(raw, indent=1))


def alternate(repeats: int, ours: Side, other: Side) -> list[tuple[float, float]]:
    pairs = [(ours(), other()) for _ in range(repeats + 1)]
    return pairs[1:]


@contextmanager
def server(name: str, library: bool = True, **settings: object) -> Iterator[Cluster]:
    base = workspace("ab-bench-")
    cluster = Cluster.create(
        base, name, {"log_statement": "none", **settings}, library=library, extension=library
    )
    try:
        yield cluster
    finally:
        cluster.destroy()
        base.rmdir()


def filled(cluster: Cluster, dbname: str, scale: int) -> None:
    if not cluster.scalar("SELECT count(*) FROM pg_database WHERE datname = %s", (dbname,)):
        cluster.sql(f"CREATE DATABASE {dbname}")
    cluster.pgbench(["-i", "-q", "-s", str(scale)], dbname)


def tps(cluster: Cluster, dbname: str, seconds: int, *options: str) -> float:
    """Transactions per second of a pgbench run."""
    output = cluster.pgbench(["-n", "-c", "2", "-T", str(seconds), *options], dbname)
    found = re.search(r"tps = ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def median_ms(calls: int, action: Callable[[int], object]) -> float:
    times = []
    for i in range(calls):
        began = time.perf_counter()
        action(i)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def create_clean(size: Sizes) -> None:
    """One branch of an unchanged parent beside one committed single-row INSERT."""
    with server("create") as cluster, cluster.connect() as session:
        filled(cluster, "main", size.scale)
        session.execute("CREATE TABLE one (i int)")
        count = iter(range(1_000_000))

        def create() -> float:
            return median_ms(
                size.calls,
                lambda i: session.execute(
                    f"CREATE DATABASE b{next(count)} TEMPLATE main STRATEGY branch"
                ),
            )

        def insert() -> float:
            return median_ms(size.calls, lambda i: session.execute("INSERT INTO one VALUES (1)"))

        report("create-clean", 3, False, alternate(size.repeats, create, insert))


def create_template(size: Sizes) -> None:
    """A branch beside CREATE DATABASE ... TEMPLATE of the same parent, both strategies."""
    with server("template", max_wal_size="4GB") as cluster, cluster.connect() as session:
        filled(cluster, "main", size.scale)
        count = iter(range(1_000_000))

        def create(strategy: str) -> float:
            name = f"c{next(count)}"
            ms = median_ms(
                1,
                lambda i: session.execute(
                    f"CREATE DATABASE {name} TEMPLATE main STRATEGY {strategy}"
                ),
            )
            session.execute(f"DROP DATABASE {name}")
            return ms

        for strategy in ("wal_log", "file_copy"):
            pairs = alternate(size.repeats, lambda: create("branch"), partial(create, strategy))
            report(f"create-vs-{strategy}", 0.001, False, pairs)


def connect(size: Sizes) -> None:
    """First connection and query in a fresh branch beside a plain database's."""
    with server("connect") as cluster, cluster.connect() as session:
        filled(cluster, "main", 1)
        count = iter(range(1_000_000))

        def first(strategy: str) -> float:
            name = f"f{next(count)}"
            session.execute(f"CREATE DATABASE {name} TEMPLATE main STRATEGY {strategy}")

            def once(_: int) -> None:
                with cluster.connect(name) as conn:
                    conn.execute("SELECT count(*) FROM pgbench_branches")

            return median_ms(1, once)

        pairs = alternate(size.repeats * 4, lambda: first("branch"), lambda: first("wal_log"))
        report("connect-first", 1.5, False, pairs)


def throughput(size: Sizes) -> None:
    """pgbench in a settled branch beside a plain copy; a deep branch beside a shallow one."""
    with server("throughput", shared_buffers="128MB", max_wal_size="4GB") as cluster:
        filled(cluster, "main", size.scale)
        cluster.sql("CREATE DATABASE plain TEMPLATE main STRATEGY wal_log")
        parent = "main"
        for level in range(1, size.depth + 1):
            cluster.sql(f"CREATE DATABASE d{level} TEMPLATE {parent} STRATEGY branch")
            parent = f"d{level}"
            cluster.sql(
                f"UPDATE pgbench_accounts SET abalance = {level} WHERE aid = {level}", dbname=parent
            )
        deepest = parent
        for name, options, bar in (("select", ("-S",), 0.98), ("tpcb", (), 0.98)):
            report(
                f"{name}-branch-vs-plain",
                bar,
                True,
                alternate(
                    size.repeats,
                    partial(tps, cluster, "d1", size.seconds, *options),
                    partial(tps, cluster, "plain", size.seconds, *options),
                ),
            )
        report(
            f"select-depth-{size.depth}-vs-1",
            0.91,
            True,
            alternate(
                size.repeats,
                lambda: tps(cluster, deepest, size.seconds, "-S"),
                lambda: tps(cluster, "d1", size.seconds, "-S"),
            ),
        )


def unused(size: Sizes) -> None:
    """A server with the library and no branches beside one without it."""
    with server("with") as ours, server("without", library=False) as stock:
        for cluster in (ours, stock):
            filled(cluster, "main", size.scale)
        for name, options in (("select", ("-S",)), ("tpcb", ())):
            report(
                f"{name}-library-unused",
                0.995,
                True,
                alternate(
                    size.repeats,
                    partial(tps, ours, "main", size.seconds, *options),
                    partial(tps, stock, "main", size.seconds, *options),
                ),
            )


BENCHMARKS: dict[str, Callable[[Sizes], None]] = {
    "create-clean": create_clean,
    "create-template": create_template,
    "connect": connect,
    "throughput": throughput,
    "unused": unused,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="all if none")
    arguments = parser.parse_args()
    size = Sizes(arguments.quick)
    print(f"{'name':<28} {'ours':>10} {'other':>10} {'ratio':>8} [min..max] bar")
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](size)


if __name__ == "__main__":
    main()
