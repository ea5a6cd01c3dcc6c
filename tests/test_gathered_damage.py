"""What is destroyed of the file of gathered origins, or cut off from it, or the whole of it: no
branch whose origin was there passes for a plain database, and no plain database suffers."""

from __future__ import annotations

import errno
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_byhand import backup_by_hand
from ab_checks import create_database, delete, gathered, healthy, nothing_left, oid_of, run
from ab_cluster import Cluster
from ab_faults import Faults

TABLE = "CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g"
QUIET: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "agent_branch.gather_after": "0",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}
HEADER, ENTRY, KEY = 512, 80, 4
NUMBER = 9  # of branches
WHOLE = HEADER + NUMBER * (ENTRY + KEY) + 4


def file_of(server: Cluster, name: str = "origins") -> Path:
    return server.data / "agent_branch" / name


def put(path: Path, data: bytes | None) -> None:
    """In place, so that it stays the server's."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def listed(server: Cluster) -> list[int]:
    data = file_of(server, "gathered").read_bytes()
    return [oid for (oid,) in struct.iter_unpack("=I", data[16:])]


def answer(server: Cluster, name: str) -> int | str:
    try:
        return int(server.scalar("SELECT count(*) FROM t", dbname=name))
    except psycopg.Error as error:
        return "damaged" if "is damaged" in str(error) else str(error)


def gather(server: Cluster) -> None:
    server.sql("SELECT * FROM branch.gc()")


@pytest.fixture
def server(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Branches whose origins are gathered, all but the last in use, and plain databases with
    numbers below, among and above theirs."""
    made = make_cluster("damaged", QUIET)
    create_database(made, "below", TABLE)
    for i in range(NUMBER):
        made.sql("SELECT branch.create(%s, 'below')", (f"b{i}",))
        if i in (3, NUMBER - 2):
            create_database(made, f"among{i}", TABLE)
    create_database(made, "above", TABLE)
    gather(made)
    assert len(gathered(made)) == NUMBER
    for i in range(NUMBER - 1):
        assert answer(made, f"b{i}") == 100
    return made


PLAIN = ["below", "among3", f"among{NUMBER - 2}", "above", "postgres"]


def answers(server: Cluster) -> list[int | str]:
    return [answer(server, f"b{i}") for i in range(NUMBER)]


def check_plain(server: Cluster, names: list[str]) -> None:
    for name in names:
        run(server, name, "CREATE TABLE goes_on ()", "DROP TABLE goes_on")


