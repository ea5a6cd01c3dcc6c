"""The tests, each server with a standby that compares every page after every record.

    check_wal.py [pytest arguments ...]

Without arguments: regress, isolation and the tests of the storage (check_assert.py lists them).
tests/ab_shadow.py says what is compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from check_assert import STORAGE  # noqa: E402

# They have standbys and WAL of their own that this would only repeat, or disks too small for two.
LEFT_OUT = {"failpoints", "live_full", "live_standby", "standby"}
# What two servers on one machine cannot share (a tablespace's directory, a device that is taken
# away), WAL that is thrown away, and what looks for changes in WAL up to a certain length, which
# the images exceed.
DESELECTED = (
    *("tablespace", "storage_commands", "durable_after_a_checkpoint"),
    *("resetwal", "f12_relation_numbers", "reuses_its_snapshot", "busy_neighbours"),
)


def main(arguments: list[str]) -> int:
    environment = {**os.environ, "AGENT_BRANCH_SHADOW": "1"}
    worst = 0

    def call(*command: str) -> None:
        nonlocal worst
        print(f"check-wal: {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False, env=environment)
        worst = worst or done.returncode

    if arguments:
        call("-m", "pytest", "-q", *arguments)
        return worst
    for kind in ("regress", "isolation"):
        call("tools/run_regress.py", kind)
    tests = [f"tests/test_{name}.py" for name in STORAGE if name not in LEFT_OUT]
    chosen = " and ".join(f"not {name}" for name in DESELECTED)
    call("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-k", chosen, *tests)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
