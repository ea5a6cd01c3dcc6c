"""Origins of branches that nobody has been in are gathered into one file: it says what theirs
said, through crashes at each step, on standbys, in backups, when it is damaged, and never brings
back a branch that is gone."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from ab_archive import archive_all, archiving, number, reach, recover
from ab_byhand import backup_by_hand
from ab_checks import (
    branches,
    create,
    create_database,
    delete,
    gathered,
    healthy,
    nothing_left,
    oid_of,
    run,
)
from ab_cluster import Cluster, wait_for
from ab_failpoints import HOLD, Failpoints, failpoint_server
from ab_faults import HALF, Faults

TABLE = "CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g"
QUIET: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "agent_branch.gather_after": "0",
    "checkpoint_timeout": "1h",
}


def own_files(cluster: Cluster) -> list[int]:
    """OIDs of branches that have an origin file of their own."""
    place = cluster.data / "agent_branch" / "branches"
    return sorted(int(path.name) for path in place.iterdir() if path.name.isdigit())


def rows(cluster: Cluster, name: str) -> int:
    return int(cluster.scalar("SELECT count(*) FROM t", dbname=name))


def many(cluster: Cluster, number: int, prefix: str = "b") -> list[str]:
    names = [f"{prefix}{i:03d}" for i in range(number)]
    cluster.sql("SELECT branch.create_many(%s, 'p')", (names,))
    return names


def gather(cluster: Cluster) -> None:
    cluster.sql("SELECT * FROM branch.gc()")


def gathered_server(
    make_cluster: Callable[..., Cluster], name: str, number: int
) -> tuple[Cluster, list[str]]:
    """With so many branches, all of them gathered."""
    server = make_cluster(name, QUIET)
    create_database(server, "p", TABLE)
    names = many(server, number)
    gather(server)
    assert own_files(server) == []
    assert gathered(server) == sorted(oid_of(server, branch) for branch in names)
    return server, names


def test_one_file(make_cluster: Callable[..., Cluster]) -> None:
    """Gathered, read, written, cut, forked, reset, restored after a crash, deleted; a plain
    database that gets the number of one that is gone is no branch."""
    server, names = gathered_server(make_cluster, "one", 12)
    healthy(server)
    read, cut, dropped, parent, gone, again = names[:6]
    assert rows(server, read) == 100
    assert own_files(server) == []
    run(server, cut, "DELETE FROM t WHERE id > 10", "VACUUM (TRUNCATE) t", "TRUNCATE t")
    run(server, dropped, "DROP TABLE t", "CREATE TABLE t AS SELECT 1 AS id")
    create(server, "child", parent)
    server.sql("SELECT branch.reset(%s)", (again,))
    number = oid_of(server, gone)
    for name in (gone, "p2"):
        if name == "p2":
            run(server, "postgres", f"CREATE DATABASE p2 OID {number}")
            run(server, "p2", TABLE)
        else:
            delete(server, name)
            gather(server)
            assert number not in gathered(server)
            assert oid_of(server, again) in gathered(server), "since nobody has been in it"
    assert own_files(server) == sorted(oid_of(server, name) for name in (cut, dropped))
    expected = {read: 100, cut: 0, dropped: 1, "child": 100, again: 100, "p2": 100}
    for how in ("nothing", "crash", "restart"):
        if how != "nothing":
            getattr(server, how)()
        assert {name: rows(server, name) for name in expected} == expected, how
        assert not server.sql("SELECT 1 FROM branch.branches WHERE name = 'p2'")
        healthy(server)
    for name in ("child", *names):
        if name != gone:
            delete(server, name)
    gather(server)
    nothing_left(server, "by gathered origins")


def test_gathered_when_there_are_many(make_cluster: Callable[..., Cluster]) -> None:
    """By a worker, without a call; those of a transaction that goes on are left alone."""
    server = make_cluster("worker", {**QUIET, "agent_branch.gather_after": "10"})
    create_database(server, "p", TABLE)
    with server.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.create('open', 'p')")
        many(server, 20)
        wait_for(lambda: len(own_files(server)) < 10, what="the worker")
        gather(server)  # what came after the worker had looked
        (number,) = own_files(server)
        assert not server.sql("SELECT 1 FROM pg_database WHERE oid = %s", (number,))
        conn.rollback()
    assert own_files(server) == []
    healthy(server)


def test_backup_meanwhile(make_cluster: Callable[..., Cluster], cluster_base: Path) -> None:
    """A backup copies the file of gathered origins before branches come into it, and the
    directory of the others afterwards; some are deleted in between, too."""
    server, names = gathered_server(make_cluster, "backed", 4)
    early = many(server, 8, "early")
    target = cluster_base / "copied"
    with backup_by_hand(server, target) as copy_files:
        pack = (server.data / "agent_branch" / "origins").read_bytes()
        late = many(server, 4, "late")
        gather(server)
        assert own_files(server) == []
        for name in (names[0], early[0], late[0]):
            delete(server, name)
        gather(server)
        run(server, early[1], "TRUNCATE t")
        copy_files()
        (target / "agent_branch" / "origins").write_bytes(pack)
        run(server, early[2], "TRUNCATE t")
    server.stop()
    copy = Cluster.from_data(cluster_base, "restored", target)
    try:
        there = [*names[1:], *early[1:], *late[1:]]
        expected = {name: 0 if name in early[1:3] else 100 for name in there}
        assert {name: rows(copy, name) for name in there} == expected
        healthy(copy)
        nothing_left(copy, "in a backup")
    finally:
        copy.destroy()


def test_point_in_time(make_cluster: Callable[..., Cluster], cluster_base: Path) -> None:
    """Recovery stops before and after branches are gathered, and before each other kind of
    records of ours, while one gets a file of its own again and two are dropped: each branch
    that is there is right wherever its origin is by then, and those are gathered that were when
    the primary was there."""
    archive = cluster_base / "gathered-archive"
    server = make_cluster("travelled", {**QUIET, **archiving(archive)})
    server.sql("CREATE EXTENSION pg_walinspect")
    create_database(server, "p", TABLE)
    names = many(server, 4)
    base = server.backup(server.root / "base", "--no-sync")
    moments = [str(server.scalar("SELECT pg_current_wal_insert_lsn()"))]
    states: list[tuple[list[str], list[int]]] = []

    def reached() -> None:
        moments.append(str(server.scalar("SELECT pg_current_wal_insert_lsn()")))
        states.append((sorted(branches(server)), gathered(server)))

    gather(server)
    reached()
    run(server, names[0], "TRUNCATE t")
    reached()
    for name in names[1:3]:
        delete(server, name)
    gather(server)
    reached()
    gather(server)  # without the dead entries
    reached()
    many(server, 2, "late")
    gather(server)
    reached()
    archive_all(server)
    expected = {name: 0 if name == names[0] else 100 for name in states[-1][0]}
    known = server.sql(
        "SELECT start_lsn::text, record_type FROM pg_get_wal_records_info(%s, %s)"
        " WHERE resource_manager = 'agent_branch'",
        (moments[0], moments[-1]),
    )
    kinds = [kind for _, kind in known]
    assert kinds.count("GATHER") == 3, known
    before = [
        lsn
        for n, (lsn, kind) in enumerate(known)
        if kind == "GATHER" or kind not in {*kinds[:n], "WITNESS"}
    ]
    targets = sorted({*before, *moments[1:]}, key=number)
    read = {names[0], names[3], "late000"}  # who has a directory is not gathered
    target = {"recovery_target_lsn": targets[0]}
    moved = recover(server, archive, base, "travelling", "pause", **target)
    for lsn in targets:
        if lsn != targets[0]:
            moved.stop()
            moved.configure(recovery_target_lsn=lsn)
            moved.start()
            reach(moved, "pause")
        there = sorted(branches(moved))
        assert {oid_of(moved, name) for name in there} <= {*gathered(moved), *own_files(moved)}
        for name in read & {*there}:
            assert rows(moved, name) in ((0, 100) if name == names[0] else (100,)), lsn
        healthy(moved)
        if lsn in moments:
            then, oids = states[moments.index(lsn) - 1]
            known_read = {oid_of(moved, name) for name in read & {*there}}
            assert there == then, lsn
            assert {*gathered(moved)} - known_read == {*oids} - known_read, lsn
    moved.promote()
    assert {name: rows(moved, name) for name in expected} == expected
    gather(moved)
    nothing_left(moved, "after recovery to each record")
    healthy(moved)


def test_on_a_standby(make_cluster: Callable[..., Cluster]) -> None:
    """It gathers what its primary has gathered, reads it, starts again with it, and goes on
    with it when it is promoted."""
    primary = make_cluster("primary", QUIET)
    create_database(primary, "p", TABLE)
    names = many(primary, 10)
    standby = primary.standby("gathering")
    more = many(primary, 10, "more")
    gather(primary)
    delete(primary, names[0])
    gather(primary)
    run(primary, more[0], "TRUNCATE t")
    primary.wait_caught_up(standby)
    assert gathered(standby) == gathered(primary)
    assert own_files(standby) == own_files(primary) == [oid_of(primary, more[0])]
    expected = {name: 0 if name == more[0] else 100 for name in [*names[1:], *more]}
    some = [names[1], more[0], more[1]]
    assert [rows(standby, name) for name in some] == [100, 0, 100]
    standby.restart("immediate")
    primary.wait_caught_up(standby)
    primary.stop()
    standby.promote()
    assert {name: rows(standby, name) for name in expected} == expected
    for name in some:
        run(standby, name, "INSERT INTO t VALUES (1000)", "VACUUM FULL pg_class")
    create(standby, "new", "p")
    gather(standby)
    assert own_files(standby) == sorted(oid_of(standby, name) for name in some)
    healthy(standby)
    standby.destroy()


def test_space_of_dead_entries(make_cluster: Callable[..., Cluster]) -> None:
    """Most of the gathered branches are deleted: one gc run gives their entries' space back,
    on a standby, too; with the last one the file goes."""
    primary, names = gathered_server(make_cluster, "dead", 40)
    standby = primary.standby("dead_too")

    def sizes() -> list[int]:
        primary.wait_caught_up(standby)
        files = [server.data / "agent_branch" / "origins" for server in (primary, standby)]
        return [file.stat().st_size if file.exists() else 0 for file in files]

    before = sizes()
    assert before[0] == before[1] > 40 * 84
    for name in names[:30]:
        delete(primary, name)
    gather(primary)
    after = sizes()
    assert after[0] == after[1] <= before[0] - 30 * 84
    assert [rows(standby, name) for name in names[30:]] == [100] * 10
    primary.crash()
    assert [rows(primary, name) for name in names[30:]] == [100] * 10
    for name in names[30:]:
        delete(primary, name)
    gather(primary)
    assert sizes() == [0, 0]
    nothing_left(primary)
    standby.destroy()


@pytest.mark.parametrize("how", ["entry", "header", "entry and keys", "cut"])
def test_damage(make_cluster: Callable[..., Cluster], how: str) -> None:
    """What can be read is read; whose origin is destroyed answers with an error, and is found by
    verify(); plain databases, and new branches, notice nothing, and nothing is thrown away.
    When the damaged one is deleted, or if nothing is missing, the file is sound again."""
    server, names = gathered_server(make_cluster, "damaged", 9)
    victim = gathered(server)[4]
    (name,) = server.sql("SELECT datname FROM pg_database WHERE oid = %s", (victim,))[0]
    path = server.data / "agent_branch" / "origins"
    server.stop()
    data = bytearray(path.read_bytes())
    if "entry" in how:
        data[512 + 80 * 4 + 40 : 512 + 80 * 4 + 72] = bytes(32)
    if how == "header":
        data[5] ^= 0xFF
    if "keys" in how:
        data[-9] ^= 0xFF
    path.write_bytes(data[:-300] if how == "cut" else data)
    server.start()
    assert 'file "agent_branch/origins" is damaged' in server.log_text()
    assert server.sql("SELECT 1 FROM branch.verify() WHERE object = 'gathered origins'")
    assert rows(server, "p") == 100
    readable = [other for other in names[:5] if other != name]
    assert {rows(server, other) for other in readable} == {100}
    if "entry" in how:
        with pytest.raises(psycopg.Error, match="is damaged"):
            rows(server, name)
    elif how == "header":
        assert rows(server, name) == 100
    create(server, "new", "p")
    gather(server)
    assert rows(server, "new") == 100
    if how == "header":
        assert own_files(server) == [], "nothing was missing"
        healthy(server)
    else:
        assert own_files(server) == [oid_of(server, "new")], "a damaged file is written anew"
    manifests = list((server.data / "agent_branch" / "snapshots").glob("*.manifest"))
    assert len(manifests) == 1, "a snapshot is gone that may be needed"
    if how == "entry":
        delete(server, name)
        create(server, "newer", "p")
        gather(server)
        assert oid_of(server, "newer") in gathered(server)
        healthy(server)


def test_full_disk(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """The file cannot be written, renamed or synced: a warning, and all is as it was."""
    server = make_cluster("full", {**QUIET, "fsync": "on"})
    create_database(server, "p", TABLE)
    names = many(server, 5)
    faults.restart(server, "fast")
    before = own_files(server)
    assert len(before) == 5
    for call in ("write", "fsync", "open"):
        position = len(server.log_text())
        faults.arm("agent_branch/tmp.origins", 1, errno.ENOSPC, only=call)
        gather(server)
        assert faults.disarm()[1] == 1, call
        assert "could not gather the origins" in server.log_text()[position:]
        assert own_files(server) == before
        assert gathered(server) == []
        assert not (server.data / "agent_branch" / "tmp.origins").exists()
    run(server, "p", "INSERT INTO t VALUES (101)")
    gather(server)
    assert gathered(server) == before
    assert {rows(server, name) for name in names} == {100}
    healthy(server)


def test_full_disk_in_replay(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """The file cannot be written anew in crash recovery: the server starts all the same."""
    server, names = gathered_server(make_cluster, "full_replay", 12)
    for name in names[:8]:
        delete(server, name)
    gather(server)
    faults.arm("agent_branch/tmp.origins", 1, errno.ENOSPC, only="write", sticky=True)
    position = len(server.log_text())
    faults.restart(server, "kill")
    assert faults.disarm()[1] > 0
    assert "could not gather the origins" in server.log_text()[position:]
    assert {rows(server, name) for name in names[8:]} == {100}
    gather(server)
    healthy(server)


def test_full_disk_in_a_branch(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """A gathered branch finds no room for an origin of its own: whoever could cut a table is
    told so before, and the server does not notice."""
    server = make_cluster("cut", {**QUIET, "autovacuum": "off"})
    create_database(server, "p", TABLE)
    (name,) = many(server, 1)
    faults.restart(server, "fast")
    gather(server)
    assert rows(server, "p") == 100
    faults.arm(".spare", 1, errno.ENOSPC, only="open", sticky=True)
    with pytest.raises(psycopg.Error) as refused:
        run(server, name, "DELETE FROM t", "VACUUM (TRUNCATE) t")
    assert faults.disarm()[1] > 0
    assert "No space left" in str(refused.value)
    assert "PANIC" not in server.log_text()
    run(server, name, "DELETE FROM t", "VACUUM (TRUNCATE) t")
    assert (rows(server, name), rows(server, "p")) == (0, 100)
    healthy(server)


def test_failing_calls(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """The file cannot be opened, or not be read: a branch that may be in it says so, and nothing
    is taken for a plain database that is none; of which it was known goes on, in new
    sessions, too, and checkpoints do.  Or an entry cannot be marked
    dead: the branch that was deleted does not come back.  And a limit that was written in part
    is as if it had not been written."""
    server = make_cluster("calls", {**QUIET, "autovacuum": "off"})
    create_database(server, "p", TABLE, TABLE.replace("TABLE t", "TABLE u"))
    kept, gone, cut = many(server, 3)
    gather(server)
    faults.restart(server, "fast")
    assert rows(server, "p") == 100
    for call in ("open", "pread"):
        faults.arm("agent_branch/origins", 1, errno.EIO, sticky=True, only=call)
        with pytest.raises(psycopg.Error, match=r'could not [a-z]+ file "agent_branch/origins"'):
            rows(server, kept)
        assert rows(server, "p") == 100
        run(server, "p", "INSERT INTO t VALUES (101)", "DELETE FROM t WHERE id = 101", "CHECKPOINT")
        assert faults.disarm()[1] > 0, call
    assert rows(server, kept) == rows(server, "p") == 100

    number = oid_of(server, gone)
    position = len(server.log_text())
    delete(server, gone)
    faults.arm("agent_branch/origins", 1, errno.EIO, sticky=True, only="pwrite")
    gather(server)
    assert faults.disarm()[1] > 0
    assert 'could not write file "agent_branch/origins"' in server.log_text()[position:]
    assert number in gathered(server)
    gather(server)
    assert number not in gathered(server)
    nothing_left(server, "by calls that failed")
    assert server.scalar("SELECT sum(branches)::int FROM branch.snapshots") == 2

    run(server, cut, "TRUNCATE u", "DELETE FROM t")
    assert own_files(server) == [oid_of(server, cut)]
    faults.arm(f"branches/{oid_of(server, cut)}", 1, HALF, only="pwrite")
    position = len(server.log_text())
    with pytest.raises(psycopg.Error):
        run(server, cut, "VACUUM (TRUNCATE) t")
    assert faults.disarm()[1] == 1
    wait_for(lambda: "ready to accept" in server.log_text()[position:], what="the server")
    assert re.search("PANIC: .*how far relation [0-9]+ is inherited", server.log_text()[position:])
    assert (rows(server, cut), rows(server, kept), rows(server, "p")) == (0, 100, 100)
    healthy(server)


def test_detach_that_marks_nothing(make_cluster: Callable[..., Cluster], faults: Faults) -> None:
    """The entry of a branch cannot be marked dead while it is detached: it stays a branch, with
    what it has cut off cut off, until somebody detaches it again."""
    server = make_cluster("marks", {**QUIET, "autovacuum": "off"})
    create_database(server, "p", TABLE, TABLE.replace("TABLE t", "TABLE u"))
    (name,) = many(server, 1)
    gather(server)
    faults.restart(server, "fast")
    run(server, name, "DELETE FROM t", "VACUUM (TRUNCATE) t", "INSERT INTO u VALUES (101)")
    assert own_files(server) == [oid_of(server, name)]
    faults.arm("agent_branch/origins", 1, errno.EIO, sticky=True, only="pwrite")
    server.sql("SELECT branch.detach(%s)", (name,))
    assert faults.disarm()[1] > 0
    count = "SELECT count(*) FROM u"
    for how in ("fast", "immediate"):
        assert (rows(server, name), server.scalar(count, dbname=name)) == (0, 101)
        assert own_files(server) == [oid_of(server, name)]
        server.restart(how)
    assert branches(server) == {name: "p"}
    server.sql("SELECT branch.detach(%s)", (name,))
    assert (rows(server, name), server.scalar(count, dbname=name)) == (0, 101)
    assert branches(server) == {}
    nothing_left(server, "after a detach")


PLACES = [
    "gather-locked",
    "gather-keys-written",
    "gather-renamed",
    "gather-written",
    "gather-logged",
    "gather-unlinked",
    "gather-done",
    "origin-dead",
    "origin-held",
    "origin-spare-synced",
    "origin-apart",
]


@pytest.fixture(scope="module")
def failpoints(cluster_base: Path) -> Iterator[None]:
    with failpoint_server(cluster_base):
        yield


def test_killed_at_each_step(failpoints: None, cluster_base: Path) -> None:
    """Killed while it gathers, while one is removed, and while one gets its own file again,
    and again in recovery."""
    server = Cluster.create(cluster_base, "steps", QUIET)
    points = Failpoints(server)
    create_database(server, "p", TABLE)
    done: dict[str, int] = {}
    for turn, place in enumerate(PLACES):
        names = many(server, 3, f"t{turn}_")
        if place.startswith("origin"):
            gather(server)
            done[names[2]] = 0
        else:
            done[names[2]] = 100
            server.sql("CHECKPOINT")
        done |= dict.fromkeys(names[:2], 100)
        if place == "origin-dead":
            delete(server, names[2])
            del done[names[2]]
        points.arm(place, HOLD)

        def work(place: str = place, names: list[str] = names) -> None:
            with suppress(psycopg.Error):
                if place.startswith("origin") and place != "origin-dead":
                    run(server, names[2], "TRUNCATE t", "SELECT pg_switch_wal()")
                else:
                    gather(server)

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            wait_for(lambda: points.who() != 0, what=f"somebody to come to {place}")
            server.kill()
            working.result()
        points.unlock()
        points.disarm()
        if place == "gather-logged":
            points.arm("redo-gather", HOLD)
            server.start(wait=False)
            wait_for(lambda: points.who() != 0, what="replay")
            server.kill()
            points.unlock()
            points.disarm()
        server.start()
        if place == "origin-held":
            done[names[2]] = 100
        elif place in ("origin-spare-synced", "origin-apart"):
            done[names[2]] = rows(server, names[2])
            assert done[names[2]] in (0, 100)
        assert {name: rows(server, name) for name in done} == done, place
        healthy(server)
        gather(server)
        nothing_left(server, f"killed at {place}")
    server.destroy()
