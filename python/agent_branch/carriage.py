"""What carrying.py works with: places of rows that a source has changed, who finds them and carries
them to the target, and who keeps what is done to them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from agent_branch.diff import RowChange
from agent_branch.hints import Protocol
from agent_branch.mergeplan import TablePlan
from agent_branch.records import dataclass
from agent_branch.sqltext import Limits, batches
from agent_branch.tableshape import TableShape


@dataclass(frozen=True, slots=True)
class Found:
    """Places of row versions that base and source do not share, as texts of tid[]; empty: none.

    ``columns``: where it is known, a mask of those in which versions differ; then the versions of
    one key are in the same order in both.
    """

    columns: int | None
    base: str
    theirs: str

    @property
    def count(self) -> int:
        """About how many rows that is."""
        return max(self.base.count("("), self.theirs.count("("))


@dataclass(frozen=True, slots=True)
class Places:
    """The same beside the target.

    ``same``: those of the base that the target has as well; ``other``: the other ones of the base;
    ``theirs``: those of the source.  ``columns``: as of ``Found``; then each place in ``same`` has
    the row of which the new version is at the one in ``theirs``, and others there are none.
    """

    same: str
    other: str
    theirs: str
    columns: int | None = None


class Carrier(Protocol):
    """Reads pages of three databases, and has rows of one put into another."""

    def found(self, plan: TablePlan) -> Iterator[Found] | None:
        """Some at a time.  None: it cannot be told where they are, or in the target."""

    def few(self, plan: TablePlan, found: Sequence[Found], limits: Limits) -> Iterator[RowChange]:
        """Changes of the rows, if these are all there are; read here."""

    def places(self, plan: TablePlan, found: Iterator[Found]) -> Iterator[Places] | None:
        """The same beside the target.  None: it cannot be told which rows that still has."""

    def from_base(self, query: str, table: str) -> int:
        """Put rows into a temporary table of the target; how many."""

    def from_source(self, query: str, table: str) -> int: ...


class Kept(Protocol):
    """Actions of one table that are kept where they are to stay, as lines (keptlines.py)."""

    @property
    def count(self) -> int: ...

    def keep(self, query: str) -> None:
        """Lines of the rows that a query in the target gives."""

    def decide(self, query: str) -> int:
        """The lines themselves, of conflicts that are decided; how many."""

    def pieces(self) -> Iterator[str]:
        """The lines, each with its end, many at a time."""

    def drop(self) -> None:
        """They are not to stay."""


class Keeper(Protocol):
    def table(self, shape: TableShape) -> Kept: ...

    def close(self) -> None: ...


def in_bulk(places: Iterable[Places], most: int) -> Iterator[Places]:
    """Those with versions that differ in the same columns put together, up to so many characters:
    each is a statement in the source, and a load in the target."""
    held: list[Places] = []
    length = 0
    for some in places:
        alike = held and some.columns is not None and some.columns == held[0].columns
        if held and (not alike or length + len(some.same) > most):
            yield _one(held)
            held, length = [], 0
        held.append(some)
        length += len(some.same)
    if held:
        yield _one(held)


def _one(held: Sequence[Places]) -> Places:
    if len(held) == 1:
        return held[0]
    same = joined(some.same for some in held)
    theirs = joined(some.theirs for some in held)
    return Places(same, "", theirs, held[0].columns)


def together(texts: Iterable[str], most: int) -> Iterator[str]:
    """Texts of arrays, some put together to one of up to so many characters."""
    limits = Limits(rows=sys.maxsize, bytes=most)
    return (joined(some) for some in batches(texts, limits, len))


def joined(texts: Iterable[str]) -> str:
    """Texts of arrays put together to one.  An empty text, as the answer, has no places."""
    inside = ",".join(text[1:-1] for text in texts if text)
    return f"{{{inside}}}" if inside else ""
