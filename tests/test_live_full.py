"""The store of before-images is full, or its disk fails, at any moment: the parent never
notices, the snapshots that lack a page say so (XX001), the server always starts."""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from ab_byhand import backup_by_hand, copy_live
from ab_checks import (
    Row,
    calm_log,
    contents,
    create,
    create_database,
    delete,
    drop_all_branches,
    exists,
    healthy,
    nothing_left,
    pid_of,
    run,
)
from ab_cluster import CONF, Cluster, wait_for
from ab_faults import Faults, SmallDisk, small_disk
from ab_oracle import METHOD, SETTINGS, image_bytes, plain_again, sqlstate
from ab_weather import Weather

pytestmark = pytest.mark.skipif(
    METHOD != "before_image", reason=f"is about before-images, not about {METHOD}"
)

STORE = "agent_branch/images"
EVERY_CALL = "AGENT_BRANCH_EVERY_CALL" in os.environ
ROWS = 4000
ROOM = 16 * 1024 * 1024
TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (fillfactor = 90)",
    f"INSERT INTO t SELECT i, repeat('o', 300) FROM generate_series(1, {ROWS}) AS i",
    "CREATE TABLE small AS SELECT 1 AS i",
]
BIG = {
    **SETTINGS,
    "shared_buffers": "64MB",
    "checkpoint_timeout": "1h",
    "bgwriter_lru_maxpages": "0",
}


Rows = dict[str, Row]
Store = Callable[[str, int], tuple[Cluster, SmallDisk]]


def answer(cluster: Cluster, name: str) -> Rows | psycopg.Error:
    """Rows of the branch, or the XX001 with which it says that it has lost some."""
    position = len(cluster.log_text())
    try:
        return contents(cluster, name)
    except psycopg.Error as error:
        refusal = error
    code = sqlstate(cluster, name, refusal, position)
    assert code == "XX001", f'"{name}": {code} {refusal}\n{cluster.log_tail(10)}'
    return refusal


def create_or_refusal(cluster: Cluster, name: str) -> str | None:
    """SQLSTATE of the refusal to make a branch of "p"; None if it was made."""
    try:
        create(cluster, name, "p")
    except psycopg.Error as error:
        print(f"{name}: {error.sqlstate} {error}")
        return str(error.sqlstate)
    return None


def lost(cluster: Cluster, name: str) -> None:
    """The branch answers XX001 and says what happened and what to do; so does verify."""
    position = len(cluster.log_text())
    error = answer(cluster, name)
    assert isinstance(error, psycopg.Error), f'"{name}" answers with rows'
    log = cluster.log_text()[position:]
    text = f"{error}\n{log}"
    assert "DETAIL:" in text, text
    assert "HINT:" in text, text
    found = cluster.sql("SELECT * FROM branch.verify()")
    assert found, f'branch.verify() says nothing of "{name}"'


def alive(cluster: Cluster, parent: str, expected: Rows) -> None:
    """The parent has all its rows, and takes more."""
    assert contents(cluster, parent) == expected
    run(cluster, parent, "UPDATE small SET i = i", "CHECKPOINT")


@pytest.fixture
def store(make_cluster: Callable[..., Cluster]) -> Iterator[Store]:
    """``store(name, size)``: a server whose store has so many bytes."""
    with ExitStack() as opened:

        def make(name: str, size: int) -> tuple[Cluster, SmallDisk]:
            cluster = make_cluster(name, BIG)
            create_database(cluster, "p", *TABLE)
            return cluster, opened.enter_context(small_disk(cluster, STORE, size))

        yield make


UPDATE = "UPDATE t SET v = repeat('n', 300)"


