"""What snapshots of a living parent cost on disk, and that all of it is given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_checks import (
    BLOCK,
    below,
    calm_log,
    contents,
    create,
    create_database,
    database_dirs,
    delete,
    disk_bytes,
    drop_all_branches,
    healthy,
    nothing_left,
    oid_of,
    run,
)
from ab_cluster import Cluster, wait_for
from ab_oracle import (
    METHOD,
    SETTINGS,
    Witness,
    check_all,
    image_bytes,
    image_dir,
    plain_again,
    settle,
    usable,
)
from ab_storm import (
    Storm,
    checkpoints,
    make_parent,
)

before_images = pytest.mark.skipif(
    METHOD != "before_image", reason=f"is about before-images, not about {METHOD}"
)
FORK_OVERHEAD = 16 * 1024  # an index of images for each fork that has some
FIXED_OVERHEAD = 64 * 1024


@pytest.fixture(scope="module")
def live(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base, "livespace", {**SETTINGS, "agent_branch.sweep_interval": "0"}
    )
    yield made
    made.destroy()


def files_of(cluster: Cluster, name: str) -> dict[str, bytes]:
    """All files of relations of a database, once everything is written."""
    cluster.sql("CHECKPOINT")
    return {
        f"{place.parent.name}/{path.name}": path.read_bytes()
        for place in database_dirs(cluster, oid_of(cluster, name))
        for path in place.iterdir()
        if path.name[0].isdigit()
    }


def overwritten(before: dict[str, bytes], after: dict[str, bytes]) -> tuple[int, int]:
    """(pages that were there before and are different or gone, forks that have such)."""
    pages = forks = 0
    for name, was in before.items():
        now = after.get(name)
        if now is None:  # dropped: the file stays until nobody needs it
            continue
        changed = sum(
            was[at : at + BLOCK] != now[at : at + BLOCK] for at in range(0, len(was), BLOCK)
        )
        pages += changed
        forks += changed > 0
    return pages, forks


def allowed(pages: int, forks: int) -> int:
    return int(1.05 * pages * BLOCK) + forks * FORK_OVERHEAD + FIXED_OVERHEAD


@before_images
def test_a_snapshot_copies_nothing(live: Cluster) -> None:
    """A branch of a parent of 30 MB takes next to nothing; its parent's pages are saved when
    they are overwritten, each once, and extending the parent saves nothing."""
    parent = create_database(
        live,
        "big",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('t', 900) FROM generate_series(1, 30000) AS i",
        "VACUUM (FREEZE, ANALYZE)",
    )
    settle(live, parent)
    live.sql("CHECKPOINT")
    home = live.data / "agent_branch"
    clean = disk_bytes(below(home))
    create(live, "big1", parent)
    live.sql("CHECKPOINT")
    took = disk_bytes(below(home)) - clean
    assert took < 512 * 1024, f"a branch of 30 MB took {took} bytes"
    before = files_of(live, parent)
    for turn in range(4):  # the same pages each time
        run(live, parent, f"UPDATE t SET v = repeat('{turn}', 900) WHERE id % 40 = 0", "CHECKPOINT")
    run(
        live,
        parent,
        "INSERT INTO t SELECT i, repeat('n', 900) FROM generate_series(30001, 36000) AS i",
    )
    pages, forks = overwritten(before, files_of(live, parent))
    assert 500 < pages < 2500
    used = image_bytes(live, parent)
    assert pages * BLOCK * 0.5 < used <= allowed(pages, forks), f"{used} bytes for {pages} pages"
    assert live.sql("SELECT count(*), count(DISTINCT v) FROM t", dbname="big1") == [(30000, 1)]

    # A second snapshot saves what is overwritten after it, once more; the first one needs
    # nothing twice.
    create(live, "big2", parent)
    before = files_of(live, parent)
    at_second = image_bytes(live, parent)
    run(live, parent, "UPDATE t SET v = 'second' WHERE id % 40 = 1", "CHECKPOINT")
    pages, forks = overwritten(before, files_of(live, parent))
    used = image_bytes(live, parent) - at_second
    assert used <= allowed(pages, forks), f"{used} bytes for {pages} pages"
    create(live, "big3", parent)
    run(live, parent, "UPDATE t SET v = 'third' WHERE id % 40 = 2", "CHECKPOINT")

    # Space comes back with the snapshots that needed it.
    all_three = image_bytes(live, parent)
    delete(live, "big1")
    live.sql("SELECT * FROM branch.gc()")
    assert image_bytes(live, parent) < all_three - 500 * BLOCK
    assert live.scalar("SELECT count(*) FROM t WHERE v = 'second'", dbname="big2") == 0
    assert live.scalar("SELECT count(*) FROM t WHERE v = 'second'", dbname="big3") > 600
    for name in ("big2", "big3"):
        delete(live, name)
    live.sql("SELECT * FROM branch.gc()")
    plain_again(live, parent)
    nothing_left(live)


def test_the_middle_one_goes(live: Cluster) -> None:
    """Of three snapshots the middle one goes: images of its time that the oldest needs
    stay (M32), and only the others' space comes back."""
    parent = create_database(
        live,
        "mid",
        "CREATE EXTENSION pageinspect",
        "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (fillfactor = 50)",
        "INSERT INTO t SELECT i, repeat('0', 200) FROM generate_series(1, 4000) AS i",
    )
    expected = {}
    for turn in range(1, 6):
        create(live, f"mid{turn}", parent)
        expected[f"mid{turn}"] = contents(live, parent)
        run(
            live,
            parent,
            f"UPDATE t SET v = repeat('{turn}', 200) WHERE id % 5 IN ({turn % 5}, {(turn + 2) % 5})"
            " OR id > 3900",
            "VACUUM t",
            "CHECKPOINT",
        )
    for name in ("mid3", "mid2", "mid5", "mid1"):
        delete(live, name)
        del expected[name]
        live.sql("SELECT * FROM branch.gc()")
        healthy(live)
        for other, rows in expected.items():
            assert contents(live, other) == rows, f'"{other}" after "{name}" went'
        if name == "mid5":
            live.crash()
    run(live, parent, "DROP TABLE t")
    assert contents(live, "mid4") == expected["mid4"]
    delete(live, "mid4")
    live.sql("SELECT * FROM branch.gc()")
    plain_again(live, parent)


