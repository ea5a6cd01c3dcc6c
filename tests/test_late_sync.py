"""Origin files and manifests are synced late: what a power cut may take away before a
checkpoint, redo makes again, and what a checkpoint leaves behind is on disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from ab_checks import branches, create, create_database, healthy, nothing_left, redo_pointer, run
from ab_cluster import Cluster
from ab_faults import FailingDisk, Faults, mount_again

MB = 1024 * 1024
MADE = ("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g",)


def origin(cluster: Cluster, name: str) -> Path:
    oid = cluster.scalar("SELECT oid FROM pg_database WHERE datname = %s", (name,))
    return cluster.data / "agent_branch" / "branches" / str(oid)


def directory(cluster: Cluster, name: str) -> Path:
    return cluster.data / "base" / origin(cluster, name).name


def rows(cluster: Cluster, name: str) -> list[tuple[int]]:
    return cluster.sql("SELECT id FROM t ORDER BY id", dbname=name)


@pytest.mark.parametrize("lost", ["name", "contents", "half", "directory", "mark"])
def test_lost_before_a_checkpoint(make_cluster: Callable[..., Cluster], lost: str) -> None:
    """The power goes right after a commit: of what creation wrote beside WAL nothing, or a
    part, has reached the disk.  The branch is there with everything written to it since."""
    server = make_cluster("late", {"checkpoint_timeout": "1h", "full_page_writes": "on"})
    create_database(server, "p", *MADE)
    create(server, "kept", "p")
    server.sql("CHECKPOINT")
    create(server, "b", "p")
    run(server, "b", "INSERT INTO t VALUES (101)", "CREATE TABLE own AS SELECT 1 AS i")
    run(server, "b", "TRUNCATE own", "DELETE FROM t WHERE id = 1")
    file, place = origin(server, "b"), directory(server, "b")
    server.kill()

    data = file.read_bytes()
    if lost == "name":
        file.unlink()
    elif lost == "contents":
        file.write_bytes(b"")
    elif lost == "half":
        file.write_bytes(data[: len(data) // 2])
    elif lost == "directory":
        file.unlink()
        shutil.rmtree(place)
    else:
        file.rename(f"{file}.new")
    server.start()
    assert origin(server, "b").read_bytes()[:64] == data[:64]
    assert rows(server, "b") == [(i,) for i in range(2, 102)]
    assert server.sql("SELECT * FROM own", dbname="b") == []
    assert rows(server, "kept") == [(i,) for i in range(1, 101)]
    healthy(server)


def test_manifest_lost_and_origin_not(make_cluster: Callable[..., Cluster]) -> None:
    """The power goes when the gathered origin is on disk, and the manifest is not.  Recovery looks
    ahead at pages of the branch before it has mended that: nothing of the branch is dropped."""
    far: dict[str, object] = {"maintenance_io_concurrency": 1000, "wal_decode_buffer_size": "8MB"}
    server = make_cluster("ahead", {"agent_branch.sweep_interval": 0, **far})
    create_database(server, "p", *MADE)
    server.sql("CHECKPOINT")
    create(server, "b", "p")
    server.sql("SELECT * FROM branch.gc()")
    with server.connect("b") as session:
        for i in range(101, 106):
            session.execute("INSERT INTO t VALUES (%s)", (i,))
    server.kill()

    (manifest,) = snapshot_files(server)
    manifest.write_bytes(bytes(manifest.stat().st_size))
    server.start()
    assert "cannot be used" in server.log_text(), "nobody has looked ahead"
    assert rows(server, "b") == [(i,) for i in range(1, 106)]
    healthy(server)


def snapshot_files(cluster: Cluster) -> list[Path]:
    """Manifests, oldest first."""
    return sorted((cluster.data / "agent_branch" / "snapshots").glob("*.manifest"))


def epoch_files(cluster: Cluster, name: str) -> list[Path]:
    oid = cluster.scalar("SELECT oid FROM pg_database WHERE datname = %s", (name,))
    return sorted((cluster.data / "agent_branch" / "images" / str(oid)).glob("*.images"))


def values(cluster: Cluster, name: str) -> list[tuple[int, int]]:
    return cluster.sql("SELECT v, count(*)::int FROM big GROUP BY v ORDER BY v", dbname=name)


@pytest.mark.parametrize("lost", ["name", "contents", "tail", "torn old name"])
def test_manifests_lost_before_a_checkpoint(
    make_cluster: Callable[..., Cluster], lost: str
) -> None:
    """The power goes while manifests of several snapshots, of which images have been saved
    already, are not on disk, or in part; the only older snapshot of the same database was
    retired since the checkpoint."""
    server = make_cluster("late", {"checkpoint_timeout": "1h", "agent_branch.sweep_interval": 0})
    create_database(
        server, "p", "CREATE TABLE big AS SELECT g AS i, 0 AS v FROM generate_series(1, 5000) g"
    )
    run(server, "p", "UPDATE big SET v = 2")
    server.sql("CHECKPOINT")
    server.sql("SELECT branch.snapshot('p', 'retired')")
    server.sql("SELECT branch.drop_snapshot('retired')")
    server.sql("SELECT * FROM branch.gc()")
    assert snapshot_files(server) == []
    create(server, "b", "p")
    run(server, "p", "UPDATE big SET v = 3")
    create(server, "c", "p")  # flushes p: images for b
    run(server, "p", "UPDATE big SET v = 4")
    run(server, "b", "UPDATE big SET v = 10 WHERE i = 1")
    create(server, "child", "b")
    run(server, "b", "UPDATE big SET v = 11 WHERE i = 1")
    fresh = snapshot_files(server)
    assert len(fresh) == 3
    server.kill()

    for file in fresh:
        data = file.read_bytes()
        if lost == "name":
            file.unlink()
        elif lost == "contents":
            file.write_bytes(b"")
        else:
            file.write_bytes(data[:512] + bytes(len(data) - 512))
        if lost == "torn old name":
            file.rename(file.with_suffix(".pending"))
    server.start()
    server.sql("SELECT * FROM branch.gc()")
    assert values(server, "b") == [(2, 4999), (11, 1)]
    assert values(server, "c") == [(3, 5000)]
    assert values(server, "child") == [(2, 4999), (10, 1)]
    run(server, "p", "UPDATE big SET v = 5", "CHECKPOINT")
    server.restart()
    assert values(server, "b") == [(2, 4999), (11, 1)]
    assert values(server, "c") == [(3, 5000)]
    assert values(server, "p") == [(5, 5000)]
    healthy(server)
    for name in ("child", "b", "c"):
        server.sql("SELECT branch.delete(%s, hard => true)", (name,))
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server, "by torn manifests")


@pytest.mark.parametrize("lost", ["name", "contents"])
def test_relation_kept_for_a_snapshot_that_was_lost(
    make_cluster: Callable[..., Cluster], lost: str
) -> None:
    """A snapshot ends, another one begins, and what only that one has is dropped; the power goes
    when the note that the files are kept is on disk and the snapshot's manifest is not.  Replay
    comes to the end of the first before it has made the second again."""
    server = make_cluster("kept", {"checkpoint_timeout": "1h", "agent_branch.sweep_interval": 0})
    create_database(
        server, "p", "CREATE TABLE big AS SELECT g AS i, 0 AS v FROM generate_series(1, 5000) g"
    )
    create(server, "old", "p")
    run(server, "p", *MADE)
    server.sql("CHECKPOINT")
    server.sql("SELECT branch.snapshot('p', 'retired')")
    run(server, "p", "UPDATE big SET v = 1")
    server.sql("SELECT branch.snapshot('p', 'another')")  # flushes p: images for "old"
    for name in ("another", "retired"):
        server.sql(f"SELECT branch.drop_snapshot('{name}')")
    server.sql("SELECT * FROM branch.gc()")
    before = snapshot_files(server)
    create(server, "b", "p")
    run(server, "p", "DROP TABLE t")
    server.kill()

    (manifest,) = set(snapshot_files(server)) - set(before)
    images = manifest.parent.parent / "images"
    (epoch,) = images.glob(f"*/{manifest.stem}.images")
    epoch.write_bytes(b"")
    if lost == "name":
        manifest.unlink()
    else:
        manifest.write_bytes(b"")
    server.start()
    assert rows(server, "b") == [(i,) for i in range(1, 101)]
    assert values(server, "old") == [(0, 5000)]
    healthy(server)


@pytest.mark.parametrize("size", [0, 4096])
def test_epoch_file_that_was_not_finished(make_cluster: Callable[..., Cluster], size: int) -> None:
    """Killed while the file of an epoch was being made, or the power went: it is made anew,
    and snapshots before it are as good as they were."""
    server = make_cluster("unmade", {"checkpoint_timeout": "1h"})
    create_database(server, "p", *MADE)
    create(server, "kept", "p")
    run(server, "p", "INSERT INTO t VALUES (101)")
    server.sql("CHECKPOINT")
    create(server, "b", "p")
    file = epoch_files(server, "p")[-1]
    server.kill()
    data = file.read_bytes()
    assert len(data) == 8192, "images have been saved in it"
    file.write_bytes(data[:size])
    server.start()
    run(server, "p", "DELETE FROM t")
    server.sql("CHECKPOINT")
    assert rows(server, "kept") == [(i,) for i in range(1, 101)]
    assert rows(server, "b") == [(i,) for i in range(1, 102)]
    healthy(server)


@pytest.mark.parametrize("nth", [1, 2])
def test_manifest_that_cannot_be_synced(
    make_cluster: Callable[..., Cluster], faults: Faults, nth: int
) -> None:
    """A checkpoint cannot make a manifest, or its name, durable: the snapshot is given up, the
    checkpoint and the parent go on."""
    settings = {"fsync": "on", "checkpoint_timeout": "1h", "bgwriter_lru_maxpages": "0"}
    server = make_cluster("eio", settings)
    create_database(server, "p", *MADE)
    faults.restart(server, "fast")
    create(server, "b", "p")
    faults.arm("agent_branch/snapshots", nth, errno.EIO, only="fsync")
    run(server, "p", "INSERT INTO t VALUES (101)", "CHECKPOINT")
    assert faults.disarm()[1] == 1
    for _ in range(2):
        assert rows(server, "p") == [(i,) for i in range(1, 102)]
        with pytest.raises(psycopg.Error, match="cannot be read any more"):
            rows(server, "b")
        server.restart("immediate")
    assert "PANIC" not in server.log_text()
    create(server, "c", "p")
    assert rows(server, "c") == [(i,) for i in range(1, 102)]
    for name in ("b", "c"):
        server.sql("SELECT branch.delete(%s, hard => true)", (name,))
    server.sql("SELECT * FROM branch.gc()")
    healthy(server)
    nothing_left(server, "by a failed sync")


@pytest.fixture
def cut_disk(tmp_path: Path) -> Iterator[Path]:
    """An XFS of its own whose unwritten log can be thrown away."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    if shutil.which("mkfs.xfs") is None or shutil.which("xfs_io") is None:
        pytest.skip("no xfsprogs")
    image = tmp_path / "xfs.img"
    with image.open("wb") as f:
        f.truncate(1024 * MB)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    place = Path(f"/var/tmp/ab-cut-{os.getpid()}")
    place.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"cannot mount an XFS: {mounted.stderr.strip()}")
    (place / "image").symlink_to(image)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def cut_power(server: Cluster, place: Path) -> None:
    """What was not synced is gone; the server starts on what is left."""
    image = (place / "image").readlink()
    server.kill()
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(place)], check=True)
    mount_again(place, "-o", "loop", str(image))
    server.start()


