"""Lines kept in memory and, beyond, in a file."""

from __future__ import annotations

import pytest
from agent_branch.merge import Insert
from agent_branch.spool import Lines, Room
from agent_branch.tablerun import Spool

WRITTEN = ["a", "b\r\x85 ", "", "\udc80 ü" * 5, *(f"line {n}" * 20 for n in range(2000))]


@pytest.mark.parametrize("left", [0, 1, 30, 1 << 20])
def test_as_written(left: int) -> None:
    room = Room(left)
    lines, other = Lines(room), Lines(room)
    for line in WRITTEN[:100]:
        lines.add_line(line)
    lines.add_text("".join(line + "\n" for line in WRITTEN[100:]))
    lines.add_text("")
    other.add_line("x")
    for _ in range(2):
        assert list(lines.lines()) == WRITTEN
    assert "".join(lines.pieces()) == "".join(line + "\n" for line in WRITTEN)
    assert all(piece.endswith("\n") for piece in lines.pieces())
    assert lines.count == 100
    assert room.left >= 0
    other.close()
    lines.close()
    assert room.left == left


@pytest.mark.parametrize("left", [0, 1 << 20])
def test_actions(left: int) -> None:
    spool = Spool(Room(left))
    actions = [Insert((str(n),), (str(n), "two\nlines", None)) for n in range(3)]
    for action in actions:
        spool.add(action)
    assert list(spool) == list(spool) == actions
    assert spool.count == 3
    spool.close()
