"""Which state each table of a merge begins with; no server here.

Merges can be of some tables only.  What two databases have in common is then of another time for
these than for the others, so a merge of all is made of *parts*: tables that begin with one state.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent_branch.records import dataclass
from agent_branch.tableorder import TableId


@dataclass(frozen=True, slots=True)
class Base:
    """Snapshot of the database ``of`` when it was merged; ``tables``: which of it, None: all."""

    snapshot: str
    of: int
    tables: frozenset[TableId] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Tables and where they begin.

    ``base``: None: with what both databases descend from; ``only``: these tables, None: all but
    ``others``.
    """

    base: Base | None
    only: frozenset[TableId] | None = None
    others: frozenset[TableId] = frozenset()

    def has(self, table: TableId) -> bool:
        return table not in self.others if self.only is None else table in self.only


def divide(bases: Iterable[Base], listed: frozenset[TableId] | None = None) -> list[Part]:
    """Parts of a merge; ``bases``: of the merges of the two before, the latest first; ``listed``:
    the tables to be merged, None: all.  A part of all but some comes last."""
    parts: list[Part] = []
    seen: frozenset[TableId] = frozenset()
    for base in bases:
        if base.tables is None:
            return [*parts, *_rest(base, seen, listed)]
        new = base.tables - seen
        seen |= new
        wanted = new if listed is None else new & listed
        if wanted:
            parts.append(Part(base, wanted))
    return [*parts, *_rest(None, seen, listed)]


def _rest(
    base: Base | None, seen: frozenset[TableId], listed: frozenset[TableId] | None
) -> list[Part]:
    if listed is None:
        return [Part(base, None, seen)]
    return [Part(base, listed - seen)] if listed - seen else []