def test_durable_after_a_checkpoint(cut_disk: Path) -> None:
    """Branches made before a checkpoint and after it, by several ways for pages of
    pg_database to reach the disk; then the power goes."""
    server = Cluster.create(cut_disk, "cut", {"fsync": "on", "checkpoint_timeout": "1h"})
    try:
        create_database(server, "p", *MADE)
        subprocess.run(["sync", "-f", str(cut_disk)], check=True)  # initdb did not
        expected: dict[str, int] = {}
        last = 100

        def make(*names: str) -> None:
            """Each of a snapshot of its own."""
            nonlocal last
            for name in names:
                last += 1
                run(server, "p", f"INSERT INTO t VALUES ({last})")
                create(server, name, "p")
                expected[name] = last

        make("a1", "a2")
        server.sql("CHECKPOINT")
        make("b1")
        cut_power(server, cut_disk)
        make("c1", "c2")
        server.sql("VACUUM FULL pg_database")
        server.sql("CHECKPOINT")
        cut_power(server, cut_disk)
        with server.connect() as one, server.connect() as other:
            # committed after the checkpoint that left its record behind
            one.execute("BEGIN")
            one.execute("SELECT branch.create('d1', 'p')")
            other.execute("CHECKPOINT")
            one.execute("COMMIT")
        expected["d1"] = last
        cut_power(server, cut_disk)
        # pg_database grows by pages, which alone makes nothing durable
        batch = [f"e{number:03d}" for number in range(80)]
        server.sql("SELECT branch.create_many(%s, 'p')", (batch,))
        expected |= {batch[0]: last, batch[-1]: last}
        server.sql("CHECKPOINT")
        cut_power(server, cut_disk)
        assert {*expected, *batch} <= set(branches(server))
        for name, newest in expected.items():
            assert rows(server, name) == [(i,) for i in range(1, newest + 1)]
        healthy(server)
        nothing_left(server, "by power cuts")
    finally:
        server.destroy()


