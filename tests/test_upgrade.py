"""An upgraded extension is what a fresh one is.

extension/released/ keeps the install script of each version that was released; from each of
them ALTER EXTENSION UPDATE, along extension/agent_branch--A--B.sql, must lead to what CREATE
EXTENSION makes.  That this would be noticed if it were not so is shown with a version 0.0 that
is made here: what this version has, without a few things.

The scripts lie in a copy of the server's directories, so that nothing is installed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ab_catalog import Contents, contents, differences
from ab_checks import Conn, drop_extension
from ab_cluster import Cluster, pg_config

ROOT = Path(__file__).resolve().parent.parent
RELEASED = sorted((ROOT / "extension" / "released").glob("agent_branch--*.sql"))
SQL = ROOT / "extension" / "sql"


def version() -> str:
    found = re.search(
        r"^default_version = '(.+)'", (ROOT / "agent_branch.control").read_text(), re.MULTILINE
    )
    assert found
    return found[1]


class Change(NamedTuple):
    """Between 0.0 and this version: how 0.0 is made of it, what the update does, what differs."""

    undo: str
    update: str
    differs: str


def part(name: str, start: str, end: str) -> str:
    """Text of the install script."""
    text = (SQL / name).read_text()
    found = text[text.index(start) :]
    return found[: found.index(end) + len(end)]


CHANGES = {
    "a function is new": Change(
        "DROP FUNCTION branch.tree();",
        part("40_maintenance.sql", "CREATE FUNCTION branch.tree()", "indented';")
        + " REVOKE ALL ON FUNCTION branch.tree() FROM public;"
        " GRANT EXECUTE ON FUNCTION branch.tree() TO public;",
        "is there of function branch.tree",
    ),
    "a function is gone": Change(
        "CREATE FUNCTION branch._old() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME',"
        " 'ab_sql_check_installable';",
        "DROP FUNCTION branch._old();",
        "is there of function branch._old",
    ),
    "a function answers otherwise": Change(
        "CREATE OR REPLACE FUNCTION branch._cluster() RETURNS bigint LANGUAGE c STABLE"
        " PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'ab_sql_cluster';",
        part("08_kept.sql", "CREATE FUNCTION branch._cluster()", "'ab_sql_cluster';").replace(
            "CREATE", "CREATE OR REPLACE"
        ),
        "definition of function branch._cluster",
    ),
    "a default argument is new": Change(
        "DROP FUNCTION branch._remote_open(text, boolean, text);"
        " CREATE FUNCTION branch._remote_open(db text, read_only boolean, isolation text"
        " DEFAULT null) RETURNS integer LANGUAGE c VOLATILE PARALLEL UNSAFE"
        " AS 'MODULE_PATHNAME', 'ab_sql_remote_open';"
        " COMMENT ON FUNCTION branch._remote_open(text, boolean, text) IS 'opens a session in"
        " another database, one transaction there, that ends with the transaction here;"
        " its number';"
        " REVOKE ALL ON FUNCTION branch._remote_open(text, boolean, text) FROM public;"
        " GRANT EXECUTE ON FUNCTION branch._remote_open(text, boolean, text) TO public;",
        part("60_reach.sql", "CREATE FUNCTION branch._remote_open", "open';").replace(
            "CREATE", "CREATE OR REPLACE"
        ),
        "definition of function branch._remote_open",
    ),
    "fewer may call a function": Change(
        "GRANT EXECUTE ON FUNCTION branch.gc(boolean) TO public;",
        "REVOKE EXECUTE ON FUNCTION branch.gc(boolean) FROM public;",
        "privileges of function branch.gc",
    ),
    "a comment": Change(
        "COMMENT ON COLUMN branch.registry.labels IS 'labels';",
        "COMMENT ON COLUMN branch.registry.labels IS 'its labels, a JSON object';",
        "comment of table branch.registry column labels",
    ),
    "a column is new": Change(
        "ALTER TABLE branch.agent_roles DROP COLUMN made_at;",
        "ALTER TABLE branch.agent_roles ADD COLUMN made_at timestamptz NOT NULL"
        " DEFAULT pg_catalog.now();"
        " COMMENT ON COLUMN branch.agent_roles.made_at IS 'when that was';",
        "column of table branch.agent_roles column made_at",
    ),
    "an index is new": Change(
        "DROP INDEX branch.named_snapshots_id_idx;",
        "CREATE INDEX named_snapshots_id_idx ON branch.named_snapshots (id);",
        "index of table branch.named_snapshots index branch.named_snapshots_id_idx",
    ),
    "a trigger is new": Change(
        "DROP TRIGGER restored_row ON branch.registry;",
        "CREATE TRIGGER restored_row BEFORE INSERT ON branch.registry"
        " FOR EACH ROW EXECUTE FUNCTION branch._restored_row('registry');",
        "trigger of table branch.registry trigger restored_row",
    ),
    "a language looks at functions when they are made": Change(
        "CREATE OR REPLACE LANGUAGE agent_branch_python HANDLER branch._python_handler;",
        part("03_language.sql", "CREATE LANGUAGE", "validator;").replace(
            "CREATE", "CREATE OR REPLACE"
        ),
        "language of language agent_branch_python",
    ),
    "a view has other options": Change(
        "ALTER VIEW branch.pinned RESET (security_barrier);",
        "ALTER VIEW branch.pinned SET (security_barrier = true);",
        "relation of view branch.pinned",
    ),
    "a table is dumped": Change(
        "UPDATE pg_catalog.pg_extension SET extconfig = extconfig[2:],"
        " extcondition = extcondition[2:] WHERE extname = 'agent_branch';",
        "SELECT pg_catalog.pg_extension_config_dump('branch.named_snapshots', '');",
        "dumped of branch.named_snapshots",
    ),
}


def scripts() -> dict[str, str]:
    """Install script 0.0; update scripts to this version, and to those that forget something."""
    now = (ROOT / "extension" / f"agent_branch--{version()}.sql").read_text()
    made = {"agent_branch--0.0.sql": now + "".join(f"\n{c.undo}\n" for c in CHANGES.values())}
    for forgotten in [None, *CHANGES]:
        target = version() if forgotten is None else forgotten.replace(" ", "_")
        made[f"agent_branch--0.0--{target}.sql"] = "\n".join(
            change.update for name, change in CHANGES.items() if name != forgotten
        )
    return made


def copy_of_server(root: Path, files: dict[str, str]) -> Path:
    """A server that has other extension scripts: links to this one's files; its bindir.

    A server finds its directories from the place of its program, hence that is a copy.
    """
    bindir, libdir, share = (
        root / pg_config(f"--{name}").lstrip("/") for name in ("bindir", "pkglibdir", "sharedir")
    )
    for path in (bindir, share / "extension", libdir.parent):
        path.mkdir(parents=True, exist_ok=True)
    for path in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        path.chmod(0o755)
    for program in Path(pg_config("--bindir")).glob("postgres*"):  # a check may have put it aside
        shutil.copy(program, bindir)
    libdir.symlink_to(Path(pg_config("--pkglibdir")).resolve())
    installed = Path(pg_config("--sharedir"))
    for source in [*installed.iterdir(), *(installed / "extension").iterdir()]:
        if source.name != "extension":
            (share / source.relative_to(installed)).symlink_to(source)
    for name, text in files.items():
        (share / "extension" / name).write_text(text)
    return bindir


@pytest.fixture(scope="module")
def conn(cluster: Cluster) -> Iterator[Conn]:
    files = {path.name: path.read_text() for path in RELEASED}
    drop_extension(cluster)
    cluster.stop()
    cluster.bindir = copy_of_server(cluster.root.parent / "server", {**files, **scripts()})
    cluster.start()
    with cluster.connect(autocommit=False) as conn:
        yield conn


@pytest.fixture(autouse=True)
def nothing_stays(conn: Conn) -> Iterator[None]:
    yield
    conn.rollback()


@pytest.fixture(scope="module")
def fresh(conn: Conn) -> Contents:
    """What CREATE EXTENSION makes."""
    conn.execute("CREATE EXTENSION agent_branch")
    found = contents(conn)
    conn.rollback()
    assert len(found) > 500
    return found


def upgraded(conn: Conn, start: str, target: str) -> Contents:
    conn.execute(f"CREATE EXTENSION agent_branch VERSION '{start}'")
    conn.execute(f"ALTER EXTENSION agent_branch UPDATE TO '{target}'")
    return contents(conn)


def test_from_each_release(conn: Conn, fresh: Contents) -> None:
    """There is a way from each released version, and where it ends all is as if made anew."""
    for script in RELEASED:
        start = script.stem.removeprefix("agent_branch--")
        assert differences(upgraded(conn, start, version()), fresh) == [], start
        conn.rollback()


def test_from_a_made_up_version(conn: Conn, fresh: Contents) -> None:
    """An update script that does all there is to do leads to the same, and keeps rows."""
    conn.execute("CREATE EXTENSION agent_branch VERSION '0.0'")
    conn.execute("INSERT INTO branch.agent_roles (id) VALUES (10)")
    conn.execute(f"ALTER EXTENSION agent_branch UPDATE TO '{version()}'")
    assert conn.execute("SELECT id, made_at IS NOT NULL FROM branch.agent_roles").fetchall() == [
        (10, True)
    ]
    assert differences(contents(conn), fresh) == []


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_forgotten_is_noticed(conn: Conn, fresh: Contents, name: str) -> None:
    """Each single thing that an update script leaves out is a difference, and the only one."""
    found = differences(upgraded(conn, "0.0", name.replace(" ", "_")), fresh)
    assert found, f"not noticed: {name}"
    assert any(CHANGES[name].differs in line for line in found), found
    subject = CHANGES[name].differs.split(" of ", 1)[1].split("(")[0].split(" column ")[0]
    assert all(subject.split()[-1].split(".")[-1] in line for line in found), found
