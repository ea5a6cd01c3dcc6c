"""Diff and merge of a table with 1 % changed rows beside a comparison of the two tables."""

from __future__ import annotations

from functools import partial
from itertools import count

import diff_cost
from measure import CALM, Sizes, alternate, ms, report, server


def bar(size: Sizes) -> float:
    """For tables of 1 GB; the small ones of --quick are read whole in no time."""
    return 1 / 50 * max(1.0, 1_000_000 / size.rows)


def diff_changed(size: Sizes) -> None:
    """Finding 1 % changed rows of a table of 1 GB beside reading both tables whole."""
    number = size.rows // 100
    with server("diff", **CALM) as cluster:
        diff_cost.table(cluster, size.rows)
        for name, scattered in (("scattered", True), ("clustered", False)):
            diff_cost.changed(cluster, name, size.rows, number, scattered=scattered)
            changed, read, total = diff_cost.pages(cluster, name)
            pairs = alternate(
                size.repeats,
                partial(diff_cost.diff_ms, cluster, name, number),
                partial(diff_cost.full_ms, cluster, name, number),
            )
            note = f"{changed} pages changed, {read} read of {total} on both sides"
            report(f"diff-{name}", bar(size), False, pairs, unit="ms", note=note)


def diff_memory(size: Sizes) -> None:
    """Memory (MB) of a diff that finds a million rows beside one of a tenth of them."""
    with server("memory", **CALM) as cluster:
        diff_cost.table(cluster, size.rows, 32)
        diff_cost.changed(cluster, "many", size.rows, size.rows, scattered=False)
        diff_cost.changed(cluster, "few", size.rows, size.rows // 10, scattered=False)
        few = diff_cost.peak_mb(cluster, "few", size.rows // 10)
        many = diff_cost.peak_mb(cluster, "many", size.rows)
        report("diff-memory", 1.5, False, [(many, few)], unit="MB")


def merge_changed(size: Sizes) -> None:
    """Merging a branch with 1 % changed rows of a table of 1 GB into its parent, which was
    written elsewhere, beside reading both tables whole."""
    number = size.rows // 100
    with server("merge", **CALM) as cluster:
        diff_cost.table(cluster, size.rows)
        turns = count()
        names: list[str] = []

        def merge() -> float:
            name = f"m{next(turns)}"
            names.append(name)
            cluster.sql(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
            cluster.sql(f"UPDATE t SET v = v + 1 WHERE id <= {number}", dbname=name)
            cluster.sql(f"UPDATE t SET v = v + 1 WHERE id = {size.rows}", dbname="main")
            with cluster.connect() as session:
                took = ms(lambda: session.execute("SELECT * FROM branch.merge(%s)", (name,)))
            applied = cluster.scalar(
                "SELECT count(*) FROM t WHERE v = %s", (len(names),), dbname="main"
            )
            assert applied >= number, f"{applied} rows merged, not {number}"
            return took

        # The branch lacks the one row that main has changed since.
        pairs = alternate(
            size.repeats, merge, lambda: diff_cost.full_ms(cluster, names[-1], 1) if names else 1.0
        )
        report("merge-clustered", bar(size), False, pairs, unit="ms")
