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
    "away",
    "backup_inherited",
    "branch_chain",
    "copy_orders",
    "crash",
    "cut_off_index",
    "cut_segments",
    "damaged_meanwhile",
    "descriptors",
    "detach",
    "failpoints",
    "fork_notes",
    "hazards",
    "initfile",
    "kept_elsewhere",
    "kept_number",
    "late_sync",
    "lifecycle",
    "live_crash",
    "live_full",
    "live_scenarios",
    "live_space",
    "live_standby",
    "live_steps",
    "live_storm",
    "map_alone",
    "oracle",
    "own_files",
    "reuse",
    "review",
    "shorter_files",
    "standby",
    "standby_copied",
    "standby_detaches",
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
PACKAGED = Path("/usr/lib/postgresql/15/bin/pg_config")
CONFIGURE = ["--enable-cassert", "--enable-debug", "--without-readline", "--without-zlib"]
CONFIGURE += ["--with-python", "PYTHON=/usr/bin/python3"]


def say(text: str) -> None:
    print(f"check-assert: {text}", flush=True)


def make(folder: Path, *arguments: str) -> None:
    """make, quietly; with its output if it fails.  Not as a part of the make that called this: the
    server's makes the headers that it generates only when it is the outermost."""
    command = ["make", "-s", f"-j{os.cpu_count()}", *arguments]
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
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
    """The installed one, which goes with any server of the major version; into a copy.  A server
    that was built may be without: then that of the packaged server."""

    def of(program: Path) -> tuple[Path, Path]:
        done = subprocess.run(
            [program, "--pkglibdir", "--sharedir"], check=True, capture_output=True, text=True
        )
        libraries, shared = done.stdout.splitlines()
        return Path(libraries), Path(shared) / "extension"

    libraries, extensions = of(config)
    for program in (Path(pg_config("--bindir")) / "pg_config", PACKAGED):
        if not program.exists() or (libraries / "pg_cron.so").exists():
            continue
        library, extension = of(program)
        if (library / "pg_cron.so").exists():
            shutil.copy(library / "pg_cron.so", libraries)
            for path in extension.glob("pg_cron*"):
                shutil.copy(path, extensions)


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


def copy_server(server: Path, base: Path) -> Path:
    """Under ``base``, with pg_cron; returns its pg_config.  Debian's makefiles have a server whose
    prefix says neither pgsql nor postgres keep its libraries where the packaged one has them, and
    a copy would install there."""
    copy = base / "server"
    shutil.copytree(server, copy, symlinks=True)
    config = copy / "bin" / "pg_config"
    libraries = subprocess.run(
        [config, "--pkglibdir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(libraries).is_relative_to(copy):
        raise SystemExit(
            f"check-assert: {server} has its libraries in {libraries}; build it with a prefix that"
            ' ends in "postgresql"'
        )
    add_pg_cron(config)
    return config


def prepare(base: Path) -> tuple[Path, dict[str, str]]:
    """The copies: where the tests are, and what they find the server by."""
    if "--enable-cassert" in pg_config("--configure"):
        server = Path(pg_config("--bindir")).parent
    else:
        server = build()
    config = copy_server(server, base)
    tree = copy_sources(base)
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
