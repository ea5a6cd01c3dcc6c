"""What merges write, beside plain statements that write the same rows."""

from __future__ import annotations

import math
import time
from itertools import count

import diff_cost
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


def resolve(size: Sizes) -> None:
    """Resolving conflicts in all rows of a table beside one UPDATE of all rows, and memory (MB).

    With --full a million.  By hand, while six processes waited for each core: found in 450 s
    (73 s of CPU in the caller, 79 MB), resolved in 120 s; 200,000 in 19 s (4.4 times the UPDATE,
    87 MB).
    """
    number = CONFLICTS[size.name]
    with server("resolve", **CALM) as cluster:
        diff_cost.table(cluster, number, 32)
        diff_cost.changed(cluster, "other", number, number, scattered=False)
        cluster.sql("UPDATE t SET v = -1", dbname="main")
        with cluster.connect() as session:
            session.execute("SET client_min_messages = warning")
            found = session.execute("SELECT merge_id, conflicts FROM branch.merge('other')")
            ((merge, conflicts),) = found.fetchall()
            assert conflicts == number, conflicts
            call = "SELECT rows_applied FROM branch.conflicts_resolve(%s, 'theirs')"
            with diff_cost.Peak(cluster, session) as peak:
                began = time.perf_counter()
                applied = session.execute(call, (merge,)).fetchall()
                took = (time.perf_counter() - began) * 1000
        assert applied == [(number,)], applied
        with cluster.connect("main") as session:
            plain = ms(lambda: session.execute("UPDATE t SET v = v + 1"))
        note = f"{number} conflicts"
        report("resolve", math.inf, False, [(took, plain)], unit="ms", note=note)
        report("resolve-memory", 256, False, [(peak.mb, 0.0)], unit="MB", absolute=True, note=note)
