"""The tests under a server that checks its own assertions.

    check_assert.py [options of check_pieces.py]
    check_assert.py pytest arguments ...

Regress, isolation and pytest, the tests of the storage first, in pieces that are kept.

If the server that PG_CONFIG names was configured with --enable-cassert it is used.  Otherwise one
is built of the source package of the installed server (fetched as check_core.py does it, or in
the directory that PG_SOURCE names) and kept in AGENT_BRANCH_CACHE (else ~/.cache/agent_branch).
Either way a copy gets the extension, and the sources are built and tested in a copy too, since an
object file for one server does not do for the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import check_pieces  # noqa: E402
from ab_cluster import pg_config, workspace  # noqa: E402
from check_core import fetch_archive, server_version  # noqa: E402

STORAGE = [
    "branch_chain",
    "crash",
    "detach",
    "failpoints",
    "hazards",
    "initfile",
    "late_sync",
    "live_crash",
    "live_full",
    "live_scenarios",
    "live_space",
    "live_standby",
    "live_steps",
    "live_storm",
    "lifecycle",
    "oracle",
    "own_files",
    "reuse",
    "review",
    "standby",
    "suspend",
    "torn_writes",
    "transactions",
    "witness",
]
# They start none, or build what they test themselves.
SERVERLESS = {"additive", "bench_results", "check_pieces", "history", "merge_plan", "packaging"}
SERVERLESS |= {"schema_plan", "torture", "units"}
COPIED = ["extension", "python", "tests", "tools", "Makefile", "agent_branch.control"]
COPIED += ["pyproject.toml", "sql", "expected", "specs", "bench", "monitoring", "docs", "examples"]
COPIED += ["README.md", "CHANGELOG.md", "LICENSE", "META.json"]
CONFIGURE = ["--enable-cassert", "--enable-debug", "--without-readline", "--without-zlib"]
CONFIGURE += ["--with-python", "PYTHON=/usr/bin/python3"]


def say(text: str) -> None:
    print(f"check-assert: {text}", flush=True)


def make(folder: Path, *arguments: str) -> None:
    """make, quietly; with its output if it fails."""
    command = ["make", "-s", f"-j{os.cpu_count()}", *arguments]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(
            f"check-assert: {' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )


def cache() -> Path:
    given = os.environ.get("AGENT_BRANCH_CACHE")
    path = Path(given) if given else Path.home() / ".cache" / "agent_branch"
    path.mkdir(parents=True, exist_ok=True)
    return path


def source(folder: Path) -> Path:
    """The unpacked source of the server."""
    given = os.environ.get("PG_SOURCE")
    if given:
        copied = folder / "given"
        shutil.copytree(given, copied, dirs_exist_ok=True)
        return copied
    archive = fetch_archive(folder)
    place = folder / archive.name.split(".orig")[0]
    if not place.exists():
        partial = folder / "unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial)  # apt has checked its signature
        partial.rename(place)
    return next(path for path in place.iterdir() if (path / "configure").exists())


def build(kind: str = "assert", flags: str = "-O1 -g") -> Path:
    """Directory of a server with assertions, built once."""
    place = cache() / f"postgresql-{server_version()}-{kind}"
    if (place / "bin" / "postgres").exists():
        return place
    # Not the installed PL/Python: the sources may be of an older release than that.
    headers = subprocess.run(
        ["/usr/bin/python3", "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not (Path(headers) / "Python.h").exists():
        raise SystemExit("check-assert: Python.h is missing (apt-get install python3-dev)")
    folder = cache() / "source"
    folder.mkdir(exist_ok=True)
    tree = source(folder)
    say(f"building {tree.name} with assertions into {place}")
    partial = place.with_name(place.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    chosen = CONFIGURE + ["--with-libxml"] * bool(shutil.which("xml2-config"))
    chosen += ["--with-icu"] * (
        subprocess.run(["pkg-config", "--exists", "icu-uc"]).returncode == 0
    )
    subprocess.run(
        ["./configure", "-q", f"--prefix={partial}", *chosen, f"CFLAGS={flags}"],
        cwd=tree,
        check=True,
    )
    make(tree, "clean")
    for part in (".", "contrib"):
        make(tree / part)
        make(tree / part, "install")
    partial.rename(place)
    return place


def add_pg_cron(config: Path) -> None:
    """The installed one, which goes with any server of the major version; into a copy."""
    program = pg_config("--pkglibdir") + "/pg_cron.so"
    control = Path(pg_config("--sharedir")) / "extension"

    def there(option: str) -> Path:
        done = subprocess.run([config, option], check=True, capture_output=True, text=True)
        return Path(done.stdout.strip())

    if Path(program).exists() and not (there("--pkglibdir") / "pg_cron.so").exists():
        shutil.copy(program, there("--pkglibdir"))
        for path in control.glob("pg_cron*"):
            shutil.copy(path, there("--sharedir") / "extension")


def copy_sources(base: Path) -> Path:
    """The project without what was built of it, under ``base``."""
    tree = base / "source"
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("*.o", "__pycache__", "raw")
            shutil.copytree(ROOT / name, tree / name, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    return tree


def prepare(base: Path) -> tuple[Path, dict[str, str]]:
    """The copies: where the tests are, and what they find the server by."""
    if "--enable-cassert" in pg_config("--configure"):
        server = Path(pg_config("--bindir")).parent
    else:
        server = build()
    copy = base / "server"
    shutil.copytree(server, copy, symlinks=True)
    tree = copy_sources(base)
    config = copy / "bin" / "pg_config"
    add_pg_cron(config)
    make(tree, f"PG_CONFIG={config}", "all")
    make(tree, f"PG_CONFIG={config}", "install", f"SITE={base / 'site'}")
    say(f"testing with {server}")
    return tree, {"PG_CONFIG": str(config), "PYTHONPATH": str(base / "site")}


def main(arguments: list[str]) -> int:
    base = workspace("abassert-")
    try:
        if not check_pieces.is_of_pieces(arguments):
            tree, environment = prepare(base)
            return subprocess.run(
                [sys.executable, "-m", "pytest", "-q", *arguments],
                cwd=tree,
                check=False,
                env={**os.environ, **environment},
            ).returncode

        def prepared() -> check_pieces.Check:
            tree, environment = prepare(base)
            return check_pieces.Check("assert", tree, lambda piece: environment)

        left_out = [f"pytest/{name}" for name in SERVERLESS]
        wanted = check_pieces.pieces(check_pieces.PARTS, STORAGE, left_out)
        return check_pieces.run_all("assert", wanted, check_pieces.parse(arguments), prepared)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
