"""The driver of ``make torture``: time is shared, nothing is left behind, nothing is hidden."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torture
from ab_torture import PLACE, Share


def test_share() -> None:
    """A part does something in any case, and goes on while there is time."""
    assert list(Share(0).turns(5)) == [0]
    assert list(Share().turns(5)) == [0, 1, 2, 3, 4]


def test_left_behind(tmp_path: Path) -> None:
    """A process that works in the directory of a part is named, and ended."""
    assert torture.left_behind(tmp_path) == []
    place = tmp_path / "server"
    place.mkdir()
    with subprocess.Popen(["sleep", "1000"], cwd=place) as process:
        found = torture.left_behind(tmp_path)
        assert found == [f"process {process.pid} in {place}"]
        assert process.wait(300) == -9


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed stands first with the command that repeats it; figures of all runs are added
    up; what somebody has written at the end stays."""
    monkeypatch.setattr(torture, "KEPT", tmp_path)
    common = {"seconds": 60, "commit": "abc", "load": 1.5}
    lines: list[dict[str, object]] = [
        {"part": "storm", "seed": 1, "done": {"rounds": 2}, **common},
        {"part": "storm", "seed": 2, "failed": "AssertionError: lost", **common},
        {"part": "failpoints", "seed": 3, "done": {PLACE + "a": 1, PLACE + "b": 1}, **common},
        {"part": "failpoints", "seed": 4, "done": {PLACE + "b": 1, "killed": 1}, **common},
    ]
    (tmp_path / "7.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = tmp_path / "page.md"
    page.write_text(f"# Old\n\nlines\n\n{torture.NOTES}\n\nWritten by hand.\n")
    for _ in range(2):
        torture.report(page)
    text = page.read_text()
    first, rest = text.split("## What was done")
    assert "- `storm`, seed 2: AssertionError: lost (`make torture TORTURE=" in first
    assert "- `clock` was not run." in first
    assert "| storm | 1 of 2 | 2 | rounds 2 |" in rest
    assert "| failpoints | 2 of 2 | 2 | killed 1, different places 2 |" in rest
    assert "load 1.5 to 1.5" in rest
    assert text.endswith(f"{torture.NOTES}\n\nWritten by hand.\n")
    assert "Old" not in text
