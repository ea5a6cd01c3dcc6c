"""Finds what the source has changed in pages of three databases, and has it carried from one
to another (carrying.py); in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import plpy

from agent_branch.blocks import Blocks
from agent_branch.carrying import Places
from agent_branch.diffplan import TableDiff
from agent_branch.mergeplan import TablePlan
from agent_branch.opening import Reading
from agent_branch.pairing import PagePairing, Place
from agent_branch.records import dataclass
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

    def places(self, plan: TablePlan) -> Iterator[Places] | None:
        assert plan.theirs is not None
        other = self._other(plan, plan.theirs.blocks)
        found = None if other is None else self.pairing.paired(plan.theirs)
        if found is None or other is None:
            return None
        return chain.from_iterable(
            _places(columns, before or "", after or "", other) for columns, before, after in found
        )

    def _other(self, plan: TablePlan, blocks: Blocks) -> set[str] | None:
        """Places in these blocks where the target has not the base's row; None: nobody can say."""
        assert plan.shape is not None
        ours = self.of_ours(plan.shape.id)
        if ours is None or ours.blocks.whole:
            return None
        common = ours.blocks & blocks
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


def _split(places: str) -> list[str]:
    return places[2:-2].split('","') if places else []


def _joined(places: list[str]) -> str | None:
    return '{"' + '","'.join(places) + '"}' if places else None


def _places(columns: int | None, before: str, after: str, other: set[str]) -> Iterator[Places]:
    if columns is not None:
        yield from _versions(columns, before, after, other)
        return
    same, gone = before, ""
    if other:
        places = _split(before)
        gone = _joined([place for place in places if place in other]) or ""
        if gone:
            same = _joined([place for place in places if place not in other]) or ""
    yield Places(same, gone, after, max(before.count("("), after.count("(")))


def _versions(columns: int, before: str, after: str, other: set[str]) -> Iterator[Places]:
    """Of one key on both sides: those that the target has changed are no longer known as such."""
    ours, theirs = _split(before), _split(after)
    if not other or other.isdisjoint(ours):
        yield Places(before, "", after, len(ours), columns)
        return
    pairs = list(zip(ours, theirs, strict=True))
    same = [pair for pair in pairs if pair[0] not in other]
    gone = [pair for pair in pairs if pair[0] in other]
    if same:
        yield Places(_side(same, 0), "", _side(same, 1), len(same), columns)
    yield Places("", _side(gone, 0), _side(gone, 1), len(gone))


def _side(pairs: list[tuple[str, str]], side: int) -> str:
    return _joined([pair[side] for pair in pairs]) or ""