@pytest.mark.parametrize("how", ["checkpointer", "backend", "truncation", "shutdown", "immediate"])
def test_full_store(store: Store, how: str) -> None:
    """The store has no room for the pages that the parent overwrites: in the checkpointer, in
    backends that need a buffer, in VACUUM's truncation (E4), in the shutdown checkpoint, after
    a crash.  Nothing of the parent fails, its branch says XX001, the server starts again and
    again, and with room new snapshots work."""
    cluster, disk = store(f"full{how[:5]}", ROOM)
    create(cluster, "b", "p")
    disk.fill()
    if how == "backend":
        cluster.set(bgwriter_lru_maxpages="0")
        cluster.configure(shared_buffers="1MB")
        disk.relieve()
        cluster.restart()
        disk.fill()
    with cluster.connect("p") as conn:
        if how == "truncation":
            conn.execute(f"DELETE FROM t WHERE id > {ROWS // 4}")
            conn.execute("VACUUM (TRUNCATE) t")
            assert conn.execute("SELECT pg_relation_size('t') / 8192").fetchall()[0][0] < 80
        else:
            conn.execute(UPDATE)
        if how == "checkpointer":
            conn.execute("CHECKPOINT")
    expected = contents(cluster, "p")
    if how == "shutdown":
        cluster.restart("fast")
    elif how == "immediate":
        cluster.restart("immediate")
    elif how == "truncation":
        cluster.crash()  # its redo cuts the table once more
    alive(cluster, "p", expected)
    cluster.sql("CHECKPOINT")
    lost(cluster, "b")
    for mode in ("fast", "immediate"):
        cluster.restart(mode)
        alive(cluster, "p", expected)
        lost(cluster, "b")
    calm_log(cluster)

    # A snapshot for which there is no room is refused, and nothing else.
    assert create_or_refusal(cluster, "b2") in (None, "53100", "58030")
    disk.relieve()
    run(cluster, "p", "UPDATE small SET i = i + 1", "CHECKPOINT")
    create(cluster, "b3", "p")
    before = contents(cluster, "p")
    run(cluster, "p", "DELETE FROM t WHERE id % 3 = 0", "VACUUM t", "CHECKPOINT")
    assert contents(cluster, "b3") == before
    lost(cluster, "b")
    drop_all_branches(cluster)
    plain_again(cluster, "p")
    nothing_left(cluster)
    healthy(cluster)
    calm_log(cluster)


def test_backup_while_a_page_is_lost(store: Store, cluster_base: Path) -> None:
    """A base backup has the store as it was before the page was lost, and the parent's file as
    it was after: what is made of it must not take the parent's new rows for the branch's."""
    cluster, disk = store("fullbackup", ROOM)
    create(cluster, "b", "p")
    before = contents(cluster, "b")
    place = cluster_base / "full-backup"
    place.mkdir()
    with backup_by_hand(cluster, place / "data") as copy_files:
        copy_files()
        disk.fill()
        run(cluster, "p", UPDATE, "CHECKPOINT")
        copy_live(cluster.data / "base", place / "data" / "base", lambda *_: [], more=True)
    disk.relieve()
    lost(cluster, "b")
    for name in (place / "data" / STORE).glob("filler*"):
        name.unlink()
    restored = Cluster.from_data(place, "fullrestored", place / "data", BIG)
    try:
        rows = answer(restored, "b")
        assert isinstance(rows, psycopg.Error) or rows == before
        lost(restored, "b")
    finally:
        restored.destroy()


def test_only_those_who_need_it(store: Store) -> None:
    """A page that cannot be saved is lost for the snapshots that need it, and for no other:
    those that have an older image of it, those taken later, other parents' branches."""
    cluster, disk = store("needed", ROOM)
    create_database(cluster, "other", *TABLE)
    create(cluster, "o", "other")
    create(cluster, "old", "p")
    old = contents(cluster, "p")
    run(cluster, "p", "UPDATE t SET v = repeat('1', 300)", "CHECKPOINT")  # all saved for it
    create(cluster, "new", "p")
    disk.fill()
    run(cluster, "p", "UPDATE t SET v = repeat('2', 300)", "CHECKPOINT")
    lost(cluster, "new")
    answered = answer(cluster, "old")
    assert isinstance(answered, psycopg.Error) or answered == old
    disk.relieve()
    create(cluster, "later", "p")
    later = contents(cluster, "p")
    run(cluster, "p", "DELETE FROM t WHERE id < 500", "VACUUM t")
    cluster.crash()
    assert contents(cluster, "later") == later
    assert contents(cluster, "o") == contents(cluster, "other")
    lost(cluster, "new")
    answered = answer(cluster, "old")
    assert isinstance(answered, psycopg.Error) or answered == old


def test_no_memory_to_map_a_manifest(make_cluster: Callable[..., Cluster]) -> None:
    """A checkpointer that may have no more memory still learns what the snapshot contains, and
    saves its pages: those of a plain parent, and of a parent that is a branch itself."""
    cluster = make_cluster("nomemory", BIG)
    create_database(cluster, "p", *TABLE)
    create(cluster, "middle", "p")
    run(cluster, "middle", "UPDATE t SET v = 'm' WHERE id % 3 = 0", "CREATE TABLE gone (i int)")
    cluster.sql("CHECKPOINT")
    expected = {}
    for name, parent in (("low", "middle"), ("high", "p")):
        create(cluster, name, parent)
        expected[name] = contents(cluster, parent)
        more = "INSERT INTO small VALUES (2)"
        run(cluster, parent, "UPDATE t SET v = 'n' WHERE id % 2 = 0", more)
    pid = pid_of(cluster, "checkpointer")
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    stored = [image_bytes(cluster, name) for name in ("p", "middle")]
    if not Weather.limit(int(pid), str(pages * resource.getpagesize())):
        pytest.skip("prlimit cannot set a limit")
    try:
        cluster.sql("CHECKPOINT")
    finally:
        assert Weather.limit(int(pid), "unlimited")
    for name, before in zip(("p", "middle"), stored, strict=True):
        assert image_bytes(cluster, name) > before, "nothing had to be saved"
    for name, rows in expected.items():
        assert contents(cluster, name) == rows
    cluster.crash()
    for name, rows in expected.items():
        assert contents(cluster, name) == rows
    healthy(cluster)
    calm_log(cluster)


