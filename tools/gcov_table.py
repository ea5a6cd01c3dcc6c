"""What gcov counted, as a table: lines, branches and functions of each C file that ran.

    gcov_table.py TREE OUT

TREE holds the objects' .gcno and .gcda files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Counted:
    """One C file."""

    name: str
    lines: dict[int, int] = field(default_factory=dict)  # number -> how often it ran
    branches: int = 0
    taken: int = 0
    functions: dict[str, int] = field(default_factory=dict)

    @property
    def missed(self) -> list[int]:
        return sorted(number for number, count in self.lines.items() if count == 0)

    @property
    def uncalled(self) -> list[str]:
        return sorted(name for name, count in self.functions.items() if count == 0)


def read(tree: Path) -> list[Counted]:
    found = []
    for notes in sorted((tree / "extension" / "src").glob("*.gcno")):
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(notes)],
            cwd=tree,
            check=True,
            capture_output=True,
            text=True,
        )
        for part in json.loads(done.stdout)["files"]:
            if Path(part["file"]).name == f"{notes.stem}.c":
                found.append(count(notes.stem, part))
    return found


def count(name: str, part: dict[str, Any]) -> Counted:
    counted = Counted(name)
    for line in part["lines"]:
        number = line["line_number"]
        counted.lines[number] = counted.lines.get(number, 0) + line["count"]
        for branch in line["branches"]:
            counted.branches += 1
            counted.taken += branch["count"] > 0
    for function in part["functions"]:
        counted.functions[function["name"]] = function["execution_count"]
    return counted


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else ""


def row(name: str, files: list[Counted]) -> str:
    lines = sum(len(file.lines) for file in files)
    run = lines - sum(len(file.missed) for file in files)
    branches = sum(file.branches for file in files)
    taken = sum(file.taken for file in files)
    uncalled = [function for file in files for function in file.uncalled]
    names = ", ".join(f"`{function}`" for function in uncalled) if len(files) == 1 else ""
    return (
        f"| {name} | {lines} | {percent(run, lines)} | {branches} | {percent(taken, branches)}"
        f" | {names or len(uncalled) or ''} |"
    )


def table(files: list[Counted]) -> str:
    head = "| file | lines | % run | branches | % taken | functions never called |"
    ordered = sorted(files, key=lambda file: file.taken / file.branches if file.branches else 1)
    rows = [row("all", files), *(row(file.name, [file]) for file in ordered)]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n"


def write(tree: Path, out: Path) -> None:
    files = read(tree)
    out.mkdir(exist_ok=True)
    (out / "coverage.md").write_text(table(files))
    with (out / "uncovered.txt").open("w") as file:
        for counted in files:
            source = (tree / "extension" / "src" / f"{counted.name}.c").read_text().split("\n")
            for number in counted.missed:
                file.write(f"{counted.name}.c:{number}: {source[number - 1].strip()}\n")
    print(row("all", files))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
