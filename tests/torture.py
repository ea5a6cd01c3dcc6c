"""Everything that may happen to a server, for as long as wanted.

    torture.py [--part NAME ...] [--seconds N] [--seed N] [--report FILE]

Runs the parts (``--list`` names them; ab_torture.py) one after the other, each in a process of
its own with a seed of its own, and begins anew with other seeds until the time is over.  Each part
gets its share of the time that is left, and does something in any case.  What a run has done is
kept under ``build/torture``: with the same seed it goes on where it was.  ``--report`` writes a
summary, in Markdown, of all that is kept there (``--seconds 0`` with it runs nothing).

A part that fails is named with the command that repeats it; its servers' directories stay.
What a part leaves behind (processes, mounts, loop devices) is a failure, and is removed.
The seed decides what is tried; what the processes make of it is the machine's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from ab_cluster import live_clusters, pg_config, wait_for, workspace
from ab_torture import PARTS, PLACE, WEIGHTS, Share

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from commit import describe  # noqa: E402

KEPT = ROOT / "build" / "torture"
RESULT = "torture result: "
NEW_LINE = "\n"
NOTES = "## Notes"  # begins what is written by hand at the end of the summary


# ---- one part -----------------------------------------------------------------------------------


def run_part(name: str, seed: int, seconds: float) -> int:
    """In this process; ends with a line that the other one reads."""
    base = workspace("ab-torture-")
    result: dict[str, object] = {}
    try:
        result["done"] = dict(PARTS[name](seed, base, Share(seconds)))
    except pytest.skip.Exception as skipped:
        result["skipped"] = str(skipped)
    except BaseException as failure:
        traceback.print_exc()
        for cluster in live_clusters():
            print(cluster.log_tail())
            cluster.kill()
            cluster.keep_running = True
        result = {"failed": f"{type(failure).__name__}: {failure}"[:2000], "directory": str(base)}
    if "failed" not in result:
        for cluster in live_clusters():
            cluster.destroy()
    if left := left_behind(base):
        result = {"failed": f"left behind: {', '.join(left)}", "directory": str(base), **result}
    if "failed" not in result:
        shutil.rmtree(base, ignore_errors=True)
    print(RESULT + json.dumps(result), flush=True)
    return 1 if "failed" in result else 0


def left_behind(base: Path) -> list[str]:
    """Removes, and names, what should not be there any more but files: processes that work under
    the directory, what is mounted there, and loop devices of its images."""
    here = f"{base}/"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = str((process / "cwd").readlink())
            if place.startswith(here):
                found.append(f"process {process.name} in {place}")
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounts if place.startswith(here)]):
        found.append(f"mounted {place}")
        subprocess.run(["umount", "-l", place], check=False)
    for device in Path("/sys/block").glob("loop*"):

        def backed(device: Path = device) -> bool:
            try:
                return (device / "loop" / "backing_file").read_text().startswith(here)
            except OSError:
                return False

        try:  # the kernel gives them back a little after the last mount
            wait_for(lambda backed=backed: not backed(), 10)  # type: ignore[misc]
        except TimeoutError:
            found.append(f"/dev/{device.name}")
            subprocess.run(["losetup", "-d", f"/dev/{device.name}"], check=False)
    return found


# ---- all of them --------------------------------------------------------------------------------


def repeat(name: str, seed: int) -> str:
    return f'make torture TORTURE="--only {name} --seed {seed}"'


def start_part(name: str, seed: int, seconds: float) -> dict[str, object]:
    """In a process of its own, which ends with this one; its output is kept."""
    log = KEPT / f"{name}-{seed}.log"
    began = time.time()
    with log.open("w") as file:
        part = subprocess.Popen(
            [
                *(sys.executable, __file__, "--only", name, "--seed", str(seed)),
                *("--seconds", f"{seconds:.0f}"),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            part.wait()
        finally:
            part.terminate()
            part.wait()
    said = [line for line in log.read_text().splitlines() if line.startswith(RESULT)]
    result = json.loads(said[-1][len(RESULT) :]) if said else {"failed": "ended without a result"}
    result |= {"part": name, "seed": seed, "seconds": round(time.time() - began)}
    result |= {"commit": describe(ROOT), "load": round(os.getloadavg()[1], 1)}
    return result


def in_words(figures: Mapping[str, object]) -> str:
    """Passes of named places as how many there were."""
    places = sum(what.startswith(PLACE) for what in figures)
    plain = [
        f"{what} {count}" for what, count in sorted(figures.items()) if not what.startswith(PLACE)
    ]
    return ", ".join(plain + [f"different places {places}"] * bool(places))


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
        todo = [(name, rng.randrange(1, 2**31)) for name in names]
        todo = [what for what in todo if what not in before]
        for at, (name, seed) in enumerate(todo):
            left = end - time.monotonic()
            if turn and left <= 0:
                break
            others = sum(WEIGHTS.get(other, 1) for other, _ in todo[at:])
            result = start_part(name, seed, max(1, left * WEIGHTS.get(name, 1) / others))
            with state.open("a") as file:
                file.write(json.dumps(result) + "\n")
            done = result.get("done")
            outcome = result.get("skipped") or result.get("failed")
            if isinstance(done, dict):
                outcome = in_words(done)
            print(f"{name}, seed {seed}, {result['seconds']} s: {outcome}", flush=True)
            if "failed" in result:
                failed += 1
                print(f"torture: {name} failed; again: {repeat(name, seed)}", flush=True)
                if arguments.stop:
                    return 1
        turn += 1
    return 1 if failed else 0


# ---- the summary --------------------------------------------------------------------------------


def machine(lines: list[dict[str, object]]) -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    commits = dict.fromkeys(str(line.get("commit", "?")) for line in lines)
    loads = sorted(float(str(line.get("load", 0))) for line in lines) or [0.0]
    return [
        f"- {os.cpu_count()} processors ({platform.machine()}), {memory} GiB of memory,"
        f" {platform.system()} {platform.release()}; load {loads[0]:g} to {loads[-1]:g}",
        f"- {pg_config('--version')}",
        f"- agent_branch {', '.join(commits)}",
    ]


def notes(path: Path) -> list[str]:
    """What somebody has written at the end of the summary, which stays."""
    text = path.read_text() if path.exists() else ""
    return [NOTES, "", text.partition(NOTES)[2].strip()] if NOTES in text else []


def report(path: Path) -> None:
    """All results that are kept, by part; what failed or was skipped stands first."""
    lines = [line for kept in sorted(KEPT.glob("*.jsonl")) for line in known(kept)]
    by_part: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in lines:
        by_part[str(line["part"])].append(line)
    troubles = [
        f"- `{line['part']}`, seed {line['seed']}:"
        f" {str(line.get('failed') or line.get('skipped')).partition(NEW_LINE)[0]}"
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
        rows.append(f"| {name} | {good} of {len(runs)} | {minutes:.0f} | {in_words(done)} |")
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
        *machine(lines),
        "",
        "## Seeds",
        "",
        *seeds,
        "",
        *notes(path),
    ]
    path.write_text("\n".join(text).rstrip() + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, help="how long (an hour; --only: to its end)")
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
    # Whoever ends this wants no servers and no disks of ours to stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    if arguments.only:
        seconds = math.inf if arguments.seconds is None else arguments.seconds
        return run_part(arguments.only, arguments.seed, seconds)
    if arguments.seconds is None:
        arguments.seconds = 3600
    code = 0
    if arguments.seconds or not arguments.report:
        print(f"torture: seed {arguments.seed}", flush=True)
        code = run_all(arguments)
    if arguments.report:
        report(arguments.report)
    return code


if __name__ == "__main__":
    sys.exit(main())
