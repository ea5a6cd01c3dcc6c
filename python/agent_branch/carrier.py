"""Finds what the source has changed in pages of three databases, and has it carried from one
to another (carrying.py); in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        found = self.pairing.lines(plan.theirs)
        other = self._other(plan, plan.theirs.blocks)
        if found is None or other is None:
            return None
        return (_places(before or "", after or "", other) for before, after in found)

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


def _places(before: str, after: str, other: set[str]) -> Places:
    same, gone = before, ""
    if other:
        places = _split(before)
        gone = _joined([place for place in places if place in other]) or ""
        if gone:
            same = _joined([place for place in places if place not in other]) or ""
    count = max(before.count("("), after.count("("))
    return Places(same, gone, after, count)
