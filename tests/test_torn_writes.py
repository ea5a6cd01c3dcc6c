"""What a disk has after a power cut of writes that were not synced: any of their sectors."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ab_buffers import ROOMY
from ab_checks import (
    BLOCK,
    RELATION_FILE,
    amcheck,
    calm_log,
    contents,
    create,
    create_database,
    healthy,
    main_fork,
    oid_of,
    run,
)
from ab_cluster import Cluster
from ab_oracle import HELPERS, METHOD, SETTINGS, Witness, check_all, image_dir

Make = Callable[..., Cluster]

SECTOR = 512
GROUP = 128  # blocks of an .images file, of which the first describes the others
HEAD = 64  # its first bytes: how much of the group is known to be on disk


def copy_of(base: Path, stopped: Cluster, name: str) -> Cluster:
    """A server, not started, over a copy of another's data directory."""
    place = base / f"{name}.copy"
    command = ["cp", "-a", "--reflink=auto", str(stopped.data), str(place)]
    subprocess.run(command, check=True)
    return Cluster.from_data(base, name, place, start=False)


def sectors_of(was: bytes, now: bytes, rng: random.Random, chance: float) -> bytes:
    """What a disk has when of what was written to a file only some sectors arrived."""
    length = max(len(was), len(now))
    was, now = was.ljust(length, b"\0"), now.ljust(length, b"\0")
    return b"".join(
        (now if rng.random() < chance else was)[at : at + SECTOR] for at in range(0, length, SECTOR)
    )


def with_heads_of(images: bytes, was: bytes) -> bytes:
    """Heads of groups, and the file's header, are written after what they speak of."""
    work = bytearray(images)
    work[:BLOCK] = was[:BLOCK]
    for at in range(BLOCK, len(work), GROUP * BLOCK):
        work[at : at + HEAD] = was[at : at + HEAD].ljust(HEAD, b"\0")
    return bytes(work)


def spoil_caches(cluster: Cluster, place: Path, rng: random.Random) -> None:
    """Index files are never synced, and anybody may have died while he made a file."""
    indexes = sorted(place.glob("index.*"))
    assert indexes
    for path in indexes:
        match rng.randrange(4):
            case 0:
                path.unlink()
            case 1:
                os.truncate(path, rng.randrange(path.stat().st_size + 1))
            case 2:
                path.write_bytes(rng.randbytes(rng.randrange(20000)))
                Cluster.give(path)
    for name in ("tmp.4711", f"tmp.{indexes[0].name}"):
        (place / name).write_bytes(rng.randbytes(rng.randrange(9000)))
        Cluster.give(place / name)


