"""bench/RESULTS.md and its plots, from the raw figures of the last run."""

from __future__ import annotations

import json
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import measure
import plots
from measure import RAW, bar_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
PLOTS = HERE / "plots"
REASONS = HERE / "reasons.toml"

Figure = dict[str, Any]


def apart(name: str) -> None:
    """From now on figures, page and plots have places of their own: those of a size that is not
    measured with the others, and that their next run must not lose."""
    global RAW, RESULTS, PLOTS
    measure.RAW = RAW = RAW / name
    RESULTS = HERE / f"RESULTS-{name}.md"
    PLOTS = PLOTS / name


def forget() -> None:
    """Before a new run: no figure of an earlier one may be taken for one of its own."""
    for path in RAW.glob("*.json"):
        path.unlink()


def write() -> None:
    """Of all figures in bench/raw."""
    found = [json.loads(path.read_text()) for path in sorted(RAW.glob("*.json"))]
    found.sort(key=lambda figure: (figure["began"], figure["seconds"]))
    figures = [figure for figure in found if "verdict" in figure]
    drawn = {
        figure["name"].removeprefix("series-"): figure for figure in found if "series" in figure
    }
    names = draw({name: figure["series"] for name, figure in drawn.items()})
    RESULTS.write_text("\n".join(page(figures, names)) + "\n")
    print(f"{RESULTS}: {len(figures)} figures, {len(names)} plots")


def page(figures: list[Figure], names: list[str]) -> list[str]:
    reasons = tomllib.loads(REASONS.read_text())
    failed = [f for f in figures if f["verdict"] == "failed"]
    short = [f for f in figures if f["verdict"] == "short"]
    counts = {word: sum(f["verdict"] == word for f in figures) for word in ("ok", "record")}
    lines = [
        "# Figures beside stock PostgreSQL",
        "",
        "Written by `make bench`; not to be edited. What each benchmark does stands in its text"
        " (`make bench BENCH=--list`). *Ours* and *other* are medians, *ratio* the median of the"
        " ratios of the repeats, with the lowest and the highest. *Other* is a server of the same"
        " build on which the library is not loaded, or what the name says after `vs`."
        " A bar with *ours* is for our side alone; a figure without one is for the record.",
        "",
        *about(figures),
        "",
        f"**{len(short)} short of their bars, {len(failed)} failed or not run**,"
        f" {counts['ok']} good, {counts['record']} for the record.",
        "",
    ]
    if short or failed:
        lines += ["## What falls short", ""]
        lines += table(short)
        for figure in (*short, *failed):
            why = [reason for name, reason in reasons.items() if fnmatch(figure["name"], name)]
            if figure["verdict"] == "failed":
                why.insert(0, figure["note"].partition("\n")[0])
            lines.append(f"- `{figure['name']}`: {' '.join(why) or 'no reason is known.'}")
        lines.append("")
    place = PLOTS.relative_to(RESULTS.parent)
    lines += ["## All figures", "", *table([f for f in figures if f["verdict"] != "failed"])]
    if names:
        lines += ["## Plots", "", *(f"![{name}]({place}/{name}.svg)" for name in names), ""]
    return lines + settings(figures)


def about(figures: list[Figure]) -> list[str]:
    if not figures:
        return ["No figures."]
    last = figures[-1]
    machine = last["machine"]
    loads = sorted(figure["load"][0] for figure in figures)
    sizes = sorted({figure["size"] for figure in figures})
    seeds = sorted({figure["seed"] for figure in figures})
    commits = sorted({figure["machine"]["commit"] for figure in figures})
    versions = sorted({s["version"] for f in figures for s in f.get("servers", {}).values()})
    minutes = {figure["benchmark"]: figure["seconds"] for figure in figures}
    return [
        "| | |",
        "|---|---|",
        f"| machine | {machine['system']}, {machine['cores']} x {machine['processor']},"
        f" {machine['memory_gb']} GB, {machine['filesystem']} |",
        f"| server | PostgreSQL {', '.join(versions) or '?'} |",
        f"| sources | {', '.join(commits)} |",
        f"| run | {figures[0]['began']} UTC, {sum(minutes.values()) / 60:.0f} minutes,"
        f" size {', '.join(sizes)}, seed {', '.join(map(str, seeds))} |",
        f"| load average | {loads[0]:.1f} to {loads[-1]:.1f} when figures were written;"
        " the benchmark itself makes 1 to 3 |",
    ]


def table(figures: list[Figure]) -> list[str]:
    lines = [
        "| figure | ours | other | unit | ratio | range | bar | | |",
        "|---|--:|--:|---|--:|---|---|---|---|",
    ]
    for f in figures:
        bar = bar_text(
            float("inf") if f["bar"] is None else f["bar"], f["more_is_better"], f["absolute"]
        )
        lines.append(
            f"| {f['name']} | {number(f['ours'])} | {number(f['other'])} | {f['unit']}"
            f" | {number(f['ratio'])} | {number(f['lowest'])} .. {number(f['highest'])}"
            f" | {bar} | {f['verdict']} | {f['note']} |"
        )
    return [*lines, ""]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def settings(figures: list[Figure]) -> list[str]:
    """Of our servers; the stock ones have the same but for those of the library."""
    lines = ["## Settings", "", "Others are those of `tests/ab_cluster.py` or the defaults.", ""]
    usual = ("autovacuum", "checkpoint_timeout", "max_wal_size", "shared_buffers")
    seen = set()
    for figure in figures:
        for name, chosen in figure.get("servers", {}).items():
            if name in seen or name.endswith("-stock"):
                continue
            seen.add(name)
            wanted = sorted(
                f"`{key} = {value}`"
                for key, value in chosen.items()
                if key in usual or key.startswith(("agent_branch.", "max_files", "max_conn"))
            )
            lines.append(f"- {figure['benchmark']}: {', '.join(wanted)}")
    return lines


def draw(found: dict[str, dict[str, list[tuple[float, float]]]]) -> list[str]:
    """The plots there are points for; returns their names."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    for path in PLOTS.glob("*.svg"):
        path.unlink()
    kinds = {
        "create-size": ("Creating a branch", "size of the parent, MB", "ms", True, False),
        "create-depth": ("Creating a branch", "depth of its parent", "ms", False, False),
        "scale-rate": ("Creating branches", "branches in the cluster", "per second", False, False),
        "bytes": ("What a branch owns", "pages written", "bytes", True, True),
    }
    names = []
    for name, (title, across, up, log_x, log_y) in kinds.items():
        if name in found:
            picture = plots.lines(title, across, up, found[name], log_x=log_x, log_y=log_y)
            (PLOTS / f"{name}.svg").write_text(picture)
            names.append(name)
    if "throughput" in found:
        bars = {
            label: (middle[0], low_high[0], low_high[1])
            for label, (low_high, middle) in found["throughput"].items()
        }
        title = "Throughput as a share of a stock server's"
        (PLOTS / "throughput.svg").write_text(plots.bars(title, bars))
        names.append("throughput")
    return names
