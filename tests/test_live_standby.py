"""Standbys, base backups and point-in-time recovery of a parent with living snapshots."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_archive import archive_all, archiving, copy_of, is_ours, number, positions, reach, recover
from ab_checks import (
    amcheck,
    branches,
    calm_log,
    create,
    delete,
    healthy,
    nothing_left,
    replays_calmly,
    run,
)
from ab_cluster import LONG, Cluster
from ab_oracle import (
    SETTINGS,
    Witness,
    check_all,
    rows_of,
    sqlstate,
    usable,
)
from ab_storm import (
    Storm,
    checkpoints,
    make_parent,
)

REPLICATED: dict[str, object] = {
    **SETTINGS,
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "max_standby_streaming_delay": "-1",
    "max_standby_archive_delay": "-1",
    "wal_keep_size": "1GB",
}


def test_standby_of_a_living_parent(make_cluster: Callable[..., Cluster], seed: int) -> None:
    """A standby replays a storm with snapshots in it, is read meanwhile, is stopped and killed
    in the middle, and is promoted: its branches are page by page what the primary's parent
    was, before and after, and the promoted parent goes on being branched."""
    primary = make_cluster("liveprimary", REPLICATED)
    parent = make_parent(primary, "p")
    witnesses = [Witness.make(primary, "before", parent)]
    with Storm(primary, parent, f"{seed}/before") as storm:
        storm.run(30)
    standby = primary.standby("livereplica")
    events = ("none", "crash", "restart", "restartpoint")
    with Storm(primary, parent, f"{seed}/standby") as storm, checkpoints(primary, seed):
        for turn, event in enumerate(events):
            storm.run(25)
            with storm.held():
                witnesses.append(Witness.make(primary, f"w{turn}", parent))
            storm.run(25)
            if event == "crash":
                standby.crash()
            elif event == "restart":
                standby.restart("fast")
            elif event == "restartpoint":
                primary.sql("CHECKPOINT")
                standby.sql("CHECKPOINT")
            primary.wait_caught_up(standby)
            check_all(standby, witnesses, f"on the standby, turn {turn} ({event})")
        primary.sql("SELECT branch.delete('w1', hard => true)")
        primary.sql("SELECT * FROM branch.gc()")
        del witnesses[2]
        storm.run(25)
    check_all(primary, witnesses, "on the primary")
    primary.wait_caught_up(standby)
    check_all(standby, witnesses, "on the standby, at the end")
    expected = rows_of(primary, parent)
    primary.kill()
    replays_calmly(standby)
    standby.promote()
    check_all(standby, witnesses, "after promotion")
    assert rows_of(standby, parent) == expected
    for turn in range(3):
        with Storm(standby, parent, f"{seed}/promoted{turn}") as storm, checkpoints(standby, seed):
            storm.run(20)
            with storm.held():
                witnesses.append(Witness.make(standby, f"promoted{turn}", parent))
            storm.run(20)
            standby.crash()
        check_all(standby, witnesses, f"after crash {turn} of the promoted one")
    healthy(standby)
    standby.sql("SELECT * FROM branch.gc()")
    nothing_left(standby)
    usable(standby, parent)
    amcheck(standby, parent, "before", "promoted0")
    calm_log(standby)


# ---- backups ---------------------------------------------------------------------------------


@pytest.fixture
def archived(make_cluster: Callable[..., Cluster], cluster_base: Path) -> tuple[Cluster, Path]:
    archive = cluster_base / "live-archive"
    # without fsync: what is shown is where replay stops
    server = make_cluster("livearchived", {**REPLICATED, **archiving(archive), "fsync": "off"})
    make_parent(server, "p")
    return server, archive


def right_or_lost(cluster: Cluster, witness: Witness, when: str) -> bool:
    """The branch is what it was, or it answers XX001.  Is it the former?"""
    position = len(cluster.log_text())
    try:
        witness.check(cluster, when)
    except psycopg.Error as error:
        refusal = error
    else:
        return True
    code = sqlstate(cluster, witness.name, refusal, position)
    assert code == "XX001", f'"{witness.name}": {code} {refusal}'
    return False


def test_backup_while_snapshots_are_taken(archived: tuple[Cluster, Path], seed: int) -> None:
    """A slow base backup is taken while the parent is written, cut, dropped from and snapshots
    of it are taken, so that pages are copied after they were overwritten and the store before
    it had them.  Restored to its own end and to the archive's, no branch has a wrong page;
    those from before the backup have all of them."""
    server, archive = archived
    with Storm(server, "p", f"{seed}/backup") as storm, checkpoints(server, seed):
        storm.run(30)
        with storm.held():
            older = [Witness.make(server, "older1", "p")]
        storm.run(30)
        with storm.held():
            older.append(Witness.make(server, "older2", "p"))
        copy = server.root / "slow"
        taken = threading.Thread(
            target=server.backup, args=(copy, "--max-rate=10M", "--no-sync"), daemon=True
        )
        taken.start()
        during: list[Witness] = []
        while taken.is_alive() and len(during) < 8:
            storm.run(12)
            with storm.held():
                during.append(Witness.make(server, f"during{len(during)}", "p"))
        taken.join(LONG)
        assert not taken.is_alive()
        print(f"{len(during)} snapshots during the backup")
        storm.run(40)
    expected = rows_of(server, "p")
    archive_all(server)
    copies = [copy, copy_of(copy, "slow2")]

    end = recover(server, archive, copies[0], "toend", "promote", recovery_target_name="end")
    check_all(end, older, "restored to the end of the archive")
    good = [right_or_lost(end, witness, "restored to the end") for witness in during]
    print(f"taken during the backup: {sum(good)} of {len(good)} are right, the rest lost")
    assert rows_of(end, "p") == expected
    end.crash()
    check_all(end, older, "restored and crashed")
    for witness in during:
        right_or_lost(end, witness, "restored and crashed")
    with Storm(end, "p", f"{seed}/restored") as storm:
        storm.run(20)
        with storm.held():
            newest = Witness.make(end, "newest", "p")
        storm.run(30)
    check_all(end, [*older, newest], "restored and written")
    usable(end, "p")
    calm_log(end)
    end.destroy()

    alone = recover(server, archive, copies[1], "own", "promote", recovery_target="immediate")
    check_all(alone, older, "restored to the end of the backup")
    for witness in during:
        if witness.name in branches(alone):
            right_or_lost(alone, witness, "restored to the end of the backup")
    usable(alone, "p")
    calm_log(alone)
    alone.destroy()


def test_copied_while_a_backup_is_taken(archived: tuple[Cluster, Path]) -> None:
    """A snapshot is a copy and is taken after the backup has passed its directory: the
    backup cannot have it.  A branch of it says so, with XX001, and can be deleted."""
    server, archive = archived
    with server.connect() as conn:
        conn.execute("SELECT pg_backup_start('by hand', true)")
        copy = copy_of(server.data, "byhand")
        conn.execute("SET agent_branch.snapshot_method = copy")
        conn.execute("SELECT branch.create('during', 'p')")
        conn.execute("SELECT branch.create('below', 'during')")
        row = conn.execute("SELECT labelfile FROM pg_backup_stop()").fetchone()
        assert row is not None
    (copy / "backup_label").write_text(row[0])
    Cluster.give(copy / "backup_label")
    expected = rows_of(server, "p")
    archive_all(server)
    restored = recover(server, archive, copy, "byhand", "promote", recovery_target_name="end")
    for turn in range(2):
        for name in ("during", "below"):
            position = len(restored.log_text())
            with pytest.raises(psycopg.Error) as caught:
                restored.connect(name)
            assert sqlstate(restored, name, caught.value, position) == "XX001", str(caught.value)
            text = f"{caught.value}\n{restored.log_text()[position:]}"
            assert "DETAIL:  The snapshot was taken while the files" in text, text
            assert "HINT:  Delete the branch" in text, text
        if turn == 0:
            restored.crash()
    assert rows_of(restored, "p") == expected
    delete(restored, "below")
    delete(restored, "during")
    restored.sql("SELECT * FROM branch.gc()")
    nothing_left(restored)
    create(restored, "during", "p")
    assert rows_of(restored, "during") == expected
    healthy(restored)
    calm_log(restored)


MOST = 30  # boundaries around the first snapshot


def boundaries(known: list[tuple[str, str]], most: int, rng: random.Random) -> list[str]:
    """Where a record begins; if they are too many, those of our records and of the next ones,
    and some others."""
    ours = [n for n, (_, kind) in enumerate(known) if is_ours(kind)]
    assert ours, "no record of the snapshot was found"
    near = {n + d for n in ours for d in (0, 1) if n + d < len(known)}
    others = [n for n in range(len(known)) if n not in near]
    chosen = near | set(rng.sample(others, max(0, min(len(others), most - len(near)))))
    return [known[n][0] for n in sorted(chosen)]


def test_point_in_time_around_a_snapshot(
    archived: tuple[Cluster, Path], seed: int, rng: random.Random
) -> None:
    """Recovery stops before each record around a snapshot, one after the other, and around one
    that was taken from writers in full swing.  Wherever it stops, an older branch is what it
    was, and a new one is there and right or not there at all; promoted there, the server knows
    no half snapshot and takes new ones.  Stopped exactly at the snapshot that was taken from
    writers, the parent's rows are the branch's (scenario 10)."""
    server, archive = archived
    base = server.backup(server.root / "base", "--no-sync")
    insert = "SELECT pg_current_wal_insert_lsn()"
    with Storm(server, "p", f"{seed}/pitr") as storm:
        storm.run(30)
        with storm.held():
            older = Witness.make(server, "older", "p")
        storm.run(30)
        with storm.held():
            start = str(server.scalar(insert))
            newer = Witness.make(server, "newer", "p")
            end = str(server.scalar(insert))
        storm.run(30)
        for attempt in range(5):
            try:
                create(server, "swing", "p")
                break
            except psycopg.errors.LockNotAvailable:
                assert attempt < 4
        swung = str(server.scalar(insert))
        storm.run(30)
    swing = str(server.scalar("SELECT parent_lsn FROM branch.branches WHERE name = 'swing'"))
    in_swing = rows_of(server, "swing")
    archive_all(server)
    first = positions(server, start, end)
    print(*first, sep="\n")
    second = [(lsn, kind) for lsn, kind in positions(server, swing, swung) if is_ours(kind)]
    targets = boundaries(first, MOST, rng)
    around = {swing, *(lsn for lsn, _ in rng.sample(second, min(6, len(second))))}
    moved = recover(server, archive, base, "moving", "pause", recovery_target_lsn=targets[0])
    seen = []
    promoted = {1, len(targets) // 2, len(targets) - 1}
    for n, target in enumerate([*targets, *sorted(around, key=number)]):
        if n:
            moved.stop()
            moved.configure(recovery_target_lsn=target)
            if n in promoted:
                promoted_here(moved, older, newer, f"at{n}")
            moved.start()
            reach(moved, "pause")
        there = branches(moved)
        seen.append("newer" in there)
        if n % 4 == 0 or seen[-1] != seen[n - 1]:
            older.check(moved, f"stopped before {target}")
        if "newer" in there:
            newer.check(moved, f"stopped before {target}")
        if "swing" in there:
            assert rows_of(moved, "swing") == in_swing, f"stopped before {target}"
        if target == swing:
            assert rows_of(moved, "p") == in_swing, "the branch is not what its parent was then"
    assert seen == sorted(seen), "the branch came and went"
    assert not seen[0]
    assert seen[-1]
    replays_calmly(moved)


def promoted_here(stopped: Cluster, older: Witness, newer: Witness, name: str) -> None:
    """A copy of a stopped server, recovered to the same target and promoted there."""
    copy = copy_of(stopped.data, f"copy-{name}")
    made = Cluster.from_data(stopped.root.parent, name, copy, {"recovery_target_action": "promote"})
    reach(made, "promote")
    when = f"promoted {name}"
    older.check(made, when)
    if "newer" in branches(made):
        newer.check(made, when)
    made.sql("SELECT * FROM branch.gc()")
    nothing_left(made, when)
    healthy(made)
    last = Witness.make(made, "last", "p")
    run(made, "p", "UPDATE a SET v = 'on another timeline'", "TRUNCATE c", "VACUUM FULL b")
    made.crash()
    check_all(made, [older, last], f"{when} and crashed")
    usable(made, "p")
    calm_log(made)
    made.destroy()
