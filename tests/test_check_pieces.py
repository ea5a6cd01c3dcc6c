"""The checks that go on where they were ended (tools/check_pieces.py)."""

from __future__ import annotations

from pathlib import Path

import check_pieces
import pytest
from check_pieces import Check, parse, pieces, run_all

TEST = "def test_one() -> None:\n    assert {}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of tests, one of which fails."""
    monkeypatch.setattr(check_pieces, "ROOT", tmp_path)
    monkeypatch.setattr(check_pieces, "KEPT", tmp_path / "build" / "checks")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_bad.py").write_text(TEST.format(0))
    (tmp_path / "tests" / "test_good.py").write_text(TEST.format(1))
    check_pieces.product.cache_clear()
    return tmp_path


def test_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has passed is not run again until its file changes; what has failed is, and what
    there was no time for is named."""
    wanted = pieces(["pytest"], ["good"], [])
    assert wanted == ["pytest/good", "pytest/bad"]

    def run(*arguments: str) -> tuple[int, str]:
        code = run_all("tried", wanted, parse([*arguments]), lambda: Check("tried", project))
        return code, capsys.readouterr().out

    code, said = run("--minutes", "0")
    assert code == 0
    assert "left: pytest/good, pytest/bad" in said
    code, said = run("--jobs", "1")
    assert code == 1
    assert "pytest/good: passed, 1 passed" in said
    assert "pytest: 1 of 2 passed (1 tests)" in said
    assert "failed: pytest/bad" in said
    assert "left: nothing" in said

    bad = project / "tests" / "test_bad.py"
    bad.write_text(TEST.format(1))
    assert "left: pytest/bad" in run("--list")[1]
    (project / "Makefile").write_text("")
    check_pieces.product.cache_clear()
    assert "left: pytest/good, pytest/bad" in run("--list", "--pieces", "pytest")[1]
    assert (
        "left: pytest/bad, pytest/good" in run("--list", "--pieces", "pytest/bad", "pytest/good")[1]
    )
    (project / "Makefile").unlink()
    check_pieces.product.cache_clear()
    code, said = run("--pieces", "pytest/bad", "pytest/good")
    assert code == 0
    assert "pytest/bad: passed" in said
    assert "pytest/good: passed" not in said
    assert "pytest: 2 of 2 passed (2 tests)" in run()[1]
