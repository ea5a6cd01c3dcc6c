"""tools/deps.sh, with package tools that only say what they were asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = "15.1-0"
NEWER = "15.2-0"

# A machine with a server, and without what is made of the same sources.
TOOLS = {
    "dpkg-query": """
        case "$*" in
            *Version*) echo "$HAVE" ;;
            *server-dev*|*plpython3*) exit 1 ;;
            *) echo installed ;;
        esac""",
    "apt-cache": """
        for version in $OFFERED; do
            echo "$2 | $version | http://archive.invalid main Packages"
        done""",
    "apt-get": """
        echo "$*" >> "$ASKED"
        case "$*" in
            *" -s install "*"=$HAVE"*) ;;
            *" -s install "*) echo "Inst postgresql-15 [$HAVE] ($NEWEST Archive [amd64])" ;;
        esac""",
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for name, body in TOOLS.items():
        tool = tmp_path / name
        tool.write_text(f"#!/bin/bash\n{body}\n")
        tool.chmod(0o755)
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/bash\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    return tmp_path


def run(machine: Path, offered: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    asked = machine / "asked"
    environment = os.environ | {
        "PATH": f"{machine}:{os.environ['PATH']}",
        "HAVE": INSTALLED,
        "NEWEST": NEWER,
        "OFFERED": offered,
        "ASKED": str(asked),
    }
    done = subprocess.run(
        [ROOT / "tools/deps.sh", "demo"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done, [line for line in asked.read_text().splitlines() if " install " in line]


def test_version_of_the_installed_server(machine: Path) -> None:
    """The archive has a newer server: what belongs to the installed one is asked for in its
    version, and the server stays."""
    done, asked = run(machine, f"{NEWER} {INSTALLED}")
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = [f"postgresql-server-dev-15={INSTALLED}", f"postgresql-plpython3-15={INSTALLED}"]
    assert [line.split()[-2:] for line in asked] == [wanted, wanted]  # planned, then done


def test_server_would_be_upgraded(machine: Path) -> None:
    """The archive has only a newer one: nothing is installed, and the user is told."""
    done, asked = run(machine, NEWER)
    assert done.returncode == 1
    assert "would upgrade the server" in done.stderr
    assert [line for line in asked if " -s " not in line] == []