@pytest.mark.skipif(METHOD != "before_image", reason=f"is about before-images, not about {METHOD}")
def test_power_cut(make_cluster: Make, cluster_base: Path, seed: int, rng: random.Random) -> None:
    """A power cut while images are appended, of which any sectors arrived, or while the pages
    whose images are on disk are overwritten, of which any sectors arrived; index files are
    gone, short or rubbish, and files half made lie about (scenarios 2 and 3)."""
    live = make_cluster("power", ROOMY)
    create_database(
        live,
        "p",
        *HELPERS,
        "CREATE TABLE t (id int PRIMARY KEY, k int, v text) WITH (fillfactor = 90)",
        "INSERT INTO t SELECT i, i, repeat('0', 300) FROM generate_series(1, 6000) AS i",
        "CREATE INDEX t_k ON t (k)",
        "VACUUM (FREEZE)",
    )
    witnesses = []
    for turn in range(2):
        witnesses.append(Witness.make(live, f"w{turn}", "p"))
        run(live, "p", f"UPDATE t SET v = repeat('{turn}', 300) WHERE id % 900 < 200", "CHECKPOINT")
    run(live, "p", "UPDATE t SET k = k + 1, v = repeat('n', 300) WHERE id % 900 < 700",
        "DELETE FROM t WHERE id % 13 = 0")  # fmt: skip
    expected = contents(live, "p")
    tables = [main_fork(live, "p", name).relative_to(live.data) for name in ("t", "t_pkey", "t_k")]
    store = image_dir(live, "p")
    live.stop("immediate")

    # What would have been written, had the server gone on.
    newest = max(store.glob("*.images")).relative_to(live.data)
    twin = copy_of(cluster_base, live, "twin")
    twin.start()
    twin.stop()
    old = {path: (live.data / path).read_bytes() for path in (newest, *tables)}
    new = {path: (twin.data / path).read_bytes() for path in (newest, *tables)}
    twin.destroy()
    assert len(new[newest]) > len(old[newest]) + 100 * BLOCK, "the twin saved no images"
    for turn in range(4):
        cut = copy_of(cluster_base, live, f"cut{turn}")
        chance = rng.choice((0.1, 0.5, 0.9, 0.99))
        if turn % 2:
            heads = rng.choice((old, new))[newest]
            damaged = {newest: with_heads_of(new[newest], heads)}
            damaged |= {p: sectors_of(old[p], new[p], rng, chance) for p in tables}
        else:
            torn = with_heads_of(sectors_of(old[newest], new[newest], rng, chance), old[newest])
            torn = torn[: rng.randint(len(old[newest]), len(torn))]
            damaged = {newest: torn + rng.randbytes(rng.choice((0, 100, 64, 5000, 20000)))}
        for path, content in damaged.items():
            (cut.data / path).write_bytes(content)
        spoil_caches(cut, (cut.data / newest).parent, rng)
        cut.start()
        when = f"after cut {turn}, {chance} of the sectors arrived"
        check_all(cut, witnesses, when)
        assert contents(cut, "p") == expected, when
        assert not list((cut.data / newest).parent.glob("tmp.*"))
        healthy(cut)
        witnesses.append(Witness.make(cut, "later", "p"))
        run(cut, "p", "UPDATE t SET v = 'later'", "VACUUM t", "CHECKPOINT")
        check_all(cut, witnesses, f"{when}, and the parent went on")
        cut.crash()
        check_all(cut, witnesses, f"{when}, and after another crash")
        healthy(cut)
        calm_log(cut)
        witnesses.pop()
        cut.destroy()


# ---- pages of branches --------------------------------------------------------------------------

# Few buffers: what is written reaches the files, between two checkpoints.
WRITTEN: dict[str, object] = {
    **SETTINGS,
    "checkpoint_timeout": "1h",
    "max_wal_size": "4GB",
    "agent_branch.sweep_interval": "0",
}
Files = dict[Path, bytes]


def files_of(cluster: Cluster, oids: list[int]) -> Files:
    """Contents of the files that these branches have of their own."""
    return {
        path.relative_to(cluster.data): path.read_bytes()
        for oid in oids
        for path in (cluster.data / "base" / str(oid)).iterdir()
        if RELATION_FILE.match(path.name)
    }


