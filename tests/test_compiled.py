"""Guesses about functions make queries of the extension look dear.  Compiling these takes seconds
on a busy machine, in which the session can neither be cancelled nor let a database be dropped."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from ab_cluster import Cluster
from agent_branch import joblist

# Above what a call costs, below what is guessed for most of what is behind it.
DEAR = 100


def compiles(conn: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Has the session loaded what compiles queries?"""
    return "llvmjit.so" in Path(f"/proc/{conn.info.backend_pid}/maps").read_text()


def test_it_shows(cluster: Cluster) -> None:
    if not cluster.scalar("SELECT pg_jit_available()"):
        pytest.skip("this server cannot compile queries")
    with cluster.connect() as conn:
        assert not compiles(conn)
        conn.execute("SET jit = on; SET jit_above_cost = 0")
        conn.execute("SELECT count(*) FROM pg_class WHERE relname <> 'x'")
        assert compiles(conn)


@pytest.mark.parametrize("job", joblist.JOBS)
def test_jobs_compile_nothing(cluster: Cluster, job: str) -> None:
    cluster.sql("SELECT branch.ensure('a'), branch.ensure('b')")
    cluster.sql(f"ALTER DATABASE postgres SET jit_above_cost = {DEAR}")
    cluster.sql("ALTER DATABASE postgres SET jit = on")
    with cluster.connect() as conn:
        conn.execute("CALL branch.run_job(%s)", (job,))
        assert not compiles(conn)
