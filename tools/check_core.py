"""PostgreSQL's own regression suite, in a plain database, in a branch, in a branch of a branch.

    check_core.py [schedule line or test name ...]

The three runs must give the same result file for every test.  The suite's inputs come
from the source package of the installed server, fetched with apt (a deb-src list is made
for the purpose under build/, the machine's own lists are left alone), or from the
directory that PG_SOURCE names.  Nothing of it becomes part of this project.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ab_cluster import SUPERUSER, Cluster, identity, pg_config, workspace  # noqa: E402
from run_regress import driver_path  # noqa: E402

BUILD = ROOT / "build" / "check-core"
DATABASE = "regression"
# What pg_regress gives the database when it creates it itself.
DATABASE_SETTINGS = {
    "lc_messages": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "bytea_output": "hex",
    "timezone_abbreviations": "Default",
}
RUNS: dict[str, list[str]] = {
    "plain": [f"CREATE DATABASE {DATABASE} TEMPLATE template0"],
    "branch": [
        "CREATE DATABASE core_base TEMPLATE template0",
        f"SELECT branch.create('{DATABASE}', 'core_base')",
    ],
    "branch-of-branch": [
        "CREATE DATABASE core_base TEMPLATE template0",
        "SELECT branch.create('core_middle', 'core_base')",
        f"SELECT branch.create('{DATABASE}', 'core_middle')",
    ],
}


def say(text: str) -> None:
    print(f"check-core: {text}", flush=True)


# ---- the suite's inputs ---------------------------------------------------------


def server_version() -> str:
    return pg_config("--version").split()[1]


def source_entries() -> str:
    """A deb-src line for each archive that the machine's lists name."""
    lines: list[str] = []
    folder = Path("/etc/apt/sources.list.d")
    for path in [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list"))]:
        if path.exists():
            for line in path.read_text().splitlines():
                if re.match(r"deb\s", line):
                    lines.append("deb-src" + line[3:])
    for path in sorted(folder.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = {
                key.lower(): value.strip()
                for key, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
            }
            if "deb" not in fields.get("types", "").split():
                continue
            signed = fields.get("signed-by")
            option = f"[signed-by={signed}] " if signed and "\n" not in signed else ""
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    parts = fields.get("components", "")
                    lines.append(f"deb-src {option}{uri} {suite} {parts}")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def fetch_archive(folder: Path) -> Path:
    """The upstream tar file of the server's source package, by way of apt."""
    found = sorted(folder.glob("postgresql-15_*.orig.tar.*"))
    wanted = [path for path in found if f"_{server_version()}." in path.name]
    if wanted:
        return wanted[0]
    lists = folder / "apt"
    (lists / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (lists / "sources.list").write_text(source_entries())
    options = [
        *("-o", f"Dir::Etc::sourcelist={lists / 'sources.list'}"),
        *("-o", "Dir::Etc::sourceparts=/dev/null"),
        *("-o", f"Dir::State::lists={lists / 'lists'}"),
        *("-o", f"Dir::Cache::pkgcache={lists / 'pkgcache.bin'}"),
        *("-o", f"Dir::Cache::srcpkgcache={lists / 'srcpkgcache.bin'}"),
        *("-o", "APT::Sandbox::User=root"),
    ]
    say("fetching the server's source package")
    subprocess.run(["apt-get", *options, "-q", "update"], check=True)
    listed = subprocess.run(
        ["apt-cache", *options, "showsrc", "postgresql-15"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    versions = list(dict.fromkeys(re.findall(r"^Version: (15\.\S+)", listed, re.M)))
    versions.sort(key=lambda text: [int(part) for part in re.findall(r"\d+", text)], reverse=True)
    versions.sort(key=lambda text: not text.startswith(f"{server_version()}-"))
    for version in versions:  # the server's own first, then the newest that can be had
        command = ["apt-get", *options, "-q", "source", "--download-only"]
        command.append(f"postgresql-15={version}")
        if subprocess.run(command, check=False, cwd=folder).returncode == 0:
            break
    found = sorted(folder.glob("postgresql-15_*.orig.tar.*"))
    if not found:
        raise SystemExit("check-core: apt brought no source archive")
    return found[-1]


def test_inputs() -> Path:
    """The folder src/test/regress of the server's source."""
    given = os.environ.get("PG_SOURCE")
    if given:
        return Path(given) / "src" / "test" / "regress"
    folder = BUILD / "source"
    folder.mkdir(parents=True, exist_ok=True)
    archive = fetch_archive(folder)
    place = folder / archive.name.split(".orig")[0]
    if not place.exists():
        say(f"unpacking the test inputs of {archive.name}")
        partial = folder / "unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if "/src/test/regress/" in member.name]
            tar.extractall(partial, members)  # apt has checked its signature
        partial.rename(place)
    return next(place.glob("*/src/test/regress"))


def build_helpers(inputs: Path, place: Path) -> None:
    """The C functions that the suite loads, and the contrib modules it borrows."""
    place.mkdir()
    flags = pg_config("--cflags").split() + pg_config("--cflags_sl").split()
    subprocess.run(
        [
            *(pg_config("--cc").split()[0], *flags, "-w", "-shared"),
            *("-I", pg_config("--includedir-server"), "-I", str(inputs)),
            *("-o", str(place / "regress.so"), str(inputs / "regress.c")),
        ],
        check=True,
    )
    for module in ("refint", "autoinc"):
        shutil.copy(Path(pg_config("--pkglibdir")) / f"{module}.so", place)


# ---- the runs ---------------------------------------------------------------------


def give_tree(path: Path) -> None:
    Cluster.give(path)
    for child in path.rglob("*"):
        Cluster.give(child)


def prepare(cluster: Cluster, statements: list[str]) -> None:
    for statement in statements:
        cluster.sql(statement)
    for name, value in DATABASE_SETTINGS.items():
        cluster.sql(f"ALTER DATABASE {DATABASE} SET {name} TO '{value}'")


def run_suite(base: Path, name: str, inputs: Path, names: list[str]) -> Path:
    """Run the suite in one kind of database; returns the folder of its results."""
    say(f"running in: {name}")
    cluster = Cluster.create(base, "core", {"max_prepared_transactions": 2})
    output = base / "output"
    output.mkdir()
    Cluster.give(output)
    try:
        prepare(cluster, RUNS[name])
        done = subprocess.run(
            [
                str(driver_path("src/test/regress/pg_regress")),
                f"--inputdir={inputs}",
                f"--outputdir={output}",
                f"--dlpath={base / 'lib'}",
                f"--bindir={cluster.bindir}",
                f"--host={cluster.socket_dir}",
                f"--port={cluster.port}",
                f"--user={SUPERUSER}",
                f"--dbname={DATABASE}",
                "--use-existing",
                "--max-concurrent-tests=20",
                *([] if names else [f"--schedule={inputs / 'parallel_schedule'}"]),
                *names,
            ],
            check=False,
            cwd=output,
            env=cluster.environment(),
            **identity(),
        )
        say(f"{name}: pg_regress ended with {done.returncode}")
        violations = cluster.sql("SELECT * FROM branch.verify()")
        if violations:
            raise SystemExit(f"check-core: {name}: branch.verify() says {violations}")
        kept = BUILD / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(output, kept)
        (kept / "server.log").write_text(cluster.log_text())
        return kept
    finally:
        cluster.destroy()
        shutil.rmtree(output, ignore_errors=True)


def failures(folder: Path) -> list[str]:
    """Tests that pg_regress found different from what PostgreSQL expects."""
    text = (folder / "regression.out").read_text()
    return re.findall(r"^(?:test|    )\s*(\S+)\s+\.\.\. FAILED", text, re.M)


def compare(plain: Path, other: Path) -> list[str]:
    """Result files that differ, with the differences written beside them."""
    names = {path.name for path in (plain / "results").glob("*.out")}
    theirs = {path.name for path in (other / "results").glob("*.out")}
    different = sorted(names ^ theirs)
    report: list[str] = []
    for name in sorted(names & theirs):
        ours = (plain / "results" / name).read_text(errors="replace")
        found = (other / "results" / name).read_text(errors="replace")
        if ours != found:
            different.append(name)
            report += difflib.unified_diff(
                ours.splitlines(keepends=True),
                found.splitlines(keepends=True),
                f"plain/{name}",
                f"{other.name}/{name}",
            )
    (other / "against-plain.diff").write_text("".join(report))
    return different


def main(names: list[str]) -> int:
    source = test_inputs()
    base = workspace("abcore-")
    try:
        inputs = base / "inputs"
        shutil.copytree(source, inputs)
        give_tree(inputs)
        build_helpers(inputs, base / "lib")
        results = {name: run_suite(base, name, inputs, names) for name in RUNS}
    finally:
        shutil.rmtree(base, ignore_errors=True)

    plain = results.pop("plain")
    count = len(list((plain / "results").glob("*.out")))
    failed = failures(plain)
    if failed:
        say(f"plain: differs from PostgreSQL's own expectation: {', '.join(failed)}")
    same_version = server_version() in re.findall(r"15\.\d+", str(source))
    if not same_version:
        say(f"the inputs are of another minor release than the server, {server_version()}")
    wrong = count == 0 or (bool(failed) and same_version)
    for name, folder in results.items():
        different = compare(plain, folder)
        if different:
            say(f"{name}: differs from plain in {', '.join(different)}")
            print((folder / "against-plain.diff").read_text()[:20_000])
            wrong = True
        else:
            say(f"{name}: all {count} result files equal the plain database's")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