def test_a_parent_without_snapshots_is_plain(live: Cluster, seed: int) -> None:
    """Files of tables that the parent has dropped, truncated or rewritten stay while a
    snapshot needs them, through restarts; with the last snapshot all of them go, and the
    parent has the files of a plain database and nothing else."""
    parent = make_parent(live, "plain")
    dropped = {
        node
        for (node,) in live.sql(
            "SELECT relfilenode::int8 FROM pg_class WHERE relname IN ('a', 'a_k', 'b_ts')",
            dbname=parent,
        )
    }
    witnesses = [Witness.make(live, "plain1", parent)]
    run(live, parent, "DROP INDEX a_k", "TRUNCATE a", "VACUUM FULL b", "CHECKPOINT")
    with Storm(live, parent, f"{seed}/plain") as storm, checkpoints(live, seed):
        storm.run(60)
        with storm.held():
            witnesses.append(Witness.make(live, "plain2", parent))
        storm.run(60)
    check_all(live, witnesses, "after the storm")
    live.restart()
    live.crash()
    check_all(live, witnesses, "after restarts")
    in_use = {node for (node,) in live.sql("SELECT relfilenode::int8 FROM pg_class", dbname=parent)}
    assert not dropped & in_use, "a number was given away that a snapshot still needs"
    delete(live, "plain1")
    live.sql("SELECT * FROM branch.gc()")
    witnesses[1].check(live, "after the other one went")
    delete(live, "plain2")
    live.sql("SELECT * FROM branch.gc()")
    settle(live, parent)
    plain_again(live, parent)
    nothing_left(live)
    usable(live, parent)
    run(live, "postgres", f"DROP DATABASE {parent}", "SELECT * FROM branch.gc()", "CHECKPOINT")


