"""Sets of blocks of a table: which of its pages are to be read."""

from __future__ import annotations

from bisect import bisect_right

from agent_branch.hints import Iterable
from agent_branch.records import dataclass

# Bytes of a page: BLCKSZ of every build of the server that this runs on is the default one.
BLOCK_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks as ranges (first, one past the last), ascending, with gaps between them.

    ``ranges`` None: all blocks, however many there are.
    """

    ranges: tuple[tuple[int, int], ...] | None

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Blocks:
        """From ranges in any order; they may overlap, and be empty.

        Raises ``ValueError`` for a negative block.
        """
        merged: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if start < 0:
                raise ValueError(f"block {start}")
            if start >= end:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return cls(tuple(merged))

    @property
    def whole(self) -> bool:
        return self.ranges is None

    def __bool__(self) -> bool:
        return self.ranges is None or len(self.ranges) > 0

    def __or__(self, other: Blocks) -> Blocks:
        if self.ranges is None or other.ranges is None:
            return ALL
        # Mostly so, and there may be many.
        if other.ranges is self.ranges or not other.ranges:
            return self
        if not self.ranges:
            return other
        if len(other.ranges) == 1 and self._has(*other.ranges[0]):
            return self
        return Blocks.of((*self.ranges, *other.ranges))

    def __and__(self, other: Blocks) -> Blocks:
        if self.ranges is None or other.ranges is None:
            return other if self.ranges is None else self
        few, many = sorted((self.ranges, other.ranges), key=len)
        found: list[tuple[int, int]] = []
        for start, end in few:
            at = bisect_right(many, start, key=lambda bounds: bounds[1])
            while at < len(many) and many[at][0] < end:
                found.append((max(start, many[at][0]), min(end, many[at][1])))
                at += 1
        return Blocks(tuple(found))

    def _has(self, start: int, end: int) -> bool:
        assert self.ranges is not None
        at = bisect_right(self.ranges, start, key=lambda bounds: bounds[0])
        return at > 0 and end <= self.ranges[at - 1][1]

    def __contains__(self, block: object) -> bool:
        if self.ranges is None:
            return True
        assert isinstance(block, int)
        at = bisect_right(self.ranges, block, key=lambda bounds: bounds[0])
        return at > 0 and block < self.ranges[at - 1][1]

    def count(self, total: int) -> int:
        """How many there are in a table of ``total`` blocks."""
        if self.ranges is None:
            return total
        if not self.ranges or self.ranges[-1][1] <= total:
            return sum(end - start for start, end in self.ranges)
        return sum(max(0, min(end, total) - start) for start, end in self.ranges)


ALL = Blocks(None)
NONE = Blocks(())


def block_of(ctid: str) -> int:
    """Block number of a row's address in its text form, "(block,offset)"."""
    return int(ctid[1 : ctid.index(",")])
