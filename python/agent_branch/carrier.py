"""Finds what the source has changed in pages of three databases, and has it carried from one
to another (carrying.py); in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import plpy

from agent_branch.blocks import Blocks
from agent_branch.carriage import Found, Places
from agent_branch.diff import RowChange, paired
from agent_branch.diffplan import TableDiff
from agent_branch.mergeplan import TablePlan
from agent_branch.opening import Reading
from agent_branch.pairing import PagePairing, Place
from agent_branch.records import dataclass
from agent_branch.sqltext import Limits
from agent_branch.tableorder import TableId

# A base of which more rows are not those of the target is compared with it by value.
MAX_OTHER = 100_000


@dataclass(frozen=True, slots=True)
class PageCarrier:
    """``ours``: the target, whose tables are locked; ``session``: there; ``of_ours``: where it may
    differ from the base, by table."""

    base: Reading
    theirs: Reading
    pairing: PagePairing
    ours: Place
    of_ours: Callable[[TableId], TableDiff | None]

    def found(self, plan: TablePlan) -> Iterator[Found] | None:
        assert plan.theirs is not None
        if self._of_ours(plan) is None:
            return None
        lines = self.pairing.paired(plan.theirs)
        if lines is None:
            return None
        return (Found(columns, base or "", theirs or "") for columns, base, theirs in lines)

    def few(self, plan: TablePlan, found: Sequence[Found], limits: Limits) -> Iterator[RowChange]:
        assert plan.theirs is not None
        places = (_together(some.base for some in found), _together(some.theirs for some in found))
        pairs = self.pairing.pairs_at(plan.theirs, *places)
        return paired(plan.theirs.shape, self.base, pairs, limits)

    def places(self, plan: TablePlan, found: Iterator[Found]) -> Iterator[Places] | None:
        other = self._other(plan)
        if other is None:
            return None
        return chain.from_iterable(_places(some, other) for some in found)

    def _of_ours(self, plan: TablePlan) -> Blocks | None:
        """Where the target may differ from the base; None: everywhere."""
        assert plan.shape is not None
        ours = self.of_ours(plan.shape.id)
        return None if ours is None or ours.blocks.whole else ours.blocks

    def _other(self, plan: TablePlan) -> set[str] | None:
        """Places where the source may differ and the target has not the base's row; None: nobody
        can say."""
        ours = self._of_ours(plan)
        if ours is None or plan.shape is None or plan.theirs is None:
            return None
        common = ours & plan.theirs.blocks
        if not common:
            return set()
        pairing = PagePairing(self.pairing.before, self.ours, self.pairing.progress)
        found = pairing.lines(TableDiff(plan.shape, common, "", 0))
        if found is None:
            return None
        other: set[str] = set()
        for before, _ in found:
            other.update(_split(before or ""))
            if len(other) > MAX_OTHER:
                return None
        return other

    def from_base(self, query: str, table: str) -> int:
        return self._carry(self.base, query, table)

    def from_source(self, query: str, table: str) -> int:
        return self._carry(self.theirs, query, table)

    def _carry(self, source: Reading, query: str, table: str) -> int:
        source.settle()
        rows = plpy.execute(
            plpy.prepare(
                "SELECT branch._remote_copy($1, $2, $3, $4) AS n", ["int4", "text", "int4", "text"]
            ),
            [source.remote.number, query, self.ours.remote.number, table],
        )
        number: int = rows[0]["n"]
        self.pairing.progress.rows_more(number)
        return number


def _together(texts: Iterable[str]) -> str | None:
    return _joined([place for text in texts for place in _split(text)])


def _split(places: str) -> list[str]:
    return places[2:-2].split('","') if places else []


def _joined(places: list[str]) -> str | None:
    return '{"' + '","'.join(places) + '"}' if places else None


def _places(some: Found, other: set[str]) -> Iterator[Places]:
    if some.columns is not None:
        yield from _versions(some.columns, some.base, some.theirs, other)
        return
    same, gone = some.base, ""
    if other:
        places = _split(some.base)
        gone = _joined([place for place in places if place in other]) or ""
        if gone:
            same = _joined([place for place in places if place not in other]) or ""
    yield Places(same, gone, some.theirs)


def _versions(columns: int, before: str, after: str, other: set[str]) -> Iterator[Places]:
    """Of one key on both sides: those that the target has changed are no longer known as such."""
    if not other or other.isdisjoint(_split(before)):
        yield Places(before, "", after, columns)
        return
    pairs = list(zip(_split(before), _split(after), strict=True))
    same = [pair for pair in pairs if pair[0] not in other]
    gone = [pair for pair in pairs if pair[0] in other]
    if same:
        yield Places(_side(same, 0), "", _side(same, 1), columns)
    yield Places("", _side(gone, 0), _side(gone, 1))


def _side(pairs: list[tuple[str, str]], side: int) -> str:
    return _joined([pair[side] for pair in pairs]) or ""
