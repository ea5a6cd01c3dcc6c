"""What the tests ask of a cluster: contents, files, storage invariants.

Nothing here knows how branches are implemented beyond the documented layout of the
data directory (extension/include/ab_format.h).
"""

from __future__ import annotations

import os
import re
import signal
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ab_cluster import Cluster, wait_for
from psycopg import sql

BLOCK = 8192
RELATION_FILE = re.compile(r"^(\d+)(?:_(fsm|vm|init))?(?:\.(\d+))?$")

Row = tuple[Any, ...]
Conn = psycopg.Connection[tuple[Any, ...]]


# ---- running things ---------------------------------------------------------


def run(cluster: Cluster, dbname: str, *statements: str, user: str | None = None) -> None:
    """Execute statements one by one, each its own transaction, in one session."""
    with cluster.connect(dbname, user) as conn:
        for statement in statements:
            conn.execute(statement)


def create_database(cluster: Cluster, name: str, *statements: str) -> str:
    """A plain database with something in it; returns its name."""
    with cluster.connect() as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    run(cluster, name, *statements)
    return name


def create(cluster: Cluster, name: str, parent: str = "main") -> str:
    cluster.sql("SELECT branch.create(%s, %s)", (name, parent))
    return name


def delete(cluster: Cluster, name: str) -> None:
    cluster.sql("SELECT branch.delete(%s, hard => true)", (name,))


def drop_extension(cluster: Cluster) -> None:
    """Again where it and a background process of ours have waited for each other."""

    def dropped() -> bool:
        try:
            cluster.sql("DROP EXTENSION agent_branch")
        except psycopg.errors.DeadlockDetected:
            return False
        return True

    wait_for(dropped, what="the extension to be dropped")


def refused(
    cluster: Cluster,
    query: str,
    codes: str | Sequence[str],
    params: Sequence[object] | None = None,
    *,
    dbname: str = "postgres",
    user: str | None = None,
) -> psycopg.Error:
    """Run a statement that must fail with one of these SQLSTATEs; returns the error."""
    with (
        cluster.connect(dbname, user) as conn,
        pytest.raises(psycopg.Error) as caught,
    ):
        conn.execute(query, params)
    allowed = [codes] if isinstance(codes, str) else list(codes)
    assert caught.value.sqlstate in allowed, (
        f"{query}: SQLSTATE {caught.value.sqlstate} ({caught.value}), expected {allowed}"
    )
    return caught.value


def explained(error: psycopg.Error) -> None:
    """The error has what the interface promises: message, facts, next step."""
    message = error.diag.message_primary or ""
    assert message[:1].islower(), f"primary message: {message!r}"
    assert error.diag.message_detail, f"no DETAIL: {error}"
    assert error.diag.message_hint, f"no HINT: {error}"


def oid_of(cluster: Cluster, name: str) -> int:
    oid = cluster.scalar("SELECT oid::int8 FROM pg_database WHERE datname = %s", (name,))
    assert oid is not None, f'database "{name}" does not exist'
    return int(oid)


def exists(cluster: Cluster, name: str) -> bool:
    return bool(cluster.scalar("SELECT count(*) FROM pg_database WHERE datname = %s", (name,)))


def branches(cluster: Cluster) -> dict[str, str]:
    """name -> parent of all living branches."""
    return dict(
        cluster.sql(
            "SELECT name, parent_name FROM branch.branches"
            " WHERE parent_name IS NOT NULL AND current_state <> 'deleted'"
        )
    )


def drop_all_branches(cluster: Cluster) -> None:
    """Children before parents, deleted ones too, then give back the storage."""
    remaining = branches(cluster)
    while remaining:
        leaves = [name for name in remaining if name not in remaining.values()]
        for name in leaves:
            delete(cluster, name)
        remaining = branches(cluster)
    cluster.sql(
        "SELECT branch.delete(name, hard => true) FROM branch.branches"
        " WHERE current_state = 'deleted'"
    )
    cluster.sql("SELECT * FROM branch.gc()")


# ---- contents ------------------------------------------------------------------


def digest(conn: Conn, relation: str) -> Row:
    """(rows, md5 of all rows as text, in text order) of a table or subquery."""
    row = conn.execute(
        "SELECT count(*), md5(coalesce(string_agg(whole::text, E'\\n' ORDER BY whole::text), ''))"
        f" FROM {relation} AS whole"
    ).fetchone()
    assert row is not None
    return row


