"""Figures side by side with stock PostgreSQL: ``run.py [--quick | --full] [NAME ...]``.

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
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import asleep  # noqa: E402
import diff_cost  # noqa: E402
import live_parent as live  # noqa: E402
from ab_cluster import Cluster, workspace  # noqa: E402
from tree_search import SETTINGS as SEARCH  # noqa: E402
from tree_search import Search, quantile, used_bytes  # noqa: E402

Side = Callable[[], float]
RAW = ROOT / "bench" / "raw"


class Sizes:
    """How much of everything: quick figures or real ones."""

    def __init__(self, quick: bool, full: bool = False) -> None:
        self.full = full
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


def tree_search(size: Sizes) -> None:
    """Creating from a branch written a moment ago, under ten clients that do just that,
    at depths to 25; with --full also at depth 1000, and 1000 clients at once."""
    levels = {"1": range(1, 3), "25": range(23, 26)}
    steps = max(40, size.calls // 4)
    with server("search", **SEARCH) as cluster:
        search = Search(cluster)
        empty = used_bytes(cluster)
        search.run("warm up", 2, 5, 5)
        found = [search.run(f"{turn}", 10, steps, 25) for turn in range(size.repeats)]
        for name, depth in levels.items():
            for share, label, bar in ((0.5, "p50", 40.0), (0.99, "p99", 200.0)):
                pairs = [
                    (quantile(part.at(depth), share), quantile(part.inserts, 0.5))
                    for part in found
                    if part.at(depth)
                ]
                report(f"tree-search-{label}-depth-{name}", bar, False, pairs)
        if size.full:
            deep_search(search, size)
        before = used_bytes(cluster) - empty
        search.prune_all()
        left = used_bytes(cluster) - empty
        report("tree-search-space-left", 0.05, False, [(max(left, 0) / 1e6, before / 1e6)])


def deep_search(search: Search, size: Sizes) -> None:
    """The deep end: a chain of 1000 branches, and 1000 sessions that fork one parent."""
    figures = search.at_depth(search.chain(1000), size.calls)
    insert = quantile(figures.inserts, 0.5)
    times = [ms for _, ms in figures.creations]
    report("tree-search-p50-depth-1000", 40, False, [(quantile(times, 0.5), insert)])
    report("tree-search-p99-depth-1000", 200, False, [(quantile(times, 0.99), insert)])
    report("tree-search-1000-at-once", 1, False, [(max(search.all_at_once(1000)), 1000)])


def live_parent(size: Sizes) -> None:
    """Branches of a parent that eight clients write, and what its writers notice."""
    with server("busy", shared_buffers="512MB", max_wal_size="8GB") as cluster:
        filled(cluster, "main", 100 if size.full else size.scale)
        found = live.busy(cluster, "main", size.seconds, size.repeats)
        # The bars of a clean parent, for what is beyond the flush of what is dirty and the
        # wait for writers; then everything, for the record.
        insert = quantile(found.inserts, 0.5)
        for share, label, bar in ((0.5, "p50", 3), (0.99, "p99", 15)):
            report(f"create-busy-{label}", bar, False, [(quantile(found.beyond, share), insert)])
            whole = quantile(found.creations, share)
            report(f"create-busy-whole-{label}", math.inf, False, [(whole, insert)])
        # The bar is 100 ms beyond what the writers wait for each other.
        report(
            "create-busy-writers-wait",
            1,
            False,
            [
                (max(0.0, ours - other), 100.0)
                for ours, other in zip(found.wait_with, found.wait_without, strict=True)
            ],
        )


def live_settled(size: Sizes) -> None:
    """TPC-B of a parent with a living snapshot beside an equal database without one; and the
    disk space that its pages take."""
    with server("settled", shared_buffers="512MB", max_wal_size="8GB") as cluster:
        for name in ("main", "plain"):
            filled(cluster, name, size.scale)
        cluster.sql("CREATE DATABASE living TEMPLATE main STRATEGY branch")
        report("disk-per-page", 1.05, False, [live.disk_per_page(cluster, "main", 50)])
        live.settle(cluster, "main", "plain")
        report(
            "tpcb-parent-with-snapshot",
            0.95,
            True,
            alternate(
                size.repeats,
                partial(tps, cluster, "main", size.seconds),
                partial(tps, cluster, "plain", size.seconds),
            ),
        )


def live_history(size: Sizes) -> None:
    """Point reads in a branch with many later snapshots of its parent beside one with one.

    The pages are spread over as many files as there are snapshots, and the server is set up
    for that as the README says."""
    later = 1000 if size.full else 50
    settings: dict[str, Any] = {
        "agent_branch.max_snapshots": 2000,
        "max_files_per_process": 4 * later,
    }
    with server("history", shared_buffers="8MB", max_wal_size="8GB", **settings) as cluster:
        for name, snapshots in (("many", later), ("few", 1)):
            filled(cluster, name, size.scale)
            live.history(cluster, name, f"{name}_oldest", snapshots, 20 * later)
        report(
            f"read-oldest-of-{later}-vs-1",
            1 / 1.2,
            True,
            alternate(
                size.repeats,
                partial(live.reads, cluster, "many_oldest", size.seconds),
                partial(live.reads, cluster, "few_oldest", size.seconds),
            ),
        )


def live_size(size: Sizes) -> None:
    """A branch of a large parent, one row of which was just written, beside one of a small."""
    with server("size", shared_buffers="512MB", max_wal_size="16GB") as cluster:
        filled(cluster, "large", 700 if size.full else 10 * size.scale)
        filled(cluster, "small", 1)
        cluster.sql("CHECKPOINT")
        large = live.written_branch(cluster, "large", "l")
        small = live.written_branch(cluster, "small", "s")
        report(
            "create-large-vs-small",
            1.1,
            False,
            alternate(
                size.repeats,
                lambda: statistics.median(large() for _ in range(max(5, size.calls // 20))),
                lambda: statistics.median(small() for _ in range(max(5, size.calls // 20))),
            ),
        )


def diff_changed(size: Sizes) -> None:
    """Finding 1 % changed rows of a table of 1 GB beside reading both tables whole."""
    rows = 1_000_000 if size.calls >= 500 else 50_000
    count = rows // 100
    with server("diff", shared_buffers="256MB", max_wal_size="8GB") as cluster:
        diff_cost.table(cluster, rows)
        for name, scattered in (("scattered", True), ("clustered", False)):
            diff_cost.changed(cluster, name, rows, count, scattered=scattered)
            changed, read, total = diff_cost.pages(cluster, name)
            print(f"  {name}: {changed} pages changed, {read} read of {total} on both sides")
            report(
                f"diff-{name}",
                1 / 50,
                False,
                alternate(
                    size.repeats,
                    partial(diff_cost.diff_ms, cluster, name, count),
                    partial(diff_cost.full_ms, cluster, name, count),
                ),
            )


def diff_memory(size: Sizes) -> None:
    """Memory (MB) of a diff that finds a million rows beside one of a tenth of them."""
    rows = 1_000_000 if size.calls >= 500 else 100_000
    with server("memory", shared_buffers="128MB", max_wal_size="8GB") as cluster:
        diff_cost.table(cluster, rows, 32)
        diff_cost.changed(cluster, "many", rows, rows, scattered=False)
        diff_cost.changed(cluster, "few", rows, rows // 10, scattered=False)
        few = diff_cost.peak_mb(cluster, "few", rows // 10)
        many = diff_cost.peak_mb(cluster, "many", rows)
        report("diff-memory", 1.5, False, [(many, few)])


def resume(size: Sizes) -> None:
    """The first row of a suspended branch beside that of a plain database nobody suspends."""
    with server("resume", autovacuum="off") as cluster:
        filled(cluster, "main", size.scale)
        cluster.sql("CREATE DATABASE plain TEMPLATE main")
        cluster.sql("SELECT branch.create('b', 'main')")
        asleep.starts(cluster, "b", "plain", 3)
        found = asleep.starts(cluster, "b", "plain", 100)
        for line in asleep.table(found):
            print(line, flush=True)
        ours = sorted(asleep.until_read(run) for run in found["branch"])
        other = sorted(asleep.until_read(run) for run in found["plain"])
        middle = list(zip(ours, other, strict=True))[45:55]
        report("resume-p50", 1.5, False, middle)
        report("resume-p99-of-10ms", 1.0, False, [(ours[98], 10.0)])


def many_asleep(size: Sizes) -> None:
    """What others notice of suspended branches, beside a server that has none; for \\l, which
    shows them all, beside one where they are awake."""
    count = 1000 if size.calls < 500 else 10_000
    settings: dict[str, Any] = {
        "autovacuum_naptime": "1s",
        "checkpoint_timeout": "1h",
        "max_wal_size": "8GB",
    }
    cpu = partial(asleep.cpu_ms, seconds=5 * size.repeats)
    with server("asleep", **settings) as ours, server("none", **settings) as other:
        for cluster in (ours, other):
            filled(cluster, "main", size.scale)
        names = [f"b{i}" for i in range(count)]
        ours.sql("SELECT count(*) FROM branch.create_many(%s, 'main')", (names,))
        asleep.visit_all(ours, names)
        awake = [asleep.listing(ours) for _ in range(size.repeats)]
        asleep.send_to_sleep(ours, count)
        pairs = list(zip([asleep.listing(ours) for _ in awake], awake, strict=True))
        report(f"asleep-{count}-list", 1.1, False, pairs)
        for name, figure in (
            ("checkpoint", asleep.checkpoint),
            ("connect", partial(asleep.connecting, times=size.calls)),
            ("launcher", partial(cpu, process="autovacuum launcher")),
            ("activity", partial(cpu, process="agent_branch activity")),
            ("statistics", asleep.statistics_kb),
        ):
            once = name not in ("checkpoint", "connect")
            sides = (partial(figure, ours), partial(figure, other))
            pairs = [(sides[0](), sides[1]())] if once else alternate(size.repeats, *sides)
            report(f"asleep-{count}-{name}", 1.1, False, [(a + 0.1, b + 0.1) for a, b in pairs])


BENCHMARKS: dict[str, Callable[[Sizes], None]] = {
    "create-clean": create_clean,
    "create-template": create_template,
    "connect": connect,
    "throughput": throughput,
    "unused": unused,
    "resume": resume,
    "many-asleep": many_asleep,
    "live-parent": live_parent,
    "live-settled": live_settled,
    "live-history": live_history,
    "live-size": live_size,
    "tree-search": tree_search,
    "diff-changed": diff_changed,
    "diff-memory": diff_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--full", action="store_true", help="the largest sizes, too")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="all if none")
    arguments = parser.parse_args()
    size = Sizes(arguments.quick, arguments.full)
    print(f"{'name':<28} {'ours':>10} {'other':>10} {'ratio':>8} [min..max] bar")
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name](size)


if __name__ == "__main__":
    main()
