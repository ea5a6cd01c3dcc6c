"""Getting into the server, or refusing to: preload, version, page protection."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_checks import drop_extension
from ab_cluster import Cluster, ServerError, pg_config

MakeCluster = Callable[..., Cluster]


def library() -> Path:
    return Path(pg_config("--pkglibdir")) / "agent_branch.so"


def test_create_extension_needs_the_preload(make_cluster: MakeCluster) -> None:
    """Without shared_preload_libraries, CREATE EXTENSION says which setting to change."""
    server = make_cluster("bare", library=False, extension=False)
    server.sql("CREATE EXTENSION plpython3u")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
        server.sql("CREATE EXTENSION agent_branch")
    assert "shared_preload_libraries" in (refused.value.diag.message_hint or "")
    assert server.sql("SELECT 1 FROM pg_extension WHERE extname = 'agent_branch'") == []


def test_calls_need_the_preload(make_cluster: MakeCluster) -> None:
    """A server that was restarted without the library refuses calls, with the same hint."""
    server = make_cluster("unloaded")
    server.stop()
    server.configure(shared_preload_libraries="")
    server.start()
    calls = [
        "SELECT branch.create('b', 'main')",
        "SELECT branch.delete('b', hard => true)",
        "SELECT create_agent_branch('b')",
        "SELECT * FROM branch.gc()",
    ]
    for call in calls:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
            server.sql(call)
        assert "shared_preload_libraries" in (refused.value.diag.message_hint or ""), call
    assert server.scalar("SELECT count(*) FROM pg_database WHERE datname = 'b'") == 0


def test_load_in_a_session_changes_nothing(make_cluster: MakeCluster) -> None:
    """LOAD in a session of a server without the preload does no patching."""
    server = make_cluster("late", library=False, extension=False)
    with server.connect() as session:
        session.execute("LOAD 'agent_branch'")
        session.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
        row = session.execute("SELECT sum(i) FROM t").fetchone()
    assert row == (500500,)


def test_refuses_another_minor_release(make_cluster: MakeCluster) -> None:
    """Built for another minor release, the library does not let the server start.

    The library names the release it was built for in its code; a copy with another
    number there stands for one built against other headers.
    """
    server = make_cluster("minor", library=False, extension=False)
    here = int(server.scalar("SELECT current_setting('server_version_num')"))
    built_for, other = struct.pack("<I", here), struct.pack("<I", here + 1)
    code = library().read_bytes()
    assert built_for in code
    copy = server.root / "agent_branch_other.so"
    copy.write_bytes(code.replace(built_for, other))
    copy.chmod(0o755)
    server.give(copy)

    server.stop()
    server.configure(shared_preload_libraries=str(copy))
    with pytest.raises(ServerError) as refused:
        server.start()
    assert "FATAL:  agent_branch does not fit this server" in str(refused.value)
    assert f"built for server version {here + 1}" in str(refused.value)
    assert "HINT:" in str(refused.value)

    server.configure(shared_preload_libraries="agent_branch")
    server.start()


def server_mappings(cluster: Cluster) -> list[tuple[str, str]]:
    """(offset, permissions) of the server's executable in the postmaster, merged."""
    pid = cluster.postmaster_pid()
    assert pid is not None
    program = str((cluster.bindir / "postgres").resolve())
    found: list[tuple[str, str]] = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[5] == program:
            if found and found[-1][1] == fields[1]:
                continue
            found.append((fields[2], fields[1]))
    return found


def test_patched_page_is_read_only_again(make_cluster: MakeCluster) -> None:
    """After the start, no page of the server is more writable than without the library."""
    with_library = make_cluster("with", extension=False)
    without = make_cluster("without", library=False, extension=False)
    assert server_mappings(with_library) == server_mappings(without)
    assert not [perms for _, perms in server_mappings(with_library) if "wx" in perms]


def test_loaded_but_unused_passes_through(make_cluster: MakeCluster) -> None:
    """With the library and no branch, nothing is stored anywhere new by ordinary work."""
    server = make_cluster("unused")
    server.pgbench(["-i", "-s", "1", "-q"])
    server.pgbench(["-c", "2", "-t", "50"])
    server.sql("VACUUM FULL", dbname="main")
    sums = (
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
        " (SELECT sum(bbalance) FROM pgbench_branches),"
        " (SELECT sum(delta) FROM pgbench_history)"
    )
    before = server.sql(sums, dbname="main")
    assert before[0][0] == before[0][1] == before[0][2]
    server.crash()
    assert server.sql(sums, dbname="main") == before
    kept = [
        path
        for path in (server.data / "agent_branch").rglob("*")
        if re.search(r"[0-9A-F]{24}", path.name)
    ]
    assert kept == []
    assert server.sql("SELECT * FROM branch.verify()") == []


def test_can_be_removed_as_the_readme_says(make_cluster: MakeCluster) -> None:
    """Branches, extension, preload, rows of snapshots, files: then nothing is left."""
    server = make_cluster("leaving")
    server.sql("CREATE TABLE t AS SELECT 1 AS one", dbname="main")
    server.sql("SELECT branch.create('b', 'main')")
    server.sql("SELECT branch.create('b_of_b', 'b')")
    server.sql(
        "SELECT name, branch.delete(name, hard => true) FROM branch.branches ORDER BY depth DESC"
    )
    server.sql("SELECT * FROM branch.gc()")
    drop_extension(server)
    server.stop()
    server.configure(shared_preload_libraries="")
    server.start()
    server.psql(
        "SELECT format('DROP DATABASE %I', datname) FROM pg_database"
        " WHERE starts_with(datname, 'agent_branch_snapshot_') \\gexec\n"
    )
    shutil.rmtree(server.data / "agent_branch")
    server.restart()
    names = server.sql("SELECT datname FROM pg_database ORDER BY datname")
    assert names == [("main",), ("postgres",), ("template0",), ("template1",)]
    numbers = {str(oid) for (oid,) in server.sql("SELECT oid::int8 FROM pg_database")}
    assert {path.name for path in (server.data / "base").iterdir()} - {"pgsql_tmp"} == numbers
    assert server.scalar("SELECT one FROM t", dbname="main") == 1
