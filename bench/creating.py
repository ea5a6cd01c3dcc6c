"""How long it takes to create branches, and what that depends on."""

from __future__ import annotations

import math
import os
import re
import statistics
from itertools import count
from pathlib import Path
from typing import Any

import live_parent as live
from ab_cluster import Cluster
from measure import (
    CALM,
    Conn,
    Pair,
    Sizes,
    branch,
    call_by_call,
    drop,
    filled,
    insert_one,
    ms,
    pair,
    quantile,
    report,
    report_calls,
    series,
    server,
)
from tree_search import SETTINGS as SEARCH
from tree_search import Search, used_bytes

SEGMENT = 1 << 30
MANY_SNAPSHOTS: dict[str, Any] = {"agent_branch.max_snapshots": 20_000}


def create_clean(size: Sizes) -> None:
    """One branch of an unchanged parent beside one committed single-row INSERT on a stock
    server, call by call: the statement, and the function."""
    with pair("clean", **CALM) as (ours, stock), ours.connect() as session:
        filled(ours, "main", size.scale)
        _, insert = insert_one(stock)
        number = count()
        for name, create in (
            ("create-clean", lambda: branch(session, f"b{next(number)}")),
            (
                "create-call",
                lambda: session.execute("SELECT branch.create(%s)", (f"b{next(number)}",)),
            ),
        ):
            report_calls(name, call_by_call(size.repeats, size.calls, create, insert), 3, 15)


def grown(cluster: Cluster, sizes: dict[str, int]) -> None:
    """Databases with a table of that many bytes: pages that were never written, in sparse
    files, as after a table was extended."""
    paths: list[tuple[Path, int]] = []
    for name, size in sizes.items():
        cluster.sql(f"CREATE DATABASE {name}")
        cluster.sql("CREATE TABLE big (i int); INSERT INTO big VALUES (1)", dbname=name)
        paths.append(
            (cluster.data / cluster.scalar("SELECT pg_relation_filepath('big')", dbname=name), size)
        )
    cluster.stop()
    for path, size in paths:
        for number in range(math.ceil(size / SEGMENT)):
            segment = path if number == 0 else path.with_name(f"{path.name}.{number}")
            segment.touch(mode=0o600)
            cluster.give(segment)
            os.truncate(segment, min(size - number * SEGMENT, SEGMENT))
    cluster.start()


class Creations:
    """Branches of several parents in turn, each dropped outside the time taken."""

    def __init__(self, cluster: Cluster, parents: dict[str, str], write: str | None = None) -> None:
        self.session = cluster.connect()
        self.parents = parents
        self.write = write
        self.writers: dict[str, Conn] = {}
        if write:
            self.writers = {parent: cluster.connect(parent) for parent in parents.values()}
        self.number = count()

    def once(self, parent: str) -> float:
        name = f"t{next(self.number)}"
        if self.write:
            self.writers[parent].execute(self.write)
        took = ms(lambda: branch(self.session, name, parent))
        drop(self.session, name)
        return took

    def take(self, repeats: int, calls: int) -> list[dict[str, float]]:
        """Medians by label, for each repeat; one warm-up before."""
        found = []
        for _ in range(repeats + 1):
            times: dict[str, list[float]] = {label: [] for label in self.parents}
            for _ in range(calls):
                for label, parent in self.parents.items():
                    times[label].append(self.once(parent))
            found.append({label: statistics.median(part) for label, part in times.items()})
        return found[1:]

    def close(self) -> None:
        for session in (self.session, *self.writers.values()):
            session.close()


def compared(found: list[dict[str, float]], label: str, other: str) -> list[Pair]:
    return [(part[label], part[other]) for part in found]


def middles(found: list[dict[str, float]], where: dict[str, float]) -> list[Pair]:
    return [(x, statistics.median(part[label] for part in found)) for label, x in where.items()]


