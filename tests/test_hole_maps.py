"""Sessions of a branch remember where its own files have holes (ab_holes.c): who fills one, and
however, they see what is there now."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ab_buffers import STILL, evict, make_pages
from ab_checks import (
    Conn,
    calm_log,
    contents,
    create,
    create_database,
    healthy,
    main_fork,
    own_blocks,
    run,
)
from ab_cluster import LONG, Cluster
from ab_faults import HALF, Faults, Holding


def make_parent(server: Cluster) -> None:
    """A branch "b" of "p", with a table of some 170 pages, and a database of other pages."""
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (fillfactor = 50)",
        "INSERT INTO t SELECT i, repeat('o', 300) FROM generate_series(1, 2000) AS i",
        "VACUUM ANALYZE t",
    )
    make_pages(server)
    create(server, "b", "p")


FIRST = "UPDATE t SET v = 'first' WHERE id = 1"  # with it b has a file


def scan(session: Conn) -> dict[int, str]:
    return {row[0]: row[1] for row in session.execute("SELECT id, v FROM t")}


def reads(session: Conn) -> int:
    """Calls of read and pread of the session's backend so far."""
    try:
        lines = Path(f"/proc/{session.info.backend_pid}/io").read_text().splitlines()
    except OSError:
        pytest.skip("the kernel does not count reads")
    return int(next(line.split()[1] for line in lines if line.startswith("syscr")))


def remembers(server: Cluster, session: Conn) -> None:
    """Read everything, until the session knows the holes: then it reads what is inherited, and
    not the hole before."""
    for _ in range(2):
        evict(server)
        scan(session)
    evict(server)
    before = reads(session)
    scan(session)
    row = session.execute("SELECT pg_relation_size('t') / 8192").fetchone()
    assert row is not None
    assert row[0] <= reads(session) - before < 1.5 * row[0]


def sees(server: Cluster, session: Conn, expected: dict[int, str]) -> None:
    evict(server)
    assert scan(session) == expected


def own_pages(server: Cluster) -> int:
    return len(list(own_blocks(main_fork(server, "b", "t"))))


def test_holes_that_are_filled(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """By the checkpointer, by a process of another database that needs the buffer, by the
    session itself, and by a write that fails half-way and is made good."""
    server = make_cluster("filled", STILL)
    make_parent(server)
    faults.restart(server, "fast")
    run(server, "b", FIRST, "CHECKPOINT")
    with server.connect("b") as reader, server.connect("b") as writer:
        expected = scan(reader)

        def change(session: Conn, number: int) -> None:
            session.execute("UPDATE t SET v = 'new' WHERE id = %s", (number,))
            expected[number] = "new"

        remembers(server, reader)
        change(writer, 400)
        run(server, "postgres", "CHECKPOINT")
        assert own_pages(server) == 2
        sees(server, reader, expected)

        remembers(server, reader)
        change(writer, 800)
        evict(server)
        assert own_pages(server) == 3
        sees(server, reader, expected)

        remembers(server, reader)
        change(reader, 1200)
        sees(server, reader, expected)

        remembers(server, reader)
        change(writer, 1600)
        faults.arm(main_fork(server, "b", "t").name, 1, HALF, only="pwrite")
        with pytest.raises(psycopg.errors.InternalError_, match="checkpoint request failed"):
            run(server, "postgres", "CHECKPOINT")
        assert faults.disarm()[1] == 1
        assert own_pages(server) == 5
        run(server, "postgres", "CHECKPOINT")
        sees(server, reader, expected)

        create(server, "c", "b")
        remembers(server, reader)
    server.crash()
    with server.connect("b") as reader:
        assert scan(reader) == expected
    assert contents(server, "c") == contents(server, "b")
    healthy(server)


def test_map_made_during_a_write(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """A session learns the holes while another process is about to write into one of them."""
    server = make_cluster("during", STILL)
    make_parent(server)
    faults.restart(server, "fast")
    run(server, "b", FIRST, "CHECKPOINT")
    run(server, "b", "UPDATE t SET v = 'new' WHERE id = 400")
    with ThreadPoolExecutor(1) as pool, Holding(faults) as held:
        faults.arm_stop(main_fork(server, "b", "t").name, only="pwrite")
        checkpoint = pool.submit(run, server, "postgres", "CHECKPOINT")
        checkpointer = held.wait(checkpoint)
        with server.connect("b") as reader:
            remembers(server, reader)
            expected = scan(reader)
            assert own_pages(server) == 1
            held.let_go(checkpointer)
            checkpoint.result(LONG)
            assert own_pages(server) == 2
            sees(server, reader, expected)
    assert expected[400] == "new"
    healthy(server)
    calm_log(server)


def test_files_that_are_cut_and_grow(make_cluster: Callable[..., Cluster]) -> None:
    """Pages beyond a cut are not inherited, whatever was known of them, nor are those of a
    table that has been emptied and filled again."""
    server = make_cluster("cut", STILL)
    make_parent(server)
    run(server, "b", FIRST, "CHECKPOINT")
    with server.connect("b") as reader, server.connect("b") as writer:
        expected = scan(reader)
        remembers(server, reader)
        size = main_fork(server, "b", "t").stat().st_size
        writer.execute("DELETE FROM t WHERE id > 1000")
        writer.execute("VACUUM t")
        assert main_fork(server, "b", "t").stat().st_size < 0.6 * size
        expected = {number: v for number, v in expected.items() if number <= 1000}
        sees(server, reader, expected)
        scan(reader)
        more = "INSERT INTO t SELECT i, 'more' FROM generate_series(3001, 8000) AS i"
        writer.execute(more)
        expected |= dict.fromkeys(range(3001, 8001), "more")
        sees(server, reader, expected)
        run(server, "postgres", "CHECKPOINT")
        sees(server, reader, expected)
        writer.execute("TRUNCATE t")
        writer.execute(more)
        expected = dict.fromkeys(range(3001, 8001), "more")
        sees(server, reader, expected)
    server.crash()
    with server.connect("b") as reader:
        assert scan(reader) == expected
    healthy(server)
    calm_log(server)


def test_holes_that_replay_fills(make_cluster: Callable[..., Cluster]) -> None:
    """On a standby who replays writes the page, and a session there remembers."""
    server = make_cluster("primary", {**STILL, "max_standby_streaming_delay": "-1"})
    make_parent(server)
    standby = server.standby("replica")
    run(server, "b", FIRST)
    with standby.connect("b") as reader, server.connect("b") as writer:
        server.wait_caught_up(standby)
        expected = scan(reader)
        assert expected[1] == "first"
        for number in (800, 1600):
            remembers(standby, reader)
            writer.execute("UPDATE t SET v = 'new' WHERE id = %s", (number,))
            expected[number] = "new"
            server.wait_caught_up(standby)
            sees(standby, reader, expected)
    standby.promote()
    run(standby, "b", "UPDATE t SET v = 'own' WHERE id = 1200")
    expected[1200] = "own"
    with standby.connect("b") as reader:
        sees(standby, reader, expected)
    healthy(standby)
