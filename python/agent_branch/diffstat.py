"""How much two databases differ, told from their files: no row is read for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from agent_branch.catalog import Table
from agent_branch.compare import Comparison, Summary
from agent_branch.records import dataclass
from agent_branch.tableorder import TableId
from agent_branch.tableshape import same_definition


@dataclass(slots=True)
class Stat:
    """``pages_changed``: those in which rows may differ; ``pages_read``: what a comparison reads
    of both sides; ``pages``: all there are of both.  ``rows``: about how many rows are in the
    changed pages, so about that many at most differ; None: not known, the table was never
    analyzed.  ``exact``: added, modified, removed rows, if they were counted.
    """

    table: TableId | None
    pages_changed: int = 0
    pages_read: int = 0
    pages: int = 0
    rows: int | None = None
    exact: tuple[int, int, int] | None = None
    note: str = ""


def stats(whole: Comparison) -> Iterator[Stat]:
    """Of the tables that may differ, by name."""
    before, after = whole.before.tables, whole.after.tables
    for name in sorted({*before, *after}):
        old, new, extent = before.get(name), after.get(name), whole.extents[name]
        if old is not None and new is not None:
            plan = whole.plan(name)
            if not plan.blocks and same_definition(old.shape, new.shape):
                continue
            changed = plan.blocks.count(max(extent.before, extent.after))
            read, note = plan.pages_read, plan.reason
        else:
            changed = read = extent.before + extent.after
            side = "source" if old is None else "target"
            note = f"only the {side} has the table"
        pages = extent.before + extent.after
        yield Stat(name, changed, read, pages, _rows(changed, new or old), note=note)


def _rows(pages: int, table: Table | None) -> int | None:
    if pages == 0:
        return 0
    if table is None or table.density is None:
        return None
    return round(pages * table.density)


def counted(found: Iterable[Stat], summaries: Iterable[Summary]) -> list[Stat]:
    """With the rows that were counted."""
    known: Mapping[TableId, Summary] = {one.table: one for one in summaries}
    listed = list(found)
    for stat in listed:
        one = known.get(stat.table) if stat.table else None
        stat.exact = (one.added, one.modified, one.removed) if one else (0, 0, 0)
    return listed


def total(found: Iterable[Stat]) -> Stat:
    """The sum; rows are known if they are for every table."""
    whole = Stat(None, rows=0, exact=(0, 0, 0))
    for stat in found:
        whole.pages_changed += stat.pages_changed
        whole.pages_read += stat.pages_read
        whole.pages += stat.pages
        whole.rows = None if whole.rows is None or stat.rows is None else whole.rows + stat.rows
        if whole.exact is None or stat.exact is None:
            whole.exact = None
        else:
            added, modified, removed = zip(whole.exact, stat.exact, strict=True)
            whole.exact = sum(added), sum(modified), sum(removed)
    return whole
