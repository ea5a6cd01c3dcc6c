"""Which state of the sources something was done with."""

from __future__ import annotations

import subprocess
from pathlib import Path


def describe(root: Path) -> str:
    """The commit that is checked out there, and whether files have changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "without git"
