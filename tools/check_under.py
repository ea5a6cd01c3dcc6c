"""Tests of a library, or a server, that looks for faults of its own while it runs.

    check_under.py asan|valgrind [options of check_pieces.py]
    check_under.py asan|valgrind|coverage [--regress [name ...]] [--isolation [name ...]]
                   [--pytest argument ...]

asan and valgrind run all that ALL says in pieces that are kept, or what is chosen by options.
Everything is built and tested in copies.

asan: the library with AddressSanitizer and UndefinedBehaviorSanitizer, in a server with assertions
    (as check_assert.py finds or builds it; distributions' own ones may not get past a lock of
    their message catalogues) that has their runtimes preloaded.  The first report of a process
    ends it.  What is leaked is not asked: the server leaves memory contexts to the end of the
    process.
valgrind: all processes of a server with assertions that was built with USE_VALGRIND, so that
    memcheck knows what palloc and shared buffers mean.  A report counts if
    a function of ours is among its innermost frames.
coverage: the library with gcov's counters, which a process adds to when it exits.  One that is
    killed, or ends by a signal, adds nothing.  The table goes to build/coverage.md, lines that
    were never run to build/uncovered.txt.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import check_pieces  # noqa: E402
import gcov_table  # noqa: E402
from ab_cluster import pg_config, workspace  # noqa: E402
from check_assert import (  # noqa: E402
    PACKAGED,
    SERVERLESS,
    STORAGE,
    build,
    copy_server,
    copy_sources,
    make,
)

SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g"
COUNT = "--coverage -O0 -g -U_FORTIFY_SOURCE"
ASAN = "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1"
UBSAN = "print_stacktrace=1:halt_on_error=1"
# Frames of a hook that handed on to the server.
HOOKS = ("ab_hooks",)
FRAME = re.compile(r"\((ab_\w+|agent_branch)\.c:\d+\)")
INNERMOST = 8
BEGIN, END = "AB-ERROR-BEGIN", "AB-ERROR-END"


def say(text: str) -> None:
    print(f"check-under: {text}", flush=True)


@dataclass
class Place:
    """Where it is tested: everything below ``base``."""

    base: Path
    config: Path  # pg_config of the server
    tree: Path  # the sources
    reports: Path


def mirror_installed(base: Path) -> Path:
    """The installed server under another directory, where it finds everything relative to its
    programs; returns its pg_config."""
    server = base / "server"
    for option in ("--bindir", "--pkglibdir", "--sharedir", "--includedir-server"):
        here = Path(pg_config(option))
        if option.startswith("--include") and not here.exists():
            continue  # of a server that was itself copied
        shutil.copytree(here, server / here.relative_to("/"), dirs_exist_ok=True)
    return server / Path(pg_config("--bindir")).relative_to("/") / "pg_config"


def wrap(config: Path, lines: str) -> None:
    """Whoever starts the server's program, or a copy, runs these lines of shell instead, in which
    "$real" is what it was."""
    program = config.parent / "postgres"
    real = program.with_name("postgres.real")
    program.rename(real)
    program.write_text(f'#!/bin/sh\nreal="$(dirname "$0")/{real.name}"\n{lines}\n')
    program.chmod(0o755)


def runtime(name: str) -> str:
    """Of the compiler that builds the library."""
    compiler = pg_config("--cc").split()[0]
    done = subprocess.run(
        [compiler, f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True
    )
    path = Path(done.stdout.strip())
    if not path.is_absolute():
        raise SystemExit(f"check-under: {compiler} has no lib{name}.so")
    return str(path.resolve())


def defaults(place: Path) -> Path:
    """A library that says what UBSan's options are: it asks for them only when it has something
    to report, and by then the server shows its state where the environment was."""
    source = place / "defaults.c"
    source.write_text(f'const char *__ubsan_default_options(void)\n{{ return "{UBSAN}"; }}\n')
    library = source.with_suffix(".so")
    compiler = pg_config("--cc").split()[0]
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def install(place: Place, flags: str) -> None:
    """Build with these flags and install.  Headers are where they were installed, which a
    relocated pg_config of a distribution does not say."""
    config = place.config
    if not (place.base / "server" / "include").exists():
        config = Path(shutil.which(os.environ.get("PG_CONFIG", "pg_config")) or "")
        if not (Path(pg_config("--includedir-server")) / "postgres.h").exists():
            config = PACKAGED
    building = [f"PG_CONFIG={config}"]
    make(place.tree, *building, f"COPT={flags}", "all")
    site = f"SITE={place.base / 'site'}"
    make(place.tree, f"PG_CONFIG={place.config}", f"COPT={flags}", site, "install")


def need(program: str) -> None:
    if shutil.which(program) is None:
        raise SystemExit(f"check-under: {program} is missing (apt-get install {program})")


def with_assertions(kind: str) -> Path:
    """Directory of such a server: the one that PG_CONFIG names, or one that is built."""
    configured = pg_config("--configure")
    if "--enable-cassert" in configured and (kind == "asan" or "-DUSE_VALGRIND" in configured):
        return Path(pg_config("--bindir")).parent
    return build() if kind == "asan" else build("valgrind", "-O1 -g -DUSE_VALGRIND")


def prepare(kind: str, base: Path) -> Place:
    if kind == "valgrind":
        need("valgrind")
    if kind in ("asan", "valgrind"):
        config = copy_server(with_assertions(kind), base)
    else:
        config = mirror_installed(base)
    place = Place(base, config, copy_sources(base), base / "reports")
    place.reports.mkdir()
    place.reports.chmod(0o777)
    say("building")
    if kind == "asan":
        install(place, SANITIZE)
        preloaded = f"{runtime('asan')} {defaults(base)} {runtime('ubsan')}"
        wrap(
            config,
            f'export LD_PRELOAD="{preloaded} $LD_PRELOAD"\n'
            f'export ASAN_OPTIONS="{ASAN}:log_path=$AGENT_BRANCH_REPORTS/asan"\n'
            'exec "$real" "$@"',
        )
    elif kind == "valgrind":
        install(place, "-O1 -g")
        wrap(
            config,
            'case "$1" in --*) exec "$real" "$@" ;; esac\n'  # initdb's are not of interest
            f"exec valgrind -q --leak-check=no --num-callers=24 --error-limit=no"
            f" --suppressions='{place.tree}/tools/valgrind.supp'"
            f' --error-markers={BEGIN},{END} --log-file="$AGENT_BRANCH_REPORTS/%p" "$real" "$@"',
        )
    else:
        install(place, COUNT)
        for path in [place.tree, *place.tree.rglob("*")]:
            path.chmod(0o777 if os.access(path, os.X_OK) else 0o666)
    return place


# ---- what was found --------------------------------------------------------------------------


def asan_reports(reports: Path) -> list[str]:
    """ASan's files, and what UBSan, which next to ASan knows no other file, wrote into logs of
    servers (ab_cluster.py has kept them)."""
    found = []
    for path in sorted(reports.glob("asan.*")):
        text = path.read_text(errors="replace")
        if "ERROR:" in text:
            found.append(text)
    for path in sorted(reports.glob("*.log")):
        text = path.read_text(errors="replace")
        found += re.findall(r"^\S+ runtime error:.*\n(?:    #.*\n)*", text, re.M)
    return list(dict.fromkeys(found))


def is_ours(report: str) -> bool:
    """Is a function of ours among the innermost ones, of where it happened, or where the memory
    is from?  Ours is also further out, in whatever is called by a worker or through a hook."""
    stacks = re.findall(r"(?:^ +(?:at|by) 0x.*\n)+", report, re.M)
    inner = [line for stack in stacks for line in stack.splitlines()[:INNERMOST]]
    return any(not name.startswith(HOOKS) for name in FRAME.findall("\n".join(inner)))


def valgrind_reports(reports: Path) -> list[str]:
    """Each kind of report that counts, once: its frames without the process and addresses."""
    found: dict[str, str] = {}
    others = 0
    for path in sorted(reports.iterdir()):
        text = re.sub(r"^==\d+== ?", "", path.read_text(errors="replace"), flags=re.M)
        for report in re.findall(rf"{BEGIN}(.*?){END}", text, re.S):
            if is_ours(report):
                found.setdefault(re.sub(r"0x[0-9A-F]+", "", report), report)
            else:
                others += 1
    say(f"valgrind: {len(found)} reports with frames of ours; {others} of the server alone")
    return list(found.values())


FOUND: dict[str, Callable[[Path], list[str]]] = {
    "asan": asan_reports,
    "valgrind": valgrind_reports,
    "coverage": lambda reports: [],
}


# ---- the runs ----------------------------------------------------------------------------------

PYTEST = ["-q", "-n", "2", "--dist", "loadfile"]
# Their server is of a library of its own; or they change its files, or count its calls.
LEFT_OUT = {"failpoints"}
ALL = {
    "asan": check_pieces.pieces(
        check_pieces.PARTS, STORAGE, [f"pytest/{name}" for name in LEFT_OUT | SERVERLESS]
    ),
    # Of pytest only what somebody chooses: it takes twenty times as long.
    "valgrind": check_pieces.pieces(("regress", "isolation"), (), ()),
}
# The server of the first is of a library of its own; gcov's own functions are exported.
NOT_COUNTED = ["tests/test_failpoints.py"]
NOT_COUNTED += ["tests/test_packaging.py::test_library_exports_only_its_own_names"]
COVERED: dict[str, list[str] | None] = {
    "regress": [],
    "isolation": [],
    "pytest": [*PYTEST, *(f"--deselect={test}" for test in NOT_COUNTED), "tests"],
}
PATIENCE = {"asan": "3", "valgrind": "20", "coverage": "2"}


def environment_of(kind: str, place: Place, reports: Path) -> dict[str, str]:
    return {
        "PG_CONFIG": str(place.config),
        "PYTHONPATH": str(place.base / "site"),
        "AGENT_BRANCH_PATIENCE": PATIENCE[kind],
        "AGENT_BRANCH_REPORTS": str(reports),
        "AGENT_BRANCH_COUNTED": "1" if kind == "coverage" else "",
    }


def check_of(kind: str, base: Path) -> check_pieces.Check:
    """Each piece with a directory for its reports."""
    place = prepare(kind, base)

    def environment(piece: str) -> dict[str, str]:
        reports = place.reports / piece.replace("/", "-")
        reports.mkdir(exist_ok=True)
        reports.chmod(0o777)
        return environment_of(kind, place, reports)

    def found(piece: str) -> list[str]:
        return FOUND[kind](place.reports / piece.replace("/", "-"))

    # A sanitizer has memory of its own, and libfaketime does not go with it.
    chosen = ["-k", "not bounded_memory and not (test_weather and clock)"]
    return check_pieces.Check(kind, place.tree, environment, chosen, found)


def run(kind: str, place: Place, wanted: dict[str, list[str] | None]) -> list[str]:
    """Names of the parts that failed."""
    environment = {**os.environ, **environment_of(kind, place, place.reports)}
    failed = []
    for part, arguments in wanted.items():
        if arguments is None:
            continue
        if part == "pytest":
            command = ["-m", "pytest", "-p", "no:cacheprovider", *arguments]
        else:
            command = ["tools/run_regress.py", part, *arguments]
        say(f"{kind}: {' '.join(command)}")
        done = subprocess.run(
            [sys.executable, *command], cwd=place.tree, check=False, env=environment
        )
        if done.returncode != 0:
            failed.append(part)
    return failed


def parse(arguments: list[str]) -> tuple[str, dict[str, list[str] | None]]:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("kind", choices=sorted(FOUND))
    parser.add_argument("--regress", nargs="*")
    parser.add_argument("--isolation", nargs="*")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    wanted = {part: getattr(given, part) for part in ("regress", "isolation", "pytest")}
    if all(value is None for value in wanted.values()):
        wanted = COVERED
    return given.kind, wanted


def main(arguments: list[str]) -> int:
    kind = arguments[0] if arguments else ""
    base = workspace(f"ab{kind}-")
    try:
        if kind in ALL and check_pieces.is_of_pieces(arguments[1:]):
            options = check_pieces.parse(arguments[1:])
            wanted_pieces = ALL[kind] + [p for p in options.pieces if p.startswith("pytest/")]
            wanted_pieces = list(dict.fromkeys(wanted_pieces))
            return check_pieces.run_all(kind, wanted_pieces, options, lambda: check_of(kind, base))
        kind, wanted = parse(arguments)
        place = prepare(kind, base)
        failed = run(kind, place, wanted)
        found = FOUND[kind](place.reports)
        for number, report in enumerate(found, start=1):
            print(f"---- {kind}, report {number} ----\n{report}")
        say(f"{kind}: {len(found)} reports; failed: {', '.join(failed) or 'nothing'}")
        if kind == "coverage":
            gcov_table.write(place.tree, ROOT / "build")
        return 1 if found or failed else 0
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
