"""Sets of blocks of a table: which of its pages are to be read."""

from __future__ import annotations

from bisect import bisect_right
from sys import byteorder

from agent_branch.hints import Iterable, Sequence
from agent_branch.records import dataclass


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks in ranges, ascending, with gaps between them.

    ``bounds``: of each range its first block, then the one past its last; None: all blocks,
    however many there are.
    """

    bounds: Sequence[int] | None

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Blocks:
        """From ranges in any order; they may overlap, and be empty.

        Raises ``ValueError`` for a negative block.
        """
        bounds: list[int] = []
        for start, end in sorted(ranges):
            if start < 0:
                raise ValueError(f"block {start}")
            if start >= end:
                continue
            if bounds and start <= bounds[-1]:
                bounds[-1] = max(bounds[-1], end)
            else:
                bounds += (start, end)
        return cls(tuple(bounds))

    @classmethod
    def unpacked(cls, packed: bytes) -> Blocks:
        """From bounds of 4 bytes each, in this machine's order; there may be many."""
        return cls(memoryview(packed).cast("I"))

    def packed(self) -> bytes:
        """The bounds as ``unpacked`` takes them; they must not be all blocks."""
        assert self.bounds is not None
        if isinstance(self.bounds, memoryview):
            return self.bounds.tobytes()
        return b"".join(bound.to_bytes(4, byteorder) for bound in self.bounds)

    @property
    def ranges(self) -> Sequence[tuple[int, int]] | None:
        """(first block, one past the last) of each range; None: all blocks."""
        if self.bounds is None:
            return None
        return tuple(zip(self.bounds[::2], self.bounds[1::2], strict=True))

    @property
    def whole(self) -> bool:
        return self.bounds is None

    def __bool__(self) -> bool:
        return self.bounds is None or len(self.bounds) > 0

    def __or__(self, other: Blocks) -> Blocks:
        one, two = self.bounds, other.bounds
        if one is None or two is None:
            return ALL
        # Mostly so, and there may be many.
        if two is one or not two:
            return self
        if not one:
            return other
        if len(two) == 2 and self._has(two[0], two[1]):
            return self
        return Blocks.of((*(self.ranges or ()), *(other.ranges or ())))

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
        return Blocks.of(found)

    def _has(self, start: int, end: int) -> bool:
        assert self.bounds is not None
        at = bisect_right(self.bounds, start)
        return at % 2 == 1 and end <= self.bounds[at]

    def __contains__(self, block: object) -> bool:
        assert isinstance(block, int)
        return self.bounds is None or bisect_right(self.bounds, block) % 2 == 1

    def count(self, total: int) -> int:
        """How many there are in a table of ``total`` blocks."""
        if self.bounds is None:
            return total
        at = bisect_right(self.bounds, total)
        cut = total if at % 2 == 1 else 0
        return cut + sum(self.bounds[1:at:2]) - sum(self.bounds[0:at:2])


ALL = Blocks(None)
NONE = Blocks(())


def block_of(ctid: str) -> int:
    """Block number of a row's address in its text form, "(block,offset)"."""
    return int(ctid[1 : ctid.index(",")])