def test_branch_of_a_lost_branch(store: Store) -> None:
    """What hangs on a snapshot that has lost a page answers XX001 too, at any depth; it can be
    deleted, and a branch of it cannot be made."""
    cluster, disk = store("deep", ROOM)
    create(cluster, "b", "p")
    run(cluster, "b", "INSERT INTO t VALUES (0, 'b')")
    create(cluster, "c", "b")
    disk.fill()
    run(cluster, "p", UPDATE, "CHECKPOINT")
    lost(cluster, "b")
    lost(cluster, "c")
    with cluster.connect() as conn, pytest.raises(psycopg.Error) as caught:
        conn.execute("SELECT branch.create('d', 'b')")
    assert caught.value.sqlstate == "XX001", str(caught.value)
    delete(cluster, "c")
    delete(cluster, "b")
    disk.relieve()
    cluster.sql("SELECT * FROM branch.gc()")
    plain_again(cluster, "p")
    healthy(cluster)


# ---- the n-th call fails ------------------------------------------------------------------


WORK: list[tuple[str, str]] = [
    ("p", "UPDATE t SET v = repeat('{n}', 30) WHERE id % 50 = {n} % 50"),
    ("postgres", "CHECKPOINT"),
    ("p", "DELETE FROM t WHERE id > 3990 - {n}"),
    ("p", "VACUUM (TRUNCATE) t"),
    ("p", "TRUNCATE small"),
    ("p", "INSERT INTO small VALUES ({n})"),
    ("postgres", "CHECKPOINT"),
]


def test_every_call_fails_once(
    make_cluster: Callable[..., Cluster],
    faults: Faults,
    rng: random.Random,
) -> None:
    """The n-th call on the store fails, with EIO or ENOSPC, n = 1 until none does, while a
    snapshot is taken and its parent is written, vacuumed and truncated.  The parent has all
    its rows, whatever failed; the branch is right, or XX001, or was refused; every now and
    then the server is killed or stopped, and starts.  AGENT_BRANCH_EVERY_CALL=1: no number
    is left out."""
    cluster = make_cluster("fault", BIG)
    create_database(cluster, "p", *TABLE)
    faults.restart(cluster, "fast")
    outcomes: dict[str, int] = {}
    n = 0
    while True:
        n += 1 if n < 30 or EVERY_CALL else rng.randint(2, 7)
        name = f"b{n}"
        run(
            cluster,
            "p",
            f"INSERT INTO t SELECT 4000 + i, 'x' FROM generate_series(1, {n}) AS i"
            " ON CONFLICT DO NOTHING",
        )
        before = contents(cluster, "p")
        faults.arm(STORE, n, rng.choice((errno.EIO, errno.ENOSPC)), sticky=rng.random() < 0.2)
        refusal = create_or_refusal(cluster, name)
        assert refusal in (None, "53100", "58030", "XX001"), f"call {n}: {refusal}"
        for dbname, statement in WORK:
            run(cluster, dbname, statement.format(n=n))
        after = contents(cluster, "p")
        calls, fired, call = faults.disarm()
        if rng.random() < 0.2:
            faults.restart(cluster, rng.choice(("kill", "fast", "immediate")))
        assert contents(cluster, "p") == after, f"call {n} ({call}): the parent lost rows"
        outcome = "refused"
        if refusal is None:
            answered = answer(cluster, name)
            if isinstance(answered, psycopg.Error):
                outcome = "lost"
            else:
                assert answered == before, f"call {n} ({call}): wrong rows in the branch"
                outcome = "right"
            delete(cluster, name)
        elif exists(cluster, name):
            delete(cluster, name)
        cluster.sql("SELECT * FROM branch.gc()")
        outcomes[f"{call} {outcome}"] = outcomes.get(f"{call} {outcome}", 0) + 1
        if not fired:
            assert outcome == "right", f"no call failed, and the branch is {outcome}"
            break
        assert n < 400, "there is no end of calls"
    print(f"{calls} calls; {outcomes}")
    assert calls > 5, "the store was hardly used"
    plain_again(cluster, "p")
    nothing_left(cluster)
    healthy(cluster)
    calm_log(cluster)


