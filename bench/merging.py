"""What merges write, beside plain statements that write the same rows."""

from __future__ import annotations

import math
import time
from itertools import count
from typing import Any

import diff_cost
import psycopg
from ab_cluster import Cluster
from measure import CALM, Sizes, alternate, ms, report, server

CONFLICTS = {"quick": 2_000, "usual": 100_000, "full": 1_000_000}


def merge_floor(size: Sizes) -> None:
    """Merging 1 % changed rows of a table of 1 GB beside one UPDATE of the same rows in the target:
    what a merge cannot be faster than."""
    number = size.rows // 100
    with server("floor", **CALM) as cluster:
        diff_cost.table(cluster, size.rows)
        turns = count()
        update = f"UPDATE t SET v = v + 1 WHERE id <= {number}"

        def merge() -> float:
            name = f"m{next(turns)}"
            cluster.sql(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
            cluster.sql(update, dbname=name)
            cluster.sql(f"UPDATE t SET v = v + 1 WHERE id = {size.rows}", dbname="main")
            with cluster.connect() as session:
                took = ms(lambda: session.execute("SELECT * FROM branch.merge(%s)", (name,)))
            cluster.sql(f"DROP DATABASE {name}")
            return took

        def plain() -> float:
            with cluster.connect("main") as session:
                return ms(lambda: session.execute(update))

        pairs = alternate(size.repeats, merge, plain)
        report("merge-floor", math.inf, False, pairs, unit="ms", note="beside a plain UPDATE")


def merge_row(size: Sizes) -> None:
    """Merging a branch that changed one row, beside a plain UPDATE of it: what does not depend on
    rows, in a session that has merged before, and in one of its own."""
    update = "UPDATE t SET v = v + 1 WHERE id = 1"
    with server("row", **CALM) as cluster:
        diff_cost.table(cluster, 10_000)
        turns = count()

        def merge(name: str, session: psycopg.Connection[Any]) -> None:
            session.execute("SELECT * FROM branch.merge(%s)", (name,))

        def branch() -> str:
            name = f"m{next(turns)}"
            cluster.sql(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
            cluster.sql(update, dbname=name)
            cluster.sql("UPDATE t SET v = v + 1 WHERE id = 10000", dbname="main")
            return name

        def plain() -> float:
            with cluster.connect("main") as session:
                return ms(lambda: session.execute(update))

        def in_a_new_one() -> float:
            name = branch()
            with cluster.connect() as session:
                return ms(lambda: merge(name, session))

        with cluster.connect() as session:

            def in_the_same() -> float:
                name = branch()
                return ms(lambda: merge(name, session))

            pairs = alternate(4 * size.repeats, in_the_same, plain)
        report("merge-row", math.inf, False, pairs, unit="ms", note="in one session")
        pairs = alternate(4 * size.repeats, in_a_new_one, plain)
        report("merge-row-new", math.inf, False, pairs, unit="ms", note="each in a new session")


def resolve(size: Sizes) -> None:
    """Finding conflicts in all rows of a table, and resolving them, beside one UPDATE of all rows;
    and memory (MB).

    With --full a million.  On a quiet machine they were found in 50 s and resolved in 16 s, with 70
    and 117 MB; the UPDATE took 4 s.
    """
    number = CONFLICTS[size.name]
    with server("resolve", **CALM) as cluster:
        _contested(cluster, number)
        with cluster.connect() as session:
            session.execute("SET client_min_messages = warning")
            found, *finding = _run(
                cluster, session, "SELECT merge_id, conflicts FROM branch.merge('other')"
            )
            ((merge, conflicts),) = found
            assert conflicts == number, conflicts
            applied, *resolving = _run(
                cluster,
                session,
                f"SELECT rows_applied FROM branch.conflicts_resolve({merge}, 'theirs')",
            )
        assert applied == [(number,)], applied
        plain = _update(cluster)
        _report("conflicts", number, finding, plain)
        _report("resolve", number, resolving, plain)


def strategy(size: Sizes) -> None:
    """Merging a table of which all rows are in conflict, decided by a strategy, beside one UPDATE
    of all rows; and memory (MB).  With --full a million."""
    number = CONFLICTS[size.name]
    for side in ("theirs", "ours"):
        with server(f"strategy-{side}", **CALM) as cluster:
            _contested(cluster, number)
            with cluster.connect() as session:
                session.execute("SET client_min_messages = warning")
                found, *merging = _run(
                    cluster,
                    session,
                    f"SELECT conflicts, rows_applied FROM branch.merge('other', 'main', '{side}')",
                )
            assert found == [(number, number if side == "theirs" else 0)], found
            _report(f"conflicts-{side}", number, merging, _update(cluster))


def _contested(cluster: Cluster, number: int) -> None:
    """Databases main and other, of which each has changed all rows of a table."""
    diff_cost.table(cluster, number, 32)
    diff_cost.changed(cluster, "other", number, number, scattered=False)
    cluster.sql("UPDATE t SET v = -1", dbname="main")


def _update(cluster: Cluster) -> float:
    with cluster.connect("main") as session:
        return ms(lambda: session.execute("UPDATE t SET v = v + 1"))


def _report(name: str, number: int, run: list[float], plain: float) -> None:
    took, memory = run
    note = f"{number} conflicts"
    report(name, math.inf, False, [(took, plain)], unit="ms", note=note)
    report(f"{name}-memory", 256, False, [(memory, 0.0)], unit="MB", absolute=True, note=note)


def _run(
    cluster: Cluster, session: psycopg.Connection[Any], query: str
) -> tuple[list[tuple[Any, ...]], float, float]:
    """Rows of a query, milliseconds, and the most memory (MB) while it ran."""
    with diff_cost.Peak(cluster, session) as peak:
        began = time.perf_counter()
        rows = session.execute(query).fetchall()
        took = (time.perf_counter() - began) * 1000
    return rows, took, peak.mb