def write_in(cluster: Cluster, name: str, rng: random.Random) -> None:
    """Change inherited pages and own ones, their maps, the end of the table, its indexes."""
    tag, low = rng.randrange(1 << 30), rng.randrange(1, 2500)
    run(
        cluster,
        name,
        f"UPDATE t SET k = k + 1, v = '{tag}' WHERE id % 17 = {tag % 17}",
        f"DELETE FROM t WHERE id BETWEEN {low} AND {low + 300}",
        "VACUUM t",
        f"INSERT INTO t SELECT i, i, '{tag}' FROM generate_series(10001, 10900) AS i"
        " ON CONFLICT DO NOTHING",
        f"UPDATE t SET v = repeat('{tag}', 20) WHERE id BETWEEN {low - 200} AND {low + 500}",
        "DELETE FROM tail WHERE i > (SELECT max(i) - 1500 FROM tail)",
        "VACUUM (TRUNCATE) tail",
        "INSERT INTO tail SELECT max(i) + 1 FROM tail",
        "SELECT nextval('s') FROM generate_series(1, 40)",
        rng.choice(("REINDEX TABLE t", "TRUNCATE other", "CREATE INDEX ON other (i)")),
    )


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
def test_torn_pages_of_branches(
    make_cluster: Make, cluster_base: Path, seed: int, rng: random.Random, checksums: bool
) -> None:
    """A branch and a branch of it are written, between two checkpoints, in pages that they
    inherit and in pages that they have; the parent was written a moment before they were made.
    Of every write to their files since the checkpoint only some sectors arrived.  Recovery
    mends all of it: tables, indexes, maps, sequences (scenario 2)."""
    options = ("--data-checksums",) if checksums else ()
    live = make_cluster("torn", WRITTEN, initdb_args=options)
    create_database(
        live,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, k int, v text) WITH (fillfactor = 90)",
        "INSERT INTO t SELECT i, i, repeat('o', 200) FROM generate_series(1, 3000) AS i",
        "CREATE INDEX t_k ON t (k)",
        "CREATE TABLE tail AS SELECT generate_series(1, 8000) AS i",
        "CREATE TABLE other AS SELECT generate_series(1, 2000) AS i",
        "CREATE SEQUENCE s",
        "VACUUM",
    )
    create(live, "b", "p")
    write_in(live, "b", rng)
    live.sql("CHECKPOINT")
    oids = [oid_of(live, "b")]
    old = files_of(live, oids)
    run(live, "p", "UPDATE t SET v = 'a moment ago' WHERE id % 3 = 0")
    create(live, "d", "p")
    write_in(live, "b", rng)
    create(live, "c", "b")
    for name in ("c", "d", "b"):
        write_in(live, name, rng)
    names = ["b", "c", "d", "p"]
    expected = {name: contents(live, name) for name in names}
    oids = [oid_of(live, name) for name in "bcd"]
    live.kill()
    new = files_of(live, oids)
    grown = sum(map(len, new.values())) - sum(map(len, old.values()))
    assert grown > 200 * BLOCK, "hardly anything was written"
    cut = copy_of(cluster_base, live, "cut")
    chance = rng.choice((0.0, 0.1, 0.5, 0.9))
    for path, written in new.items():
        (cut.data / path).write_bytes(sectors_of(old.get(path, b""), written, rng, chance))
    cut.start()
    when = f"{chance} of the sectors arrived"
    for name in names:
        assert contents(cut, name) == expected[name], f'"{name}", {when}'
    for name in names:
        write_in(cut, name, rng)
    after = {name: contents(cut, name) for name in names}
    cut.crash()
    for name in names:
        assert contents(cut, name) == after[name], f'"{name}", {when}, and another crash'
    amcheck(cut, *names)
    healthy(cut)
    calm_log(cut)


def test_page_that_is_written_for_a_branch(make_cluster: Make) -> None:
    """Creating a branch has a page of pg_database written that it does not change, so that a
    checkpoint waits for the branch's files.  A promoted standby may have hint bits in it that
    are neither on disk nor in WAL; with data checksums a torn write of it would leave a server
    that nobody can connect to.  So then it is in WAL, once in each checkpoint cycle."""
    server = make_cluster("hints", ROOMY, initdb_args=("--data-checksums",))
    create_database(server, "p")
    # The new row does not go into that page.
    names = [f"b{n}" for n in range(80)]
    server.sql("SELECT branch.create_many(%s, 'p')", (names,))
    server.sql("SELECT count(*) FROM pg_database")
    server.sql("CHECKPOINT")
    first = server.scalar("SELECT redo_lsn::text FROM pg_control_checkpoint()")
    create(server, "new", "p")
    create(server, "newer", "p")
    last = server.scalar("SELECT pg_current_wal_flush_lsn()::text")
    log = server.run("pg_waldump", "-p", str(server.data / "pg_wal"), "-s", first, "-e", last)
    records = [line for line in log.splitlines() if "rel 1664/0/1262 blk 0" in line]
    assert len(records) == 1, "\n".join(records)
    assert "FPW" in records[0]