def contents(cluster: Cluster, dbname: str) -> dict[str, Row]:
    """Digest of every user table, matview and sequence of a database."""
    with cluster.connect(dbname) as conn:
        conn.execute("SET enable_indexscan = off")
        conn.execute("SET enable_indexonlyscan = off")
        conn.execute("SET enable_bitmapscan = off")
        names = conn.execute(
            "SELECT c.oid::regclass::text FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'm') AND n.nspname NOT LIKE 'pg\\_%'"
            " AND n.nspname NOT IN ('information_schema', 'branch') ORDER BY 1"
        ).fetchall()
        return {name: digest(conn, name) for (name,) in names}


def by_index_and_by_heap(conn: Conn, query: str, index: str | None = None) -> list[Row]:
    """Rows of a query, the same through indexes as through a sequential scan.

    With ``index`` the forced plan must really use that index.
    """
    conn.execute("SET enable_seqscan = off")
    plan = "\n".join(line for (line,) in conn.execute(f"EXPLAIN {query}").fetchall())
    if index is not None:
        assert index in plan, f"{index} is not used by {query}:\n{plan}"
    through_index = conn.execute(query).fetchall()
    conn.execute("RESET enable_seqscan")
    for method in ("indexscan", "indexonlyscan", "bitmapscan"):
        conn.execute(f"SET enable_{method} = off")
    through_heap = conn.execute(query).fetchall()
    for method in ("indexscan", "indexonlyscan", "bitmapscan"):
        conn.execute(f"RESET enable_{method}")
    assert through_index == through_heap, f"{query}: index and heap differ in {conn.info.dbname}"
    return through_heap


def bench_sums(cluster: Cluster, dbname: str) -> int:
    """The sum that pgbench keeps equal in its four tables."""
    with cluster.connect(dbname) as conn:
        row = conn.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
        ).fetchone()
    assert row is not None
    assert len(set(row)) == 1, f'sums differ in "{dbname}": {row}'
    return int(row[0])


# ---- background processes -----------------------------------------------------------


def pid_of(cluster: Cluster, kind: str) -> int:
    """Of the background process of that kind, once there is one."""
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = %s"
    return int(wait_for(lambda: cluster.scalar(query, (kind,)), what=kind))