def create_size(size: Sizes) -> None:
    """A branch of a parent of 10 GB beside one of 10 MB, the parent unchanged and with one row
    written before each; the large tables are sparse files of pages never written."""
    megabytes = {"m10": 10, "m100": 100, "m1000": 1000, "m10000": 10_000}
    lines: dict[str, list[Pair]] = {}
    with server("size", **CALM, **MANY_SNAPSHOTS) as cluster:
        grown(cluster, {name: mb << 20 for name, mb in megabytes.items()})
        for label, write, calls in (
            ("unchanged", None, size.calls // 5),
            ("one row written before", "INSERT INTO big VALUES (1)", size.calls // 10),
        ):
            creations = Creations(cluster, {name: name for name in megabytes}, write)
            found = creations.take(size.repeats, calls)
            creations.close()
            name = "create-10GB-vs-10MB" + ("-written" if write else "")
            report(name, 1.1, False, compared(found, "m10000", "m10"), unit="ms")
            lines[label] = middles(found, {name: float(mb) for name, mb in megabytes.items()})
    series("create-size", lines)


def create_relations(size: Sizes) -> None:
    """A branch of a parent with many tables beside one of a parent with a hundred, unchanged
    and with one row written before each."""
    with server("relations", **CALM, **MANY_SNAPSHOTS) as cluster:
        for name, tables in (("many", size.relations), ("few", 100)):
            cluster.sql(f"CREATE DATABASE {name}")
            with cluster.connect(name) as session:
                for start in range(0, tables, 500):
                    session.execute(
                        f"DO $$ BEGIN FOR i IN {start} .. {min(start + 500, tables) - 1} LOOP"
                        " EXECUTE format('CREATE TABLE t%s (i int)', i); END LOOP; END $$"
                    )
                session.execute("VACUUM FREEZE")
        cluster.sql("CHECKPOINT")
        for suffix, write, calls in (
            ("", None, size.calls // 5),
            ("-written", "INSERT INTO t0 VALUES (1)", size.calls // 10),
        ):
            creations = Creations(cluster, {"many": "many", "few": "few"}, write)
            found = creations.take(size.repeats, calls)
            creations.close()
            name = f"create-{size.relations}-relations-vs-100{suffix}"
            report(name, 1.2, False, compared(found, "many", "few"), unit="ms")


def create_depth(size: Sizes) -> None:
    """A branch of a branch deep down a chain, of which each wrote a row, beside one of the first
    of that chain."""
    wanted = [depth for depth in (1, 5, 20, 100, 250, 500) if depth <= size.chain]
    with server("depth", **CALM, **MANY_SNAPSHOTS) as cluster:
        filled(cluster, "main", 1)
        parent = "main"
        with cluster.connect() as session:
            for depth in range(1, size.chain + 1):
                branch(session, f"d{depth}", parent)
                parent = f"d{depth}"
                cluster.sql(
                    f"UPDATE pgbench_accounts SET abalance = 1 WHERE aid = {depth}", dbname=parent
                )
        creations = Creations(cluster, {f"d{depth}": f"d{depth}" for depth in wanted})
        found = creations.take(size.repeats, size.calls // 5)
        creations.close()
    pairs = compared(found, f"d{wanted[-1]}", "d1")
    report(f"create-depth-{wanted[-1]}-vs-1", 1.5, False, pairs, unit="ms")
    line = middles(found, {f"d{depth}": float(depth) for depth in wanted})
    series("create-depth", {"parent unchanged": line})


# Names of their own for each client; a counter that goes on.
CREATING = """\\set n :n + 1
CREATE DATABASE "r:run-:client_id-:n" TEMPLATE main STRATEGY branch;
"""
INSERTING = "INSERT INTO one VALUES (1);\n"


def clients_rate(cluster: Cluster, script: str, run: int, clients: int, each: int) -> float:
    """Transactions per second of so many pgbench clients, none of which may fail."""
    path = cluster.root / "script.sql"
    path.write_text(script)
    output = cluster.pgbench(
        [
            *("-n", "-c", str(clients), "-j", "2", "-t", str(each), "-M", "simple"),
            *("-D", "n=0", "-D", f"run={run}", "-f", str(path)),
        ],
        "postgres",
    )
    done = re.search(r"actually processed: (\d+)/(\d+)", output)
    assert done and done[1] == done[2] == str(clients * each), output
    found = re.search(r"tps = ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def create_rate(size: Sizes) -> None:
    """Branches per second: in one transaction, and by a hundred clients; beside as many
    INSERTs on a stock server."""
    names = min(size.branches, 2000)
    each = max(1, size.branches // 100 // (size.repeats + 1))
    settings = {**CALM, "max_connections": 150}
    with pair("rate", **settings) as (ours, stock):
        filled(ours, "main", 1)
        stock_session, _ = insert_one(stock)
        session = ours.connect()
        together: list[Pair] = []
        for turn in range(size.repeats + 1):
            wanted = [f"m{turn}-{i}" for i in range(names)]
            create = ms(
                lambda wanted=wanted: session.execute(  # type: ignore[misc]
                    "SELECT count(*) FROM branch.create_many(%s)", (wanted,)
                )
            )
            insert = ms(
                lambda: stock_session.execute(
                    f"DO $$ BEGIN FOR i IN 1..{names} LOOP INSERT INTO one VALUES (i);"
                    " END LOOP; END $$"
                )
            )
            together.append((names / create * 1000, names / insert * 1000))
            session.execute(
                "SELECT branch.delete(name, hard => true) FROM unnest(%s::text[]) AS name",
                (wanted,),
            )
            # or the next turn would have to share the disk with the removal of this one
            session.execute("SELECT * FROM branch.gc()")
        report("create-rate-one-transaction", 5000, True, together[1:], unit="1/s", absolute=True)
        pairs = [
            (
                clients_rate(ours, CREATING, turn, 100, each),
                clients_rate(stock, INSERTING, turn, 100, each),
            )
            for turn in range(size.repeats + 1)
        ]
        note = f"{100 * each * len(pairs)} branches, no failure"
        report(
            "create-rate-100-clients", 500, True, pairs[1:], unit="1/s", absolute=True, note=note
        )


def tree_search(size: Sizes) -> None:
    """Creating from a branch written a moment ago, under ten clients that do just that, at
    depths to 25 and further down; and many clients at once.  Beside INSERTs under that load."""
    levels = {"1": range(1, 3), "25": range(23, 26)}
    with server("search", **SEARCH) as cluster:
        search = Search(cluster)
        empty = used_bytes(cluster)
        search.run(f"warm up {size.seed}", 2, 5, 5)
        found = [
            search.run(f"{size.seed}/{turn}", 10, size.steps, 25) for turn in range(size.repeats)
        ]
        for name, depth in levels.items():
            for share, label, bar in ((0.5, "p50", 40.0), (0.99, "p99", 200.0)):
                pairs = [
                    (quantile(part.at(depth), share), quantile(part.inserts, 0.5))
                    for part in found
                    if part.at(depth)
                ]
                if pairs:
                    report(f"tree-search-{label}-depth-{name}", bar, False, pairs, unit="ms")
        figures = search.at_depth(search.chain(size.deep), size.calls)
        insert = quantile(figures.inserts, 0.5)
        times = [took for _, took in figures.creations]
        for share, label, bar in ((0.5, "p50", 40.0), (0.99, "p99", 200.0)):
            pairs = [(quantile(times, share), insert)]
            report(f"tree-search-{label}-depth-{size.deep}", bar, False, pairs, unit="ms")
        for suffix, warm in ("", True), ("-cold", False):
            longest = max(search.all_at_once(size.at_once, warm))
            report(
                f"tree-search-{size.at_once}-at-once{suffix}",
                1000,
                False,
                [(longest, insert)],
                unit="ms",
                absolute=True,
                note="the longest wait of any client; none failed; "
                + ("each has made a branch before" if warm else "each session's first statement"),
            )
        before = used_bytes(cluster) - empty
        search.prune_all()
        left = used_bytes(cluster) - empty
        pairs = [(max(left, 0) / 1e6, before / 1e6)]
        report("tree-search-space-left", 0.05, False, pairs, unit="MB")


def live_parent(size: Sizes) -> None:
    """Branches of a parent that eight clients write, and what its writers notice; beside
    INSERTs under the same load, and the same load with no branch made."""
    seconds = max(size.seconds, 3 if size.quick else 6)
    with server("busy", shared_buffers="512MB", max_wal_size="8GB") as cluster:
        filled(cluster, "main", size.busy_scale)
        found = live.busy(cluster, "main", seconds, size.repeats)
        # The bars of a clean parent, for what is beyond the flush of what is dirty and the
        # wait for writers; then everything, for the record.
        insert = quantile(found.inserts, 0.5)
        # An INSERT has its slow ones under this load, too: they wait for the same disk.
        alike = quantile(found.inserts, 0.99)
        note = f"{len(found.beyond)} creations; p99 of {len(found.inserts)} INSERTs {alike:.1f} ms"
        for share, label, bar in ((0.5, "p50", 3), (0.99, "p99", 15)):
            pairs = [(quantile(found.beyond, share), insert)]
            report(f"create-busy-{label}", bar, False, pairs, unit="ms", note=note)
            pairs = [(quantile(found.creations, share), insert)]
            report(f"create-busy-whole-{label}", math.inf, False, pairs, unit="ms")
        waits = list(zip(found.wait_with, found.wait_without, strict=True))
        report(
            "create-busy-writers-wait",
            100,
            False,
            [(max(0.0, ours - other), other) for ours, other in waits],
            unit="ms",
            absolute=True,
            note="the longest transaction beyond the longest when no branch is made",
        )
