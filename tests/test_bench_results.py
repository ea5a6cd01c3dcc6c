"""The page that benchmarks write: what falls short stands first, nothing is left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import measure
import plots
import results


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module, name in ((measure, "RAW"), (results, "RAW")):
        monkeypatch.setattr(module, name, tmp_path / "raw")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(results, "PLOTS", tmp_path / "plots")
    reasons = tmp_path / "reasons.toml"
    reasons.write_text('"late-*" = "It has a reason."\n')
    monkeypatch.setattr(results, "REASONS", reasons)
    measure.RUN.begin("some", measure.Sizes(quick=True, seed=7))
    return tmp_path / "raw"


def test_page(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good, short, absolute, recorded and failed figures, and the pairs behind them."""
    measure.report("good", 2, False, [(1.0, 1.0), (3.0, 2.0), (1.2, 1.0)], unit="ms")
    measure.report("late-9", 0.95, True, [(80.0, 100.0), (90.0, 100.0)], unit="tps")
    measure.report("never-zero", 0, False, [(0.0, 0.0)], absolute=True)
    measure.report("recorded", float("inf"), False, [(5.0, 0.0)], note="just so")
    measure.save("failed-other", {"verdict": "failed", "note": "no disk\nand more"})
    measure.series("bytes", {"own": [(1, 10), (100, 1000)]})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed] == ["ok", "short", "ok", "record"]
    kept: dict[str, Any] = json.loads((raw / "good.json").read_text())
    assert kept["pairs"] == [[1.0, 1.0], [3.0, 2.0], [1.2, 1.0]]
    assert (kept["ratio"], kept["lowest"], kept["highest"]) == (1.2, 1.0, 1.5)
    assert (kept["seed"], kept["size"]) == (7, "quick")

    results.write()
    page = (tmp_path / "RESULTS.md").read_text()
    first, rest = page.split("## All figures")
    assert "**1 short of their bars, 1 failed or not run**, 2 good, 1 for the record." in first
    assert "- `late-9`: It has a reason." in first
    assert "- `failed-other`: no disk\n" in first
    assert "| good |" not in first
    for name in ("good", "late-9", "never-zero", "recorded"):
        assert rest.count(f"| {name} |") == 1
    assert "plots/bytes.svg" in rest
    ElementTree.parse(tmp_path / "plots" / "bytes.svg")

    results.forget()
    results.write()
    assert "No figures." in (tmp_path / "RESULTS.md").read_text()


def test_apart(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size of its own has a page of its own, which the next run of all does not lose."""
    measure.report("good", 2, False, [(1.0, 1.0)])
    monkeypatch.setattr(results, "HERE", tmp_path)
    results.apart("9-branches")
    measure.report("many", 2, False, [(1.0, 1.0)])
    measure.series("bytes", {"own": [(1, 10), (100, 1000)]})
    results.write()
    page = (tmp_path / "RESULTS-9-branches.md").read_text()
    assert "| many |" in page
    assert "| good |" not in page
    assert "(plots/9-branches/bytes.svg)" in page
    monkeypatch.setattr(results, "RAW", raw)
    results.forget()
    assert not (raw / "good.json").exists()
    assert (raw / "9-branches" / "many.json").exists()


@pytest.mark.parametrize("log", [False, True])
def test_plots(log: bool) -> None:
    """Whatever the figures, all marks are inside the picture and labels are escaped."""
    found = {"a < b": [(1.0, 0.0), (1000.0, 123456.0)], "flat": [(5.0, 1.0)]}
    for text in (
        plots.lines("t & u", "x", "y", found, log_x=log, log_y=log),
        plots.bars("shares", {"one": (0.9, 0.1, 3.0), "two": (0.0, 0.0, 0.0)}),
    ):
        root = ElementTree.fromstring(text)
        width, height = (float(root.attrib[name]) for name in ("width", "height"))
        for mark in root.iter():
            if mark.tag.endswith("circle"):
                assert 0 <= float(mark.attrib["cx"]) <= width
                assert 0 <= float(mark.attrib["cy"]) <= height


def test_turns() -> None:
    """The warm-up is left out, and each side begins as often as the other."""
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    pairs = measure.alternate(3, lambda: side("ours"), lambda: side("other"))
    assert len(pairs) == 3
    assert order == ["ours", "other", "other", "ours", "ours", "other", "other", "ours"]