@contextmanager
def held_up(cluster: Cluster, kind: str) -> Iterator[Callable[[], None]]:
    """One of our background processes is stopped while it waits for work and holds nothing that
    others need.  Call the result to wake it."""
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE backend_type = %s AND wait_event_type = 'Extension'"
    )

    def resume(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def stopped() -> int:
        pid = cluster.scalar(waiting, (kind,))
        if pid is None:
            return 0
        os.kill(pid, signal.SIGSTOP)
        if cluster.scalar(waiting, (kind,)) == pid:
            return int(pid)
        resume(pid)
        return 0

    pid = wait_for(stopped, what=f"{kind} to wait")
    try:
        yield lambda: resume(pid)
    finally:
        resume(pid)


# ---- storage ---------------------------------------------------------------------


def healthy(cluster: Cluster) -> None:
    """branch.verify() has nothing to say."""
    found = cluster.sql("SELECT * FROM branch.verify()")
    assert found == [], f"branch.verify(): {found}"


def database_dirs(cluster: Cluster, oid: int) -> list[Path]:
    places = [cluster.data / "base" / str(oid)]
    places += sorted((cluster.data / "pg_tblspc").glob(f"*/PG_*/{oid}"))
    return [place for place in places if place.is_dir()]


def relation_files(cluster: Cluster, name: str) -> list[Path]:
    """Files of relations (any fork, any segment) that a database has of its own."""
    return [
        path
        for place in database_dirs(cluster, oid_of(cluster, name))
        for path in sorted(place.iterdir())
        if RELATION_FILE.match(path.name)
    ]


def below(place: Path) -> Iterator[Path]:
    """Everything under a directory of a running server, where things come and go."""
    for here, folders, files in os.walk(place):
        yield from (Path(here, name) for name in (*folders, *files))


def disk_bytes(paths: Iterable[Path]) -> int:
    """Without what goes meanwhile."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def own_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """(block number, page) of every block of a file that is not all zeros."""
    with path.open("rb") as file:
        number = 0
        while page := file.read(BLOCK):
            if page.count(0) != len(page):
                yield number, page
            number += 1


def own_page_count(cluster: Cluster, name: str) -> int:
    return sum(1 for path in relation_files(cluster, name) for _ in own_blocks(path))


def main_fork(cluster: Cluster, dbname: str, relation: str) -> Path:
    """First segment of a relation's main fork (which may not exist in a branch)."""
    return cluster.data / str(
        cluster.scalar("SELECT pg_relation_filepath(%s)", (relation,), dbname)
    )


def page_lsn(page: bytes) -> int:
    high, low = struct.unpack_from("=II", page)
    return int(high) << 32 | int(low)


def redo_pointer(cluster: Cluster) -> int:
    """Where recovery would begin, from the control file (the server may be down)."""
    text = cluster.run("pg_controldata", "-D", str(cluster.data))
    found = re.search(r"REDO location:\s+([0-9A-F]+)/([0-9A-F]+)", text)
    assert found is not None, text
    return int(found[1], 16) << 32 | int(found[2], 16)


def snapshot_files(cluster: Cluster) -> dict[str, tuple[int, int, int]]:
    """name -> (inode, size, mtime) of everything in agent_branch/snapshots."""
    found = {}
    for path in (cluster.data / "agent_branch" / "snapshots").iterdir():
        with suppress(FileNotFoundError):
            stat = path.stat()
            found[path.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def gathered(cluster: Cluster) -> list[int]:
    """OIDs of branches whose origins live in the one file for many (ab_format.h), sorted."""
    try:
        data = (cluster.data / "agent_branch" / "origins").read_bytes()
    except FileNotFoundError:
        return []
    (number,) = struct.unpack_from("=I", data, 12)
    entries = [struct.unpack_from("=48xI20xI", data, 512 + 80 * i) for i in range(number)]
    return [oid for oid, dead in entries if not dead]


def residue(cluster: Cluster) -> list[str]:
    """Files and directories that belong to no database and no usable snapshot."""
    with cluster.connect() as conn:
        known = {str(oid) for (oid,) in conn.execute("SELECT oid FROM pg_database")}
    home = cluster.data / "agent_branch"
    found = [
        str(path.relative_to(cluster.data))
        for place in (cluster.data / "base", *(cluster.data / "pg_tblspc").glob("*/PG_*"))
        for path in place.iterdir()
        if path.is_dir() and path.name.isdigit() and path.name not in known
    ]
    found += [
        str(path.relative_to(cluster.data))
        for path in (home / "branches").iterdir()
        if path.name.removesuffix(".spare") not in known
    ]
    found += [f"gathered {oid}" for oid in gathered(cluster) if str(oid) not in known]
    found += [
        str(path.relative_to(cluster.data)) for path in below(home) if is_in_the_making(path.name)
    ]
    return sorted(found)


def need_icu(cluster: Cluster) -> None:
    if not cluster.scalar("SELECT count(*) FROM pg_collation WHERE collprovider = 'i'"):
        pytest.skip("the server was built without ICU")


def collect(cluster: Cluster) -> None:
    """All that can go, goes: a run removes files of databases that the one before has dropped."""
    for _ in range(2):
        cluster.sql("SELECT * FROM branch.gc()")


def nothing_left(cluster: Cluster, when: str = "") -> None:
    """What a background process is just making comes and goes."""

    def found() -> list[str]:
        return [what for what in residue(cluster) if not is_in_the_making(what)]

    assert found() == [], f"left behind {when}: {found()}"
    with suppress(TimeoutError):
        wait_for(lambda: residue(cluster) == [], 60)
    assert residue(cluster) == [], f"left behind {when}"


def is_in_the_making(path: str) -> bool:
    return Path(path).name.startswith("tmp.") or path.endswith(".pending")


def amcheck(cluster: Cluster, *dbnames: str) -> None:
    """pg_amcheck and pg_visibility find nothing in these databases."""
    for dbname in dbnames:
        cluster.run(
            "pg_amcheck",
            *("--install-missing", "--heapallindexed", "--parent-check", "-d", dbname),
        )
        with cluster.connect(dbname) as conn:
            conn.execute("CREATE EXTENSION IF NOT EXISTS pg_visibility")
            bad = conn.execute(
                "SELECT c.oid::regclass, v.which, v.tid FROM pg_class c CROSS JOIN LATERAL ("
                " SELECT 'visible' AS which, t_ctid AS tid FROM pg_check_visible(c.oid)"
                " UNION ALL SELECT 'frozen', t_ctid FROM pg_check_frozen(c.oid)) v"
                " WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'"
            ).fetchall()
            assert bad == [], f'visibility map of "{dbname}": {bad}'


def calm_log(cluster: Cluster, since: int = 0) -> None:
    """No PANIC, no server process ended by a signal, since a position of the log."""
    text = cluster.log_text()[since:]
    bad = [
        line
        for line in text.splitlines()
        if "PANIC:" in line or "was terminated by signal" in line or "TRAP:" in line
    ]
    assert bad == [], "\n".join(bad)


def replays_calmly(standby: Cluster) -> None:
    """Replay never found a page that differs from the primary's image of it."""
    bad = [
        line
        for line in standby.log_text().splitlines()
        if "inconsistent page" in line or (" startup " in line and "FATAL:" in line)
    ]
    assert bad == [], "\n".join(bad)
    calm_log(standby)