def test_synced_by_a_crash_on_a_file_system_of_its_own(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """The server crashes before a checkpoint, and syncs file systems when it starts, not files:
    agent_branch has one that the server does not know.  What replay found there and left as it was
    is on disk when the redo pointer has moved on; then the power goes."""
    server = make_cluster(
        "mounted",
        {"fsync": "on", "checkpoint_timeout": "1h", "recovery_init_sync_method": "syncfs"},
    )
    server.stop()
    disk = FailingDisk(server.data / "agent_branch", tmp_path / "image", "xfs")
    try:
        server.start()
        create_database(server, "p", *MADE)
        server.sql("CHECKPOINT")
        create(server, "b", "p")
        server.crash()
        server.sql("CHECKPOINT")
        disk.cut(FailingDisk.DROP_ALL)
        server.kill()
        disk.restore()
        server.start()
        assert rows(server, "b") == [(i,) for i in range(1, 101)]
        healthy(server)
    finally:
        server.kill()
        disk.release()


def test_changed_map_is_durable(cut_disk: Path) -> None:
    """The directory of a branch is not synced when it is made; a relation map that is changed
    there is on disk before a checkpoint leaves its record behind, and so is its name."""
    server = Cluster.create(cut_disk, "cut", {"fsync": "on", "checkpoint_timeout": "1h"})
    try:
        create_database(server, "p", *MADE)
        subprocess.run(["sync", "-f", str(cut_disk)], check=True)
        for name in ("read", "mapped", "redone"):
            create(server, name, "p")
        server.sql("CHECKPOINT")
        assert rows(server, "read") == [(i,) for i in range(1, 101)]
        run(server, "mapped", "VACUUM FULL pg_class", "REINDEX TABLE pg_proc", "CHECKPOINT")
        map_file = directory(server, "mapped") / "pg_filenode.map"
        before = map_file.read_bytes()
        cut_power(server, cut_disk)
        assert map_file.read_bytes() == before
        run(server, "redone", "VACUUM FULL pg_class")
        cut_power(server, cut_disk)
        server.sql("CHECKPOINT")
        cut_power(server, cut_disk)
        for name in ("read", "mapped", "redone"):
            assert rows(server, name) == [(i,) for i in range(1, 101)]
        healthy(server)
    finally:
        server.destroy()


def test_snapshot_of_which_nothing_is_left(make_cluster: Callable[..., Cluster]) -> None:
    """The power goes before any file of a snapshot has reached the disk but the origin of
    its branch, from which alone is seen that replay will come past it."""
    server = make_cluster("gone", {"checkpoint_timeout": "1h", "agent_branch.sweep_interval": 0})
    create_database(server, "p", *MADE)
    create(server, "kept", "p")
    server.sql("CHECKPOINT")
    run(server, "p", "INSERT INTO t VALUES (101)")
    create(server, "b", "p")
    server.kill()
    snapshot_files(server)[-1].unlink()
    oid = origin_parent(server)
    store = server.data / "agent_branch" / "images" / oid
    sorted(store.glob("*.images"))[-1].unlink()

    server.start()
    server.sql("SELECT * FROM branch.gc()")
    run(server, "p", "DELETE FROM t", "VACUUM FREEZE t", "CHECKPOINT")
    server.sql("SELECT * FROM branch.gc()")
    server.restart()
    assert rows(server, "b") == [(i,) for i in range(1, 102)]
    assert rows(server, "kept") == [(i,) for i in range(1, 101)]
    healthy(server)


def origin_parent(cluster: Cluster) -> str:
    """The only database that has a store of images."""
    (store,) = (cluster.data / "agent_branch" / "images").iterdir()
    return store.name


@pytest.mark.parametrize("flushed", [False, True])
def test_confirmed_only_by_a_durable_record(
    make_cluster: Callable[..., Cluster], flushed: bool
) -> None:
    """Killed after a snapshot was confirmed and before that was flushed: it does not exist,
    although its manifest has its last name already.  If it was flushed it does."""
    server = make_cluster(
        "unflushed",
        {"checkpoint_timeout": "1h", "wal_writer_delay": "10s", "agent_branch.sweep_interval": 0},
    )
    create_database(server, "p", *MADE)
    run(server, "p", "INSERT INTO t VALUES (101)")
    server.sql("CHECKPOINT")
    with suppress(psycopg.OperationalError), server.connect() as taking:
        taking.execute("BEGIN")
        taking.execute("SELECT branch.snapshot('p', 's')")
        (manifest,) = snapshot_files(server)
        if flushed:
            run(server, "p", "CREATE TABLE flushing AS SELECT 1 AS i")
        server.kill()
    records = our_records(server)
    assert "20" in records, "SNAPSHOT"
    confirmed = "30" in records  # others may have flushed it, but hardly ever
    assert confirmed or not flushed
    server.start()
    assert confirmed or not manifest.exists()  # nobody needs it: it may have been removed since
    healthy(server)
    create(server, "b", "p")
    assert rows(server, "b") == [(i,) for i in range(1, 102)]
    server.sql("SELECT branch.delete('b', hard => true)")
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server, "by a snapshot that was not confirmed")


def our_records(cluster: Cluster) -> list[str]:
    """What the last start's checkpoint left to replay of ours, as pg_waldump names it."""
    redo = redo_pointer(cluster)
    start = f"{redo >> 32:X}/{redo & 0xFFFFFFFF:X}"
    wal = str(cluster.data / "pg_wal")
    text = cluster.run("pg_waldump", "-p", wal, "-s", start, check=False)
    return re.findall(r"rmgr: custom\d+ .*?desc: UNKNOWN \((\w+)\)", text)