def test_numbers_of_dropped_relations(live: Cluster, rng: random.Random) -> None:
    """OIDs come round again to numbers of relations that the parent has dropped and a
    snapshot still needs: new tables get other numbers, empty ones, and the branch keeps its
    rows (F7 c, F12)."""
    parent = create_database(
        live,
        "numbers",
        *(
            f"CREATE TABLE t{n} AS SELECT i AS id, 't{n}' AS v FROM generate_series(1, 500) AS i"
            for n in range(8)
        ),
    )
    taken = {
        node
        for (node,) in live.sql(
            "SELECT relfilenode::int8 FROM pg_class WHERE relname LIKE 't_'", dbname=parent
        )
    }
    live.stop()  # before there are snapshots: they would rightly distrust this
    live.run("pg_resetwal", "-o", str(min(taken) - 60), "-D", str(live.data))
    live.start()
    create(live, "numbers_w", parent)
    before = contents(live, "numbers_w")
    run(live, parent, *(f"DROP TABLE t{n}" for n in range(7)), "TRUNCATE t7", "CHECKPOINT")
    made = set()
    with live.connect(parent) as conn:
        for n in range(80):
            conn.execute(f"CREATE TABLE n{n} (id int, v text)")
            assert conn.execute(f"SELECT count(*) FROM n{n}").fetchall() == [(0,)]
            conn.execute(f"INSERT INTO n{n} VALUES ({n}, 'new')")
            made |= {
                node
                for (node,) in conn.execute(
                    "SELECT relfilenode::int8 FROM pg_class WHERE relname = %s", (f"n{n}",)
                ).fetchall()
            }
    assert min(made) < min(taken) < max(made), "the numbers did not come round"
    if METHOD == "before_image":
        assert not made & taken
    assert contents(live, "numbers_w") == before
    live.crash()
    assert contents(live, "numbers_w") == before
    assert live.scalar("SELECT count(*) FROM n79", dbname=parent) == 1
    delete(live, "numbers_w")
    live.sql("SELECT * FROM branch.gc()")
    plain_again(live, parent)
    with live.connect(parent) as conn:  # and now the numbers are free
        for n in range(80):
            conn.execute(f"DROP TABLE n{n}")
    live.sql("CHECKPOINT")
    plain_again(live, parent)


def test_vacuum_truncates_and_extends(live: Cluster) -> None:
    """Vacuum cuts a tail off that a snapshot needs; the parent grows over it again; more
    snapshots in between, each with another length (scenario 14)."""
    parent = create_database(
        live,
        "tail",
        "CREATE EXTENSION pageinspect",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat('0', 400) FROM generate_series(1, 3000) AS i",
    )
    expected = {}
    for turn in range(1, 5):
        name = create(live, f"tail{turn}", parent)
        expected[name] = contents(live, parent)
        keep = 2600 - 600 * turn
        run(
            live,
            parent,
            f"DELETE FROM t WHERE id > {keep}",
            "VACUUM (TRUNCATE) t",
            "CHECKPOINT" if turn % 2 else "SELECT 1",
        )
        name = create(live, f"cut{turn}", parent)
        expected[name] = contents(live, parent)
        if turn == 2:
            live.crash()
        run(
            live,
            parent,
            f"INSERT INTO t SELECT i, repeat('{turn}', 400)"
            f" FROM generate_series({keep + 1}, {keep + 1500 - turn * 100}) AS i",
        )
        if turn == 3:
            live.crash()
        for other, rows in expected.items():
            assert contents(live, other) == rows, f'"{other}" in turn {turn}'
    length = live.scalar("SELECT pg_relation_size('t')", dbname=parent)
    assert length < 3000 * 450
    drop_all_branches(live)
    plain_again(live, parent)


@before_images
def test_the_parent_goes(live: Cluster) -> None:
    """DROP DATABASE of a parent is refused while it has branches, and takes everything with
    it afterwards, also when nobody called gc in between."""
    parent = make_parent(live, "going")
    oid = oid_of(live, parent)
    create(live, "going1", parent)
    run(live, parent, "UPDATE a SET k = 0", "DROP TABLE b", "CHECKPOINT")
    assert image_dir(live, oid).is_dir()
    delete(live, "going1")
    settle(live, parent)
    live.sql(f"DROP DATABASE {parent}")
    live.sql("SELECT * FROM branch.gc()")
    live.sql("CHECKPOINT")
    wait_for(lambda: not image_dir(live, oid).exists(), what="the images to go")
    assert database_dirs(live, oid) == []
    nothing_left(live)
    healthy(live)


def test_nothing_stays(live: Cluster) -> None:
    """After all these tests nothing of any snapshot is left."""
    drop_all_branches(live)
    nothing_left(live)
    home = live.data / "agent_branch"
    left = [str(path) for path in home.glob("images/*")] + [
        str(path) for path in home.glob("snapshots/*")
    ]
    assert left == []
    healthy(live)
    calm_log(live)
