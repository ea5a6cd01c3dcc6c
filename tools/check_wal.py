"""The tests, each server with a standby that compares every page after every record.

    check_wal.py [options of check_pieces.py]
    check_wal.py pytest arguments ...

Regress, isolation and pytest, the tests of the storage first, in pieces that are kept
(check_pieces.py).  tests/ab_shadow.py says what is compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import check_pieces  # noqa: E402
from check_assert import SERVERLESS, STORAGE  # noqa: E402

# They have standbys and WAL of their own that this would only repeat, or disks too small for two.
LEFT_OUT = {"cut_off_index", "failpoints", "live_full", "live_standby", "standby", *SERVERLESS}
# What two servers on one machine cannot share (a tablespace's directory, a device that is taken
# away, calls that fail in whoever makes them), and what looks for changes in WAL up to a certain
# length, or wants no checkpoint to come, which the images exceed, or waits for recovery to look
# ahead at pages, of which WAL has images then.
DESELECTED = (
    *("tablespace", "storage_commands", "durable_after_a_checkpoint", "changed_map_is_durable"),
    *("interrupted_at_any_call", "origin_that_cannot_be_read"),
    *("reuses_its_snapshot", "busy_neighbours", "manifest_lost_and_origin_not"),
    "(test_torn_writes and test_power_cut)",
)


def main(arguments: list[str]) -> int:
    environment = {"AGENT_BRANCH_SHADOW": "1"}
    if not check_pieces.is_of_pieces(arguments):
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        print(f"check-wal: {' '.join(command[1:])}", flush=True)
        return subprocess.run(
            command, cwd=ROOT, check=False, env={**os.environ, **environment}
        ).returncode
    chosen = " and ".join(f"not {name}" for name in DESELECTED)
    check = check_pieces.Check("wal", ROOT, lambda piece: environment, ["-k", chosen])
    left_out = [f"pytest/{name}" for name in LEFT_OUT]
    return check_pieces.run_all(
        "wal",
        check_pieces.pieces(check_pieces.PARTS, STORAGE, left_out),
        check_pieces.parse(arguments),
        lambda: check,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
