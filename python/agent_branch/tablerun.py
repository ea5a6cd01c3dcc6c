"""One table of a merge while it is collected: what is decided about its rows, and where that is
kept: row by row in temporary files, or staged (staging.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from agent_branch.carriage import Kept
from agent_branch.claims import Claims
from agent_branch.conflictsets import Finder, Found
from agent_branch.diff import RowChange
from agent_branch.keptlines import from_line
from agent_branch.merge import Action, TableMerge
from agent_branch.mergeplan import TablePlan
from agent_branch.records import dataclass, field
from agent_branch.revert import from_json, to_json
from agent_branch.spool import Lines, Room
from agent_branch.staging import Kind, Stage, lists
from agent_branch.tableshape import CASCADING, TableShape


class Spool(Lines):
    """Actions of one table."""

    __slots__ = ()

    def add(self, action: Action) -> None:
        self.add_line(to_json(action))

    def __iter__(self) -> Iterator[Action]:
        """They are read once for each pass."""
        return map(from_json, self.lines())


# Gets conflicts: how many, how many of them are open, and the lines of those that are to be written
# down yet.
Take = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Sets:
    """Conflicts are found many at once (conflictsets.py)."""

    finder: Finder
    take: Take


@dataclass(slots=True)
class TableRun:
    """``spool``: what is written row by row; ``staged``, ``kept``: what is in the stage;
    ``open``: conflicts that nobody has decided, as lines of JSON; ``contested``: were most of the
    last changes conflicts?"""

    plan: TablePlan
    merge: TableMerge
    claims: list[Claims]
    spool: Spool = field(default_factory=Spool)
    open: Spool = field(default_factory=Spool)
    staged: Spool = field(default_factory=Spool)
    stage: Stage | None = None
    kept: Kept | None = None
    sets: Sets | None = None
    contested: bool = False
    room: Room = field(default_factory=Room)

    @property
    def count(self) -> int:
        return self.spool.count + self.staged.count + (self.kept.count if self.kept else 0)

    def take(self, action: Action | None) -> None:
        if action is not None:
            for claim in self.claims:
                claim.feed(action)
            self.spool.add(action)

    def actions(self) -> Iterator[Action]:
        return chain(self.spool, self.staged_actions())

    def staged_actions(self) -> Iterator[Action]:
        yield from self.staged
        if self.kept is not None:
            for text in self.kept.pieces():
                yield from map(from_line, text[:-1].split("\n"))

    def pieces(self, *, with_kept: bool = True) -> Iterator[str]:
        """The actions as lines, many at a time."""
        kept = self.kept.pieces() if self.kept is not None and with_kept else ()
        return chain(self.spool.pieces(), self.staged.pieces(), kept)

    def filter(self, changes: Iterable[RowChange]) -> Iterator[RowChange]:
        """Take many at once; those that are left to be decided row by row.

        As long as most are conflicts these are found first.
        """
        for some in lists(changes):
            if self.contested:
                yield from self._staged(self._found(some))
            else:
                yield from self._found(self._staged(some))

    def _staged(self, changes: Sequence[RowChange]) -> Sequence[RowChange]:
        """Stage changes; those that are left."""
        if self.stage is None or not changes:
            return changes
        before = Counter(self.stage.counts)
        left, lines = self.stage.feed(changes)
        self._count_staged(self.stage.counts - before, lines)
        self.contested = self.sets is not None and 2 * len(left) > len(changes)
        return left

    def _found(self, changes: Sequence[RowChange]) -> Sequence[RowChange]:
        """Find conflicts; what is left."""
        if self.sets is None or not changes:
            return changes
        left, found = self.sets.finder.find(changes)
        for one in found:
            self.take_found(one, self.sets.take)
        self.contested = 2 * len(left) < len(changes)
        return left

    def take_found(self, found: Found, take: Take) -> None:
        """Conflicts, and what was staged for them."""
        self.merge.count_found(found.count, found.open)
        self.open.add_text(found.kept)
        self.open.count += found.open
        if self.stage is not None:
            self.stage.counts.update(found.kinds)
            self._count_staged(found.kinds, found.actions)
        take(found.count, found.open, found.shown)

    def _count_staged(self, kinds: Counter[Kind], lines: str) -> None:
        for (what, _), number in kinds.items():
            self.merge.count_staged(what, number)
            self.staged.count += number
        self.staged.add_text(lines)

    def unstage(self) -> None:
        """Write the staged rows like the others."""
        self.stage = None
        for action in self.staged_actions():
            self.take(action)
        self.staged.close()
        self.staged = Spool(self.room)
        if self.kept is not None:
            self.kept.drop()
            self.kept = None

    def is_in_order(self, schema: Sequence[TableShape], late: bool) -> bool:
        """Can staged rows be written without a look at which comes first?

        ``late``: columns of the table are written last.
        """
        stage, shape = self.stage, self.merge.shape
        if stage is None:
            return True
        if late or (
            stage.rows("d")
            and any(
                key.target == shape.id and key.on_delete in CASCADING
                for table in schema
                for key in table.foreign_keys
            )
        ):
            return False
        return not any(
            claim.is_contested(stage.masks, stage.rows("i"), stage.rows("d"))
            for claim in self.claims
        )

    def close(self) -> None:
        for spool in (self.spool, self.open, self.staged):
            spool.close()
