"""Every place that names the version names the same one: agent_branch.control decides."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def control_version() -> str:
    text = (ROOT / "agent_branch.control").read_text()
    found = re.search(r"^default_version\s*=\s*'([^']+)'", text, re.MULTILINE)
    if found is None:
        raise SystemExit("agent_branch.control: no default_version")
    return found.group(1)


def same_release(found: str, version: str) -> bool:
    """'0.1' and '0.1.0' are one release; META.json needs three numbers."""
    parts = found.split(".")
    while len(parts) > 2 and parts[-1] == "0":
        parts.pop()
    return ".".join(parts) == version


def main() -> int:
    version = control_version()
    meta = json.loads((ROOT / "META.json").read_text())
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    named = {
        "META.json version": meta["version"],
        "META.json provides": meta["provides"]["agent_branch"]["version"],
    }
    if "version" in project:
        named["python/pyproject.toml"] = project["version"]
    init = (ROOT / "python" / "agent_branch" / "__init__.py").read_text()
    declared = re.search(r'^__version__\s*=\s*"([^"]+)"', init, re.MULTILINE)
    if declared is not None:
        named["python/agent_branch/__init__.py"] = declared.group(1)
    wrong = [
        f"{where}: {found}" for where, found in named.items() if not same_release(found, version)
    ]
    if not (ROOT / "extension" / f"agent_branch--{version}.sql").exists():
        wrong.append(f"extension/agent_branch--{version}.sql is missing")
    if f"({version})" not in (ROOT / "CHANGELOG.md").read_text():
        wrong.append("CHANGELOG.md does not name it")
    for line in wrong:
        print(f"version {version} is not said by {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