def test_failing_while_it_shuts_down_and_recovers(
    make_cluster: Callable[..., Cluster], faults: Faults
) -> None:
    """Every call on the store fails from some moment on, during the shutdown checkpoint and
    during the whole of a recovery: both end well."""
    cluster = make_cluster("faultall", BIG)
    create_database(cluster, "p", *TABLE)
    faults.restart(cluster, "fast")
    for turn, how in enumerate(("fast", "kill", "immediate")):
        name = create(cluster, f"all{turn}", "p")
        before = contents(cluster, "p")
        run(cluster, "p", f"UPDATE t SET v = '{turn}' WHERE id % 3 = {turn}", "VACUUM t")
        expected = contents(cluster, "p")
        if how == "kill":
            cluster.kill()
        faults.arm(STORE, 1, errno.EIO, sticky=True)
        faults.restart(cluster, how)
        assert contents(cluster, "p") == expected
        cluster.sql("CHECKPOINT")
        faults.disarm()
        answered = answer(cluster, name)
        assert isinstance(answered, psycopg.Error) or answered == before
        faults.restart(cluster, "fast")
        answered = answer(cluster, name)
        assert isinstance(answered, psycopg.Error) or answered == before
        assert contents(cluster, "p") == expected
    drop_all_branches(cluster)
    plain_again(cluster, "p")
    calm_log(cluster)


@pytest.mark.parametrize("how", ["without the library", "pg_resetwal"])
def test_written_behind_our_back(make_cluster: Callable[..., Cluster], how: str) -> None:
    """After a clean shutdown the server runs once without the library, which writes the parent
    without saving a page, or pg_resetwal has been at it: its branches must not believe what
    they find (F13); the parent is as it was left, and can be branched again."""
    cluster = make_cluster("behind", BIG)
    create_database(cluster, "p", *TABLE)
    create(cluster, "b", "p")
    before = contents(cluster, "p")
    cluster.restart("fast")
    assert contents(cluster, "b") == before
    cluster.stop("fast")
    if how == "pg_resetwal":
        cluster.run("pg_resetwal", "-f", "-D", str(cluster.data))
    else:
        cluster.configure(shared_preload_libraries="")
        settings = cluster.data / CONF
        ours = settings.read_text()
        settings.write_text(
            "".join(line + "\n" for line in ours.splitlines() if "agent_branch." not in line)
        )
        cluster.start()
        run(cluster, "p", "UPDATE t SET v = 'behind your back'", "VACUUM t")
        cluster.stop("fast")
        settings.write_text(ours)
        cluster.configure(shared_preload_libraries="agent_branch")
    cluster.start()
    expected = contents(cluster, "p")
    lost(cluster, "b")
    create(cluster, "again", "p")
    run(cluster, "p", "DELETE FROM t WHERE id % 2 = 0", "VACUUM t", "CHECKPOINT")
    assert contents(cluster, "again") == expected
    cluster.crash()
    assert contents(cluster, "again") == expected
    lost(cluster, "b")
    drop_all_branches(cluster)
    healthy(cluster)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_no_mark_can_be_made(
    make_cluster: Callable[..., Cluster], faults: Faults, how: str
) -> None:
    """Nothing under agent_branch can be written any more, as when its file system was made
    read-only: neither can pages be saved nor can it be said there that they were not.  The parent
    goes on; when the file system can be written again, the branch has lost its pages."""
    cluster = make_cluster("mute", BIG)
    create_database(cluster, "p", *TABLE)
    faults.restart(cluster, "fast")
    create(cluster, "b", "p")
    snapshot = cluster.scalar("SELECT id FROM branch.snapshots")
    cluster.sql("CHECKPOINT")
    faults.arm("agent_branch/", 1, errno.EROFS, sticky=True)
    run(cluster, "p", "UPDATE t SET v = 'new'", "CHECKPOINT")
    if how == "kill":
        cluster.kill()
    else:
        cluster.stop()
    faults.disarm()
    cluster.start()
    lost(cluster, "b")
    drop_all_branches(cluster)
    plain_again(cluster, "p")
    nothing_left(cluster)
    assert list(cluster.data.glob("agent_branch.*")) == []
    # as a crash leaves it after the snapshot has gone: nothing knows of it
    (cluster.data / f"agent_branch.{snapshot}.poisoned").touch()
    cluster.crash()
    wait_for(lambda: not list(cluster.data.glob("agent_branch.*")), what="the mark to go")
    healthy(cluster)
