"""Finds what the source has changed in pages of three databases, and has it carried from one
to another (carrying.py); in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import plpy

from agent_branch.blocks import Blocks
from agent_branch.carriage import Found, Places, joined
from agent_branch.diff import RowChange, paired
from agent_branch.diffplan import TableDiff
from agent_branch.mergeplan import TablePlan
from agent_branch.opening import Reading
from agent_branch.pairing import Apart, PagePairing, Place
from agent_branch.records import dataclass
from agent_branch.sqltext import Limits
from agent_branch.tableorder import TableId


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
        base = joined(some.base for some in found) or None
        theirs = joined(some.theirs for some in found) or None
        pairs = self.pairing.pairs_at(plan.theirs, base, theirs)
        return paired(plan.theirs.shape, self.base, pairs, limits)

    def places(self, plan: TablePlan, found: Iterator[Found]) -> Iterator[Places] | None:
        apart = self._apart(plan)
        if apart is None:
            return None
        return chain.from_iterable(_places(some, apart) for some in found)

    def _of_ours(self, plan: TablePlan) -> Blocks | None:
        """Where the target may differ from the base; None: everywhere."""
        assert plan.shape is not None
        ours = self.of_ours(plan.shape.id)
        return None if ours is None or ours.blocks.whole else ours.blocks

    def _apart(self, plan: TablePlan) -> Apart | None:
        """Tells in which places the target has not the base's row, where the source may differ;
        None: nobody can say."""
        ours = self._of_ours(plan)
        if ours is None or plan.shape is None or plan.theirs is None:
            return None
        common = ours & plan.theirs.blocks
        if not common:
            return lambda rows, others: (rows, others, "", "")
        pairing = PagePairing(self.pairing.before, self.ours, self.pairing.progress)
        return pairing.apart(TableDiff(plan.shape, common, "", 0))

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


def _places(some: Found, apart: Apart) -> Iterator[Places]:
    beside = "" if some.columns is None else some.theirs
    same, theirs, other, others = apart(some.base, beside) if some.base else ("", "", "", "")
    if some.columns is None:
        yield Places(same, other, some.theirs)
        return
    if same:
        yield Places(same, "", theirs, some.columns)
    # What the target has changed is compared with it.
    if other:
        yield Places("", other, others)