def readable(length: int) -> int:
    return min(max(length - HEADER, 0) // ENTRY, NUMBER)


def test_cut_anywhere(server: Cluster) -> None:
    """Whatever is left of it, nothing included: each branch is what it was or says that it is
    damaged, plain databases go on, gc throws nothing away that any of them needs, and when the
    file is brought back all of them are there."""
    path = file_of(server)
    whole = path.read_bytes()
    assert len(whole) == WHOLE
    lengths = [WHOLE - 1, WHOLE - 5 * KEY, HEADER + 84 * 4 + 4, HEADER + ENTRY, HEADER, 12, 0, None]
    for left in lengths:
        server.stop()
        put(path, None if left is None else whole[:left])
        server.start()
        found = answers(server)
        sound = readable(left or 0)
        assert found == [100] * sound + ["damaged"] * (NUMBER - sound), (left, found)
        check_plain(server, PLAIN)
        if sound < NUMBER:
            assert server.sql("SELECT 1 FROM branch.verify() WHERE object = 'gathered origins'")
            gather(server)
            assert file_of(server, "gathered").exists()
            server.stop()
            path.write_bytes(whole)
            shutil.chown(path, server.data.owner(), server.data.group())
            server.start()
        else:
            gather(server)
            assert path.read_bytes() == whole, "nothing was missing, so it is written anew"
        assert answers(server) == [100] * NUMBER, left
        healthy(server)


def test_deleted_after_damage(server: Cluster) -> None:
    """When those are deleted of which nothing is left, the file is sound again."""
    path = file_of(server)
    server.stop()
    put(path, path.read_bytes()[: HEADER + 6 * ENTRY + 10])
    server.start()
    assert answers(server) == [100] * 6 + ["damaged"] * 3
    for i in range(6, NUMBER):
        delete(server, f"b{i}")
    gather(server)
    gather(server)
    assert gathered(server) == listed(server) == [oid_of(server, f"b{i}") for i in range(6)]
    server.restart()
    assert [answer(server, f"b{i}") for i in range(6)] == [100] * 6
    healthy(server)
    for i in range(6):
        delete(server, f"b{i}")
    gather(server)
    assert not path.exists()
    assert not file_of(server, "gathered").exists()
    nothing_left(server)


@pytest.mark.parametrize("left", [WHOLE - 60, HEADER + 4 * ENTRY + 30, HEADER])
def test_cut_of_an_older_version(server: Cluster, left: int) -> None:
    """No list of whose origins they are is beside it, or that is damaged as well: what is
    lost is damaged all the same.  When the file is whole the list is made."""
    path = file_of(server)
    whole = path.read_bytes()
    sound = readable(left)
    for other in (None, b"destroyed"):
        server.stop()
        put(path, whole[:left])
        put(file_of(server, "gathered"), other)
        server.start()
        assert answers(server) == [100] * sound + ["damaged"] * (NUMBER - sound)
        check_plain(server, ["postgres"])
        server.stop()
        put(path, whole)
        server.start()
        assert listed(server) == gathered(server)
        assert answers(server) == [100] * NUMBER
    check_plain(server, PLAIN)
    healthy(server)


def test_first_entry_of_an_older_version(server: Cluster) -> None:
    """The first one is destroyed, and the list of keys with it."""
    path = file_of(server)
    server.stop()
    data = bytearray(path.read_bytes())
    data[HEADER + 40 : HEADER + 70] = bytes(30)
    data[-9] ^= 0xFF
    put(path, bytes(data))
    put(file_of(server, "gathered"), None)
    server.start()
    assert answers(server) == ["damaged"] + [100] * (NUMBER - 1)


@pytest.mark.parametrize("call", ["open", "pread"])
def test_unreadable(server: Cluster, faults: Faults, call: str) -> None:
    """It cannot be opened, or not be read: plain databases that nobody has looked at since the
    server started go on, new ones are made, checkpoints done; branches say so."""
    faults.restart(server, "fast")
    faults.arm("agent_branch/origins", 1, errno.EIO, sticky=True, only=call)
    check_plain(server, PLAIN)
    server.sql("CHECKPOINT")
    create_database(server, "new", TABLE)
    server.sql("DROP DATABASE above")
    found = answers(server)
    assert faults.disarm()[1] > 0
    assert all("agent_branch/origins" in str(what) for what in found), found
    assert "PANIC" not in server.log_text()
    assert answers(server) == [100] * NUMBER
    healthy(server)


def test_list_that_cannot_be_written(server: Cluster, faults: Faults) -> None:
    """The disk is full: nothing is gathered that the list does not have; nor is anything kept
    from starting the server when it is made anew."""
    faults.restart(server, "fast")
    for call in ("open", "write", "fsync"):
        server.sql("SELECT branch.create(%s, 'below')", (f"more_{call}",))
        faults.arm("agent_branch/tmp.gathered", 1, errno.ENOSPC, sticky=True, only=call)
        position = len(server.log_text())
        gather(server)
        assert faults.disarm()[1] > 0
        assert "could not gather the origins" in server.log_text()[position:]
        assert len(gathered(server)) == NUMBER
    put(file_of(server, "gathered"), None)
    faults.arm("agent_branch/tmp.gathered", 1, errno.ENOSPC, sticky=True, only="write")
    faults.restart(server, "fast")
    assert faults.disarm()[1] > 0
    assert answers(server) == [100] * NUMBER
    gather(server)
    assert listed(server) == gathered(server)
    assert len(listed(server)) == NUMBER + 3


def test_backup_of_an_older_list(server: Cluster, cluster_base: Path) -> None:
    """A backup has copied the list before branches were gathered, and the file with their
    origins afterwards.  When that is cut later, they are damaged."""
    for i in range(4):
        server.sql("SELECT branch.create(%s, 'below')", (f"late{i}",))
    target = cluster_base / "older"
    with backup_by_hand(server, target) as copy_files:
        older = file_of(server, "gathered").read_bytes()
        gather(server)
        copy_files()
        (target / "agent_branch" / "gathered").write_bytes(older)
    server.stop()
    copy = Cluster.from_data(cluster_base, "restored_older", target)
    try:
        assert listed(copy) == gathered(copy)
        assert len(listed(copy)) == NUMBER + 4
        copy.stop()
        path = file_of(copy)
        put(path, path.read_bytes()[: HEADER + ENTRY * (NUMBER + 1)])
        copy.start()
        found = [answer(copy, f"late{i}") for i in range(4)]
        assert found == [100, "damaged", "damaged", "damaged"]
    finally:
        copy.destroy()
