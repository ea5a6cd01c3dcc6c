"""Figures side by side with stock PostgreSQL: ``run.py [--quick | --full] [NAME ...]``.

Each benchmark sets up its own servers, alternates between the two sides, discards one
warm-up and prints the medians of both sides and of the ratios, with their range:

    name  ours  stock  ratio  [min..max]  bar  ok|short

Times are milliseconds (less is better, the bar is an upper one) or transactions per
second (more is better, a lower bar); a bar that says "ours" is for our side alone.
Raw figures go to bench/raw/NAME.json.  A run of all benchmarks writes bench/RESULTS.md
and its plots, --quick does not; --results writes them of what is in bench/raw.
With --branches N figures, page and plots are kept apart: bench/RESULTS-N-branches.md.

Sizes: --quick takes less than 3 minutes on a machine that does nothing else, no option
about half an hour, --full (100,000 branches, depth 1000) hours.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import comparing  # noqa: E402
import copying  # noqa: E402
import creating  # noqa: E402
import keeping  # noqa: E402
import merging  # noqa: E402
import results  # noqa: E402
import scale  # noqa: E402
import serving  # noqa: E402
from measure import RUN, Sizes, save  # noqa: E402

BENCHMARKS: dict[str, Callable[[Sizes], None]] = {
    "create-clean": creating.create_clean,
    "create-size": creating.create_size,
    "create-relations": creating.create_relations,
    "create-depth": creating.create_depth,
    "create-template": copying.create_template,
    "create-reflink": copying.create_reflink,
    "create-rate": creating.create_rate,
    "live-parent": creating.live_parent,
    "tree-search": creating.tree_search,
    "connect": serving.connect,
    "resume": serving.resume,
    "throughput": serving.throughput,
    "unused": serving.unused,
    "stock-twice": serving.stock_twice,
    "live-settled": serving.live_settled,
    "depth-reads": serving.depth_reads,
    "live-history": serving.live_history,
    "disk": keeping.disk,
    "delete": keeping.delete,
    "gc": keeping.gc,
    "scale": scale.scale,
    "diff-changed": comparing.diff_changed,
    "merge-changed": comparing.merge_changed,
    "diff-memory": comparing.diff_memory,
    "merge-floor": merging.merge_floor,
    "merge-row": merging.merge_row,
    "resolve": merging.resolve,
    "strategy": merging.strategy,
    "many-asleep": keeping.many_asleep,
}


def one(name: str, size: Sizes) -> bool:
    """Run a benchmark; if it fails, say why, for the others go on."""
    RUN.begin(name, size)
    try:
        BENCHMARKS[name](size)
    except Exception as error:
        traceback.print_exc(limit=-4)
        why = str(error).partition("\n")[0] or type(error).__name__
        print(f"{name}: FAILED: {why}", flush=True)
        save(f"failed-{name}", {"verdict": "failed", "note": why})
        return False
    finally:
        print(f"    ({name}: {time.time() - RUN.began:.0f} s)", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--full", action="store_true", help="the largest sizes")
    parser.add_argument("--seed", type=int, default=1, help="of everything chosen at random")
    parser.add_argument("--branches", type=int, help="how many, instead of what the size says")
    parser.add_argument("--repeats", type=int, help="pairs of each figure")
    parser.add_argument("--within", type=float, help="minutes after which none is begun any more")
    parser.add_argument("--list", action="store_true", help="names and what they measure")
    parser.add_argument("--results", action="store_true", help="write bench/RESULTS.md again")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="all if none")
    arguments = parser.parse_args()
    if arguments.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:<18} {' '.join((benchmark.__doc__ or '').split())}")
        return 0
    size = Sizes(arguments.quick, arguments.full, arguments.seed)
    if arguments.branches:
        size.branches = arguments.branches
        results.apart(f"{arguments.branches}-branches")
    if arguments.repeats:
        size.repeats = size.rounds = arguments.repeats
    if arguments.results and not arguments.names:
        results.write()
        return 0
    if not arguments.names or arguments.branches:
        results.forget()
    print(f"{'name':<30} {'ours':>11} {'stock':>11} {'ratio':>9} [min..max] bar")
    began = time.time()
    good = []
    for name in arguments.names or BENCHMARKS:
        if arguments.within and time.time() - began > arguments.within * 60:
            print(f"{name}: not run, {arguments.within:g} minutes are over", flush=True)
            RUN.begin(name, size)
            save(f"failed-{name}", {"verdict": "failed", "note": "not run, time was over"})
        else:
            good.append(one(name, size))
    if arguments.results or arguments.branches or not (arguments.names or arguments.quick):
        results.write()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
