"""Everything that may happen to a server, for as long as wanted.

    torture.py [--part NAME ...] [--seconds N] [--seed N] [--report FILE]

Runs the parts (``--list`` names them; ab_torture.py) one after the other, each in a process of
its own with a seed of its own, and begins anew with other seeds until the time is over; each part
is run at least once.  What a run has done is kept under ``build/torture``: with the same seed it
goes on where it was.  ``--report`` writes a summary, in Markdown, of all that is kept there.

A part that fails is named with the command that repeats it; its servers' directories stay.
The seed decides what is tried; what the processes make of it is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from ab_cluster import live_clusters, pg_config, workspace
from ab_torture import PARTS

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "torture"
RESULT = "torture result: "


# ---- one part -----------------------------------------------------------------------------------


def run_part(name: str, seed: int) -> int:
    """In this process; ends with a line that the other one reads."""
    base = workspace("ab-torture-")
    result: dict[str, object] = {}
    code = 0
    try:
        result["done"] = dict(PARTS[name](seed, base))
    except pytest.skip.Exception as skipped:
        result["skipped"] = str(skipped)
    except BaseException as failure:
        traceback.print_exc()
        for cluster in live_clusters():
            print(cluster.log_tail())
            cluster.kill()
            cluster.keep_running = True
        result["failed"] = f"{type(failure).__name__}: {failure}"[:2000]
        result["directory"] = str(base)
        code = 1
    if code == 0:
        for cluster in live_clusters():
            cluster.destroy()
        shutil.rmtree(base, ignore_errors=True)
    print(RESULT + json.dumps(result), flush=True)
    return code


# ---- all of them --------------------------------------------------------------------------------


def repeat(name: str, seed: int) -> str:
    return f'make torture TORTURE="--only {name} --seed {seed}"'


def start_part(name: str, seed: int) -> dict[str, object]:
    """In a process of its own; its output is kept."""
    log = KEPT / f"{name}-{seed}.log"
    began = time.time()
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, __file__, "--only", name, "--seed", str(seed)],
            check=False,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    said = [line for line in log.read_text().splitlines() if line.startswith(RESULT)]
    result = json.loads(said[-1][len(RESULT) :]) if said else {"failed": "ended without a result"}
    result |= {"part": name, "seed": seed, "seconds": round(time.time() - began)}
    return result


def known(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_all(arguments: argparse.Namespace) -> int:
    KEPT.mkdir(parents=True, exist_ok=True)
    state = KEPT / f"{arguments.seed}.jsonl"
    before = {(line["part"], line["seed"]) for line in known(state) if "failed" not in line}
    names = arguments.part or list(PARTS)
    end = time.monotonic() + arguments.seconds
    failed = 0
    turn = 0
    while turn == 0 or time.monotonic() < end:
        rng = random.Random(f"{arguments.seed}/{turn}")
        for name in names:
            seed = rng.randrange(1, 2**31)
            if (name, seed) in before or (turn and time.monotonic() >= end):
                continue
            result = start_part(name, seed)
            with state.open("a") as file:
                file.write(json.dumps(result) + "\n")
            outcome = result.get("skipped") or result.get("failed") or result.get("done")
            print(f"{name}, seed {seed}, {result['seconds']} s: {outcome}", flush=True)
            if "failed" in result:
                failed += 1
                print(f"torture: {name} failed; again: {repeat(name, seed)}", flush=True)
                if arguments.stop:
                    return 1
        turn += 1
    return 1 if failed else 0


# ---- the summary --------------------------------------------------------------------------------


def machine() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return [
        f"- {os.cpu_count()} processors ({platform.machine()}), {memory} GiB of memory,"
        f" {platform.system()} {platform.release()}",
        f"- {pg_config('--version')}",
        f"- agent_branch {commit or 'without git'}",
    ]


def report(path: Path) -> None:
    """All results that are kept, by part; what failed or was skipped stands first."""
    lines = [line for kept in sorted(KEPT.glob("*.jsonl")) for line in known(kept)]
    by_part: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in lines:
        by_part[str(line["part"])].append(line)
    troubles = [
        f"- `{line['part']}`, seed {line['seed']}: {line.get('failed') or line.get('skipped')}"
        f" (`{repeat(str(line['part']), int(str(line['seed'])))}`)"
        for line in lines
        if "done" not in line
    ]
    troubles += [f"- `{name}` was not run." for name in PARTS if not by_part[name]]
    rows = []
    for name in PARTS:
        runs = by_part[name]
        done: Counter[str] = Counter()
        for line in runs:
            figures = line.get("done", {})
            assert isinstance(figures, dict)
            done.update(figures)
        good = sum("done" in line for line in runs)
        minutes = sum(int(str(line["seconds"])) for line in runs) / 60
        figures_text = ", ".join(f"{what} {count}" for what, count in sorted(done.items()))
        rows.append(f"| {name} | {good} of {len(runs)} | {minutes:.0f} | {figures_text} |")
    seeds = [f"- {name}: {', '.join(str(run['seed']) for run in by_part[name])}" for name in PARTS]
    text = [
        "# Torture",
        "",
        "Written by `make torture`; `tests/torture.py` and `tests/ab_torture.py` say what each part"
        " does.",
        "",
        "## What failed or was left out",
        "",
        *(troubles or ["Nothing."]),
        "",
        "## What was done",
        "",
        "| part | runs that passed | minutes | in them |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Where",
        "",
        *machine(),
        "",
        "## Seeds",
        "",
        *seeds,
    ]
    path.write_text("\n".join(text) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=3600, help="how long (an hour)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**31))
    parser.add_argument("--part", action="append", choices=list(PARTS), help="these parts")
    parser.add_argument("--only", choices=list(PARTS), help="one part, once, with that seed")
    parser.add_argument("--stop", action="store_true", help="at the first failure")
    parser.add_argument("--report", type=Path, help="write what all runs have done there")
    parser.add_argument("--list", action="store_true", help="name the parts")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(PARTS))
        return 0
    if arguments.only:
        return run_part(arguments.only, arguments.seed)
    print(f"torture: seed {arguments.seed}", flush=True)
    code = run_all(arguments)
    if arguments.report:
        report(arguments.report)
    return code


if __name__ == "__main__":
    sys.exit(main())
