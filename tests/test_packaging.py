"""What is installed, what it contains, and that it comes and goes cleanly."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from ab_checks import drop_extension
from ab_cluster import Cluster, pg_config

ROOT = Path(__file__).resolve().parent.parent

OBJECTS = """
    SELECT pg_describe_object(d.classid, d.objid, 0)
    FROM pg_depend AS d
    INNER JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'agent_branch'
    ORDER BY pg_describe_object(d.classid, d.objid, 0) COLLATE "C"
"""

# The functions of the interface that this version has; all their names are promises.
PROMISED = {
    "branch.create",
    "branch.create_many",
    "branch.current",
    "branch.delete",
    "branch.ensure",
    "branch.gc",
    "branch.reset",
    "branch.restore",
    "branch.snapshot",
    "branch.tree",
    "branch.verify",
    "public.create_agent_branch",
    "public.create_agent_branches",
    "public.delete_agent_branch",
}


def make(*arguments: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=kept,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed_files(root: Path) -> set[str]:
    return {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


def test_install_and_uninstall_are_exact(tmp_path: Path) -> None:
    """make install puts down the library, the control file, the SQL and the package; no more."""
    make("install", f"DESTDIR={tmp_path}")
    files = installed_files(tmp_path)
    library = pg_config("--pkglibdir")
    share = pg_config("--sharedir") + "/extension"
    expected = {f"{library}/agent_branch.so", f"{share}/agent_branch.control"}
    expected |= {f"{share}/{path.name}" for path in ROOT.glob("extension/agent_branch--*.sql")}
    assert expected <= files
    rest = files - expected
    modules = {
        str(path.relative_to(ROOT / "python"))
        for path in (ROOT / "python" / "agent_branch").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert modules
    assert {name[name.index("/agent_branch/") + 1 :] for name in rest} == modules

    make("uninstall", f"DESTDIR={tmp_path}")
    assert installed_files(tmp_path) == set()


def test_library_uses_only_what_the_server_exports() -> None:
    """Every symbol the library needs is one of the server, of libc, or of nobody."""
    library = Path(pg_config("--pkglibdir")) / "agent_branch.so"
    server = Path(pg_config("--bindir")) / "postgres"

    def symbols(path: Path, *options: str) -> set[str]:
        listed = subprocess.run(
            ["nm", "-D", *options, str(path)], check=True, capture_output=True, text=True
        ).stdout
        return {line.split()[-1] for line in listed.splitlines()}

    needed = {name for name in symbols(library, "--undefined-only") if "@GLIBC" not in name}
    optional = {line for line in needed if line.startswith(("_ITM_", "__gmon_start__"))}
    exported = {name.split("@")[0] for name in symbols(server, "--defined-only")}
    assert needed - optional - exported == set()


def test_library_exports_only_its_own_names() -> None:
    """Each name the library gives away has the extension's prefix or is SQL's or PostgreSQL's."""
    library = Path(pg_config("--pkglibdir")) / "agent_branch.so"
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    allowed = re.compile(r"^(pg_finfo_)?ab_|^(_PG_init|Pg_magic_func)$")
    assert [name for name in sorted(names) if not allowed.search(name)] == []


def test_promised_functions_exist(cluster: Cluster) -> None:
    found = {
        f"{schema}.{name}"
        for schema, name in cluster.sql(
            "SELECT n.nspname, p.proname FROM pg_proc AS p"
            " INNER JOIN pg_namespace AS n ON n.oid = p.pronamespace"
            " INNER JOIN pg_depend AS d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass"
            " INNER JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'agent_branch'"
        )
    }
    assert found >= PROMISED


def test_every_function_is_safe_to_call(cluster: Cluster) -> None:
    """A fixed search_path or schema-qualified C, a comment, and not for PUBLIC unless named."""
    rows = cluster.sql(
        "SELECT p.oid::regprocedure::text, l.lanname, p.proconfig,"
        " obj_description(p.oid, 'pg_proc'), p.prosecdef"
        " FROM pg_proc AS p"
        " INNER JOIN pg_language AS l ON l.oid = p.prolang"
        " INNER JOIN pg_depend AS d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass"
        " INNER JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'agent_branch'"
    )
    assert rows
    # a procedure that commits can have no SET; jobs.py qualifies whatever it names
    commits = {"branch.run_job(text)"}
    for name, language, config, comment, definer in rows:
        assert comment, f"{name} has no comment"
        if (language != "c" or definer) and name not in commits:
            fixed = [item for item in config or [] if item.startswith("search_path=")]
            assert fixed, f"{name} does not fix its search_path"


def test_extension_can_go_and_come_back(cluster: Cluster) -> None:
    before = cluster.sql(OBJECTS)
    drop_extension(cluster)
    assert cluster.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'branch'") == []
    cluster.sql("CREATE EXTENSION agent_branch")
    assert cluster.sql(OBJECTS) == before
    cluster.sql("SELECT branch.create('again', 'main')")
    cluster.sql("SELECT branch.delete('again', hard => true)")


def test_extension_in_a_schema_of_its_own(cluster: Cluster) -> None:
    """CREATE EXTENSION ... SCHEMA puts the agents' functions there."""
    drop_extension(cluster)
    cluster.sql("CREATE SCHEMA agents")
    cluster.sql("CREATE EXTENSION agent_branch SCHEMA agents")
    try:
        rows = cluster.sql("SELECT branch_name FROM agents.create_agent_branch('9')")
        assert rows == [("agent_9",)]
        cluster.sql("SELECT agents.delete_agent_branch('9')")
    finally:
        drop_extension(cluster)
        cluster.sql("DROP SCHEMA agents")
        cluster.sql("CREATE EXTENSION agent_branch")


def test_versions_agree(cluster: Cluster) -> None:
    """The created extension has the version of the control file; no upgrade is pending."""
    rows = cluster.sql(
        "SELECT e.extversion, a.default_version FROM pg_extension AS e"
        " INNER JOIN pg_available_extensions AS a ON a.name = e.extname"
        " WHERE e.extname = 'agent_branch'"
    )
    assert rows[0][0] == rows[0][1]


def test_control_database_can_be_dumped(cluster: Cluster, tmp_path: Path) -> None:
    """pg_dump writes CREATE EXTENSION and nothing that belongs to it."""
    dumped = cluster.run("pg_dump", "-d", "postgres")
    assert "CREATE EXTENSION IF NOT EXISTS agent_branch" in dumped
    assert "CREATE FUNCTION" not in dumped
    assert "CREATE VIEW" not in dumped


def test_a_branch_can_be_dumped(cluster: Cluster) -> None:
    cluster.sql("CREATE TABLE dumped AS SELECT 42 AS answer", dbname="main")
    cluster.sql("SELECT branch.create('to_dump', 'main')")
    text = cluster.run("pg_dump", "-d", "to_dump", "--inserts")
    assert "INSERT INTO public.dumped VALUES (42);" in text
    everything = cluster.run("pg_dumpall", "--globals-only")
    assert "ERROR" not in everything
    cluster.sql("SELECT branch.delete('to_dump', hard => true)")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "META.json"])
def test_files_that_users_look_for(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_readme_names_what_there_is() -> None:
    text = (ROOT / "README.md").read_text()
    for command in ("make demo", "make test", "make demo-stop", "make check-core"):
        assert command in text
    settings = set(re.findall(r"`(agent_branch\.\w+)`", text))
    defined = set(
        re.findall(r'"(agent_branch\.\w+)"', (ROOT / "extension/src/ab_settings.c").read_text())
    )
    assert settings == defined
