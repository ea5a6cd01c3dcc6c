"""The tests in pieces, each in a process of its own, and what is known of each.

    --list             say what is known, and run nothing
    --minutes N        begin no piece after that
    --jobs N           how many at a time (2)
    --anew             those that have passed, too
    --pieces NAME ...  these only, in that order: regress, pytest/crash, isolation/iso_suspend ...

A piece is a file: regress/create, isolation/iso_suspend, pytest/crash.  What was done is kept in
build/checks/KIND.jsonl, and each piece's output beside it.  A piece that has passed is not run
again until the extension, the package or its own file changes, so that a check may be ended at
any moment, and goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from commit import describe

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "checks"
PARTS = {"regress": "sql/*.sql", "isolation": "specs/*.spec", "pytest": "tests/test_*.py"}
OPTIONS = ("--list", "--minutes", "--jobs", "--anew", "--pieces")
NO_TESTS = 5  # pytest's exit code if all were deselected
Known = dict[str, dict[str, object]]


@dataclass
class Check:
    """How one kind of check runs a piece."""

    kind: str
    tree: Path  # where the tests are
    environment: Callable[[str], dict[str, str]] = lambda piece: {}
    pytest: list[str] = field(default_factory=list)  # arguments
    found: Callable[[str], list[str]] = lambda piece: []  # reports of faults beside failed tests


def is_of_pieces(arguments: list[str]) -> bool:
    """Or does somebody choose the tests himself?"""
    return all(not word.startswith("-") or word in OPTIONS for word in arguments) and (
        not arguments or arguments[0] in OPTIONS
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--pieces", nargs="+", default=[])
    return parser.parse_args(arguments)


# ---- what there is, and what is known of it ----------------------------------------------------


def file_of(piece: str) -> Path:
    part, name = piece.split("/")
    folder, _, pattern = PARTS[part].partition("/")
    return ROOT / folder / pattern.replace("*", name)


def pieces(parts: Iterable[str], first: Iterable[str], left_out: Iterable[str]) -> list[str]:
    """All of these parts but what is left out; ``first`` are files of pytest to begin with."""
    found: list[str] = []
    for part in parts:
        prefix = "test_" if part == "pytest" else ""
        names = sorted(path.stem.removeprefix(prefix) for path in ROOT.glob(PARTS[part]))
        early = [name for name in first if part == "pytest" and name in names]
        names = early + [name for name in names if name not in early]
        found += [f"{part}/{name}" for name in names]
    return [piece for piece in found if piece not in set(left_out)]


@functools.cache
def product() -> bytes:
    """Of what is tested."""
    digest = hashlib.sha256()
    names = ("extension/**/*.[ch]", "extension/sql/*.sql", "python/**/*.py", "Makefile")
    for path in sorted(path for name in names for path in ROOT.glob(name)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.digest()


def sources(piece: str) -> str:
    path = file_of(piece)
    expected = ROOT / "expected" / f"{path.stem}.out"
    digest = hashlib.sha256(product() + path.read_bytes())
    if path.suffix != ".py" and expected.exists():
        digest.update(expected.read_bytes())
    return digest.hexdigest()[:16]


def known(kind: str) -> Known:
    """The last of what is kept of each piece, if it is of these sources."""
    path = KEPT / f"{kind}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    results: Known = {str(line["piece"]): line for line in map(json.loads, lines)}
    return {
        piece: line
        for piece, line in results.items()
        if file_of(piece).exists() and line["sources"] == sources(piece)
    }


# ---- running ------------------------------------------------------------------------------------


def command(check: Check, piece: str) -> list[str]:
    part, name = piece.split("/")
    if part == "pytest":
        options = ["-q", "-p", "no:cacheprovider", "--durations=0", "--durations-min=5"]
        return ["-m", "pytest", *options, *check.pytest, f"tests/test_{name}.py"]
    return ["tools/run_regress.py", part, f"--output=build/{part}-{name}", name]


def run_piece(check: Check, piece: str) -> dict[str, object]:
    log = KEPT / check.kind / f"{piece.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *command(check, piece)],
            cwd=check.tree,
            check=False,
            env={**os.environ, **check.environment(piece)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    reports = check.found(piece)
    if reports:
        with log.open("a") as file:
            file.writelines(f"\n---- report ----\n{report}\n" for report in reports)
    nothing = piece.startswith("pytest/") and done.returncode == NO_TESTS
    counted = re.findall(
        r"^=* ?(\d+ (?:passed|failed|skipped|error).*?) in ", log.read_text(), re.M
    )
    return {
        "piece": piece,
        "passed": (done.returncode == 0 or nothing) and not reports,
        "tests": counted[-1] if counted else "",
        "reports": len(reports),
        "seconds": round(time.time() - began),
        "commit": describe(ROOT),
        "sources": sources(piece),
        "log": str(log.relative_to(ROOT)),
    }


def in_words(line: dict[str, object]) -> str:
    how = "passed" if line["passed"] else "failed"
    counted = f", {line['tests']}" if line["tests"] else ""
    reports = f", {line['reports']} reports" if line["reports"] else ""
    return f"{line['piece']}: {how}{counted}{reports}, {line['seconds']} s, at {line['commit']}"


def summary(kind: str, wanted: list[str]) -> Iterator[str]:
    """What of the pieces that are wanted has passed; what has failed, and is left, by name."""
    lines = known(kind)
    for part in PARTS:
        of_it = [piece for piece in wanted if piece.startswith(f"{part}/")]
        if not of_it:
            continue
        good = [piece for piece in of_it if piece in lines and lines[piece]["passed"]]
        tests = sum(
            int(number)
            for piece in good
            for number in re.findall(r"(\d+) passed", str(lines[piece]["tests"]))
        )
        tests_too = f" ({tests} tests)" if tests else ""
        yield f"{part}: {len(good)} of {len(of_it)} passed{tests_too}"
    for what, names in (
        ("failed", [piece for piece in wanted if piece in lines and not lines[piece]["passed"]]),
        ("left", [piece for piece in wanted if piece not in lines]),
    ):
        yield f"{what}: {', '.join(names) or 'nothing'}"


def choose(wanted: list[str], names: list[str]) -> list[str]:
    """Those that are named, as they are named; all if none is."""
    found = [
        piece for name in names for piece in wanted if piece == name or piece.startswith(f"{name}/")
    ]
    return list(dict.fromkeys(found)) if names else wanted


def run_all(
    kind: str, wanted: list[str], options: argparse.Namespace, prepare: Callable[[], Check]
) -> int:
    """Those that have not passed yet; ``prepare`` builds what they need.  0 if all have passed
    then, or, where time was given, if none has failed."""

    def say(text: str) -> None:
        print(f"check-{kind}: {text}", flush=True)

    chosen = choose(wanted, options.pieces)
    before = known(kind)
    todo = [p for p in chosen if options.anew or not before.get(p, {}).get("passed")]
    if options.list:
        for piece in chosen:
            if piece in before:
                say(in_words(before[piece]))
        todo = []
    KEPT.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    lock = threading.Lock()

    def one(check: Check, piece: str) -> None:
        if time.monotonic() >= end:
            return
        result = run_piece(check, piece)
        with lock, (KEPT / f"{kind}.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
            say(in_words(result) + ("" if result["passed"] else f"; see {result['log']}"))

    if todo:
        check = prepare()
        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(one, check, piece) for piece in todo]:
                future.result()
    for line in summary(kind, chosen):
        say(line)
    after = known(kind)
    left = [piece for piece in chosen if piece not in after]
    bad = [piece for piece in chosen if piece in after and not after[piece]["passed"]]
    return 1 if bad or (left and options.minutes == float("inf") and not options.list) else 0
