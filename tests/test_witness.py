"""A server that ran without the library has overwritten pages that snapshots still see,
and saved none.  Whoever starts with the library again must notice (F13, rule 37)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from ab_byhand import copy_live
from ab_checks import (
    calm_log,
    contents,
    create,
    create_database,
    delete,
    gathered,
    healthy,
    held_up,
    nothing_left,
    oid_of,
    run,
)
from ab_cluster import LONG, Cluster, ServerError, identity, wait_for

MakeCluster = Callable[..., Cluster]

LIVE = 0x2  # AB_MANIFEST_LIVE
FLAGS_OFFSET = 12
KEEPER = "agent_branch keeper"  # who logs WITNESS records
STATES = {1: "clean", 2: "starting", 3: "running"}
TRIPWIRE = "pg_replslot/agent-branch.tmp"
DISTRUST = "cannot be trusted any more"

# Nothing in the background may write pages or WAL at its own time.
STILL: dict[str, object] = {
    "agent_branch.sweep_interval": "0",
    "checkpoint_timeout": "1h",
    "hot_standby": "on",
}

TABLE = [
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT i, 'base' FROM generate_series(1, 3000) AS i",
    "VACUUM (FREEZE, ANALYZE) t",
    "CREATE TABLE grows AS SELECT generate_series(1, 1000) AS id",
    "CHECKPOINT",
]

# branch -> rows of t as the parent had them, rows of grows
BRANCHES = {"b": (3000, 1000), "gathered": (3000, 1000), "holes": (2999, 2000)}


def server_with_branches(make_cluster: MakeCluster, **settings: object) -> Cluster:
    """A plain database "p" with two live snapshots, the second one taken by the notes of the
    forks that changed; of the first one a branch whose origin is a file and one whose origin
    is gathered; of the second one a branch with a page of its own among holes."""
    made = make_cluster("witness", {**STILL, **settings})
    create_database(made, "p", *TABLE)
    for name in ("b", "gathered"):
        create(made, name, "p")
    run(made, "b", "CREATE TABLE own AS SELECT 1 AS one", "TRUNCATE own")
    made.sql("SELECT * FROM branch.gc()")
    assert gathered(made) == [oid_of(made, "gathered")]
    run(made, "p", "INSERT INTO grows SELECT generate_series(1001, 2000)")
    create(made, "holes", "p")
    run(made, "holes", "UPDATE t SET v = 'own' WHERE id = 7", "CHECKPOINT")
    assert len(live(made)) == 2, "no snapshots by before-images"
    return made


@pytest.fixture
def server(make_cluster: MakeCluster) -> Cluster:
    return server_with_branches(make_cluster)


def snapshots(cluster: Cluster) -> Path:
    return cluster.data / "agent_branch" / "snapshots"


def live(cluster: Cluster) -> set[str]:
    """Ids of snapshots whose pages are in their parent's files."""
    found = set()
    for path in snapshots(cluster).glob("*.manifest"):
        (flags,) = struct.unpack_from("=I", path.read_bytes(), FLAGS_OFFSET)
        if flags & LIVE:
            found.add(path.stem)
    return found


def poisoned(cluster: Cluster) -> set[str]:
    return {path.stem for path in snapshots(cluster).glob("*.poisoned")}


def state(cluster: Cluster) -> str:
    data = (cluster.data / "agent_branch" / "witness").read_bytes()
    return STATES[struct.unpack_from("=I", data, 12)[0]]


def settled(cluster: Cluster) -> Cluster:
    """Wait until the tripwires are up (by the keeper, after a clean start)."""
    wait_for(lambda: state(cluster) == "running", what="the witness of a run")
    wait_for(lambda: (cluster.data / TRIPWIRE).is_dir(), what="the tripwire")
    return cluster


def start_soon(cluster: Cluster) -> None:
    """Start, if need be again: a process that was being forked when the others were killed
    ends a little later, and until then no server starts."""

    def started() -> bool:
        try:
            cluster.start()
        except ServerError as refused:
            if "still in use" not in str(refused):
                raise
            return False
        return True

    wait_for(started, what="the last process of the killed server to end")


def answers(cluster: Cluster) -> bool:
    try:
        cluster.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def witnessed(cluster: Cluster) -> None:
    """Wait for a WITNESS record of the newest checkpoint."""

    def found() -> bool:
        redo = cluster.scalar("SELECT redo_lsn::text FROM pg_control_checkpoint()")
        with cluster.connect() as conn:
            conn.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
            row = conn.execute(
                "SELECT count(*) FROM pg_get_wal_records_info_till_end_of_wal(%s)"
                " WHERE resource_manager = 'agent_branch' AND record_type = 'WITNESS'",
                (redo,),
            ).fetchone()
        return row is not None and row[0] > 0

    wait_for(found, what="a WITNESS record")


def single(cluster: Cluster, command: str) -> None:
    """One statement in the database "p", in single-user mode."""
    done = subprocess.run(
        [str(cluster.bindir / "postgres"), "--single", "-D", str(cluster.data), "p"],
        input=command + "\n",
        capture_output=True,
        text=True,
        cwd=cluster.root,
        check=False,
        env={**cluster.environment(), "TZ": "UTC"},
        **identity(),
    )
    assert done.returncode == 0, done.stderr


def without_library(cluster: Cluster) -> Cluster:
    cluster.configure(shared_preload_libraries="''")
    return cluster.start()


def with_library(cluster: Cluster) -> Cluster:
    cluster.configure(shared_preload_libraries="agent_branch")
    return cluster.start()


def trusted(cluster: Cluster) -> None:
    """The branches still see what they saw; nothing was poisoned."""
    assert poisoned(cluster) == set(), cluster.log_tail()
    assert DISTRUST not in cluster.log_text()
    assert cluster.scalar("SELECT count(*) FROM t", dbname="p") >= 3000
    seen = "SELECT (SELECT count(*) FROM t WHERE v = 'base'), (SELECT count(*) FROM grows)"
    assert {name: cluster.sql(seen, dbname=name)[0] for name in BRANCHES} == BRANCHES


def distrusted(cluster: Cluster, why: str, ids: set[str], since: int = 0) -> None:
    """All live snapshots are poisoned, the log says why, and branching goes on."""
    assert poisoned(cluster) >= ids
    warning = cluster.log_text()[since:]
    assert DISTRUST in warning, cluster.log_tail()
    assert why in warning, cluster.log_tail()
    for snapshot in ids:
        assert snapshot in warning
        assert why in (snapshots(cluster) / f"{snapshot}.poisoned").read_text()
    for name in BRANCHES:
        with pytest.raises(psycopg.OperationalError, match="cannot be read any more"):
            cluster.connect(name)
    if cluster.scalar("SELECT pg_is_in_recovery()"):
        return
    expected = contents(cluster, "p")["t"]
    create(cluster, "afterwards", "p")
    run(cluster, "p", "UPDATE t SET v = 'later'", "CHECKPOINT")
    assert contents(cluster, "afterwards")["t"] == expected
    cluster.crash()
    assert contents(cluster, "afterwards")["t"] == expected
    for name in (*BRANCHES, "afterwards"):
        delete(cluster, name)
    cluster.sql("SELECT * FROM branch.gc()")
    nothing_left(cluster)
    healthy(cluster)


# ---- without the library -----------------------------------------------------------------


def test_clean_stops(server: Cluster) -> None:
    """The library is taken out of shared_preload_libraries between two clean stops, and the
    parent is written meanwhile."""
    ids = live(server)
    server.stop()
    assert state(server) == "clean"
    without_library(server)
    run(server, "p", "UPDATE t SET v = 'unseen'")
    server.stop()
    with_library(server)
    assert server.scalar("SELECT count(*) FROM t WHERE v = 'unseen'", dbname="p") == 3000
    distrusted(server, "has run without agent_branch", ids)


def test_crash_without_the_library(server: Cluster) -> None:
    """The same, but the run without the library ends in a crash: pg_control still names the
    checkpoint that the library has seen."""
    ids = live(server)
    server.stop()
    without_library(server)
    run(server, "p", "UPDATE t SET v = 'unseen'")
    server.kill()
    with_library(server)
    distrusted(server, "has run without agent_branch", ids)


def test_recovery_without_the_library_is_refused(server: Cluster) -> None:
    """After a crash, a server without the library cannot replay the record that the keeper
    logs after each checkpoint.  It has changed nothing then, so nothing is lost either."""
    run(server, "p", "UPDATE t SET v = 'seen'", "CHECKPOINT")
    witnessed(server)
    run(server, "p", "UPDATE t SET v = 'seen too'")
    server.stop("immediate")
    for _ in range(2):
        with pytest.raises(ServerError, match="resource manager with ID 186"):
            without_library(server)
    with_library(server)
    trusted(server)
    assert server.scalar("SELECT count(*) FROM t WHERE v = 'seen too'", dbname="p") == 3000


def test_recovery_without_the_library_that_replays_changes(server: Cluster) -> None:
    """The parent was written between the checkpoint and the record: whoever tried to recover
    without the library may have written pages before that record stopped him."""
    ids = live(server)
    with held_up(server, KEEPER) as resume:
        run(server, "p", "CHECKPOINT", "UPDATE t SET v = 'between'")
        resume()
    witnessed(server)
    server.stop("immediate")
    with pytest.raises(ServerError, match="resource manager with ID 186"):
        without_library(server)
    with_library(server)
    distrusted(server, "has been started without agent_branch", ids)


def test_recovery_without_the_library_before_there_is_a_record(server: Cluster) -> None:
    """Killed so soon after a checkpoint that nothing in WAL needs the library: a server
    without it recovers, is stopped cleanly or not, and is found out."""
    ids = live(server)
    with held_up(server, KEEPER):
        run(server, "p", "CHECKPOINT", "INSERT INTO t VALUES (-1, 'between')")
        server.kill()
    without_library(server)
    run(server, "p", "UPDATE t SET v = 'unseen'")
    server.stop()
    with_library(server)
    distrusted(server, "has been started without agent_branch", ids)


def test_single_user_mode_without_the_library(server: Cluster) -> None:
    ids = live(server)
    server.stop()
    server.configure(shared_preload_libraries="''")
    single(server, "UPDATE t SET v = 'unseen'")
    with_library(server)
    distrusted(server, "has run without agent_branch", ids)


def test_single_user_mode_with_the_library(server: Cluster) -> None:
    """pg_rewind does that to a server that was not shut down."""
    server.stop()
    single(server, "UPDATE t SET v = 'single' WHERE id < 100")
    assert state(server) == "clean"
    server.start()
    trusted(server)
    assert server.scalar("SELECT count(*) FROM t WHERE v = 'single'", dbname="p") == 99


# ---- nothing of the kind ----------------------------------------------------------------


def test_ordinary_life(server: Cluster) -> None:
    """Clean restarts, immediate stops, a backend that is killed: nothing is poisoned."""
    for mode in ("fast", "smart", "immediate"):
        run(server, "p", f"UPDATE t SET v = '{mode}'")
        server.restart(mode)
        settled(server)
        trusted(server)
    with server.connect("p") as conn:
        pid = conn.info.backend_pid
        conn.execute("UPDATE t SET v = 'killed'")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "all server processes terminated" in server.log_text())
    wait_for(lambda: answers(server), what="the server to come back")
    settled(server)
    trusted(server)
    server.crash()
    trusted(server)


def test_without_its_keeper(server: Cluster) -> None:
    """No keeper, so no tripwires after a clean start: a crash is believed as long as WAL shows
    no change of the parent."""
    server.configure(max_worker_processes="0")
    server.restart()
    assert state(server) == "starting"
    server.sql("CREATE TABLE elsewhere AS SELECT 1 AS x")
    server.kill()
    server.configure(max_worker_processes="24")
    server.start()
    trusted(server)


def test_killed_after_the_shutdown_checkpoint(server: Cluster) -> None:
    """The postmaster dies between the shutdown checkpoint and its last words.  That was our
    own shutdown, as the tripwire shows; without it, somebody has started since."""
    witness = server.data / "agent_branch" / "witness"
    ids = live(server)
    before = settled(server).data.joinpath("agent_branch/witness").read_bytes()
    run(server, "p", "UPDATE t SET v = 'last'")
    server.stop()
    clean = witness.read_bytes()
    assert clean != before
    witness.write_bytes(before)
    settled(server.start())
    trusted(server)

    server.stop()
    witness.write_bytes(before)
    without_library(server)
    run(server, "p", "UPDATE t SET v = 'unseen'")
    server.stop()
    with_library(server)
    distrusted(server, "has been started without agent_branch", ids)


def test_kill_at_any_moment(server: Cluster, rng: random.Random) -> None:
    """SIGKILL of the whole server at random moments: while it starts, recovers, runs and
    shuts down.  Each time the snapshot is believed."""
    server.pgbench(["-i", "-q", "-s", "1"], "p")
    create(server, "bench", "p")
    expected = contents(server, "bench")["pgbench_accounts"]
    for turn in range(20):
        if not server.is_running():
            start_soon(server)
        load = server.pgbench(["-n", "-c", "2", "-T", "20"], "p", background=True)
        try:
            time.sleep(rng.uniform(0, 0.3))
            if turn % 3 == 0:
                server.sql("CHECKPOINT")
            if turn % 2 == 0:
                os.kill(server.postmaster_pid() or 0, signal.SIGINT)
                time.sleep(rng.uniform(0, 0.3))
            server.kill()
        finally:
            load.kill()
            load.wait()
        # and again while it comes up
        server.start(wait=False)
        with contextlib.suppress(TimeoutError):
            wait_for(server.is_running, 2)
        time.sleep(rng.uniform(0, 0.4))
        server.kill()
        assert poisoned(server) == set(), f"turn {turn}\n{server.log_tail(200)}"
    start_soon(server)
    assert DISTRUST not in server.log_text()
    assert contents(server, "bench")["pgbench_accounts"] == expected
    trusted(server)


def test_no_witness(server: Cluster) -> None:
    """A lost or damaged witness says nothing; without live snapshots nobody asks it."""
    ids = live(server)
    server.stop()
    witness = server.data / "agent_branch" / "witness"
    data = bytearray(witness.read_bytes())
    data[30] ^= 1
    witness.write_bytes(data)
    server.start()
    distrusted(server, "no readable file", ids)
    server.stop()
    witness.unlink()
    since = len(server.log_text())
    settled(server.start())
    assert DISTRUST not in server.log_text()[since:]


def refuses_to_start(cluster: Cluster, *says: str) -> None:
    with pytest.raises(ServerError) as refused:
        cluster.start()
    for text in says:
        assert text in str(refused.value)
    cluster.stop()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("left", ["nothing", "a mount point", "the witness"])
def test_directory_is_gone(server: Cluster, end: str, left: str) -> None:
    """Of a filesystem that was not mounted, for example: the branches would pass for plain
    databases.  When it is back, nothing has happened."""
    settled(server)
    getattr(server, end)()
    home, away = server.data / "agent_branch", server.root / "away"
    home.rename(away)
    if left != "nothing":
        home.mkdir()
        home.chmod(0o700)
        server.give(home)
    if left == "the witness":
        server.give(Path(shutil.copy2(away / "witness", home)))
    refuses_to_start(server, 'directory "agent_branch/branches" is missing', "Mount or restore")
    without = {path.name for path in home.iterdir()} if home.exists() else set()
    assert without == ({"witness"} if left == "the witness" else set())
    shutil.rmtree(home, ignore_errors=True)
    away.rename(home)
    server.start()
    trusted(server)


def test_directory_is_lost(server: Cluster) -> None:
    """What the error says to do, then: plain databases and new branches are as ever."""
    server.stop()
    shutil.rmtree(server.data / "agent_branch")
    refuses_to_start(server, f'remove "{TRIPWIRE}" and "pg_snapshots/agent-branch"')
    (server.data / TRIPWIRE).rmdir()
    (server.data / "pg_snapshots" / "agent-branch").unlink()
    server.start()
    for name in BRANCHES:
        server.sql(f"DROP DATABASE {name}")
    create(server, "afterwards", "p")
    assert server.scalar("SELECT count(*) FROM t", dbname="afterwards") == 3000
    delete(server, "afterwards")
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server)
    healthy(server)


@pytest.mark.parametrize("place", ["agent_branch", "agent_branch/images"])
def test_directory_is_elsewhere(server: Cluster, place: str) -> None:
    """A base backup would be without what is behind a symbolic link, and say nothing."""
    server.stop()
    home, away = server.data / place, server.root / "away"
    home.rename(away)
    home.symlink_to(away)
    refuses_to_start(server, f'"{place}" is a symbolic link', "Base backups", "mount that here")
    home.unlink()
    away.rename(home)
    server.start()
    trusted(server)


# ---- programs that change a stopped cluster -------------------------------------------------


def test_pg_checksums(server: Cluster) -> None:
    ids = live(server)
    server.stop()
    server.run("pg_checksums", "--enable", "-D", str(server.data))
    server.start()
    distrusted(server, "checksums were enabled", ids)


def test_pg_resetwal(server: Cluster) -> None:
    ids = live(server)
    server.stop()
    server.run("pg_resetwal", "-D", str(server.data))
    server.start()
    distrusted(server, "or pg_control was changed", ids)


def test_pg_resetwal_after_a_crash(server: Cluster) -> None:
    settled(server)
    server.sql("CHECKPOINT")
    server.kill()
    (server.data / "postmaster.pid").unlink()
    server.run("pg_resetwal", "-f", "-D", str(server.data))
    server.start()
    assert poisoned(server) == live(server) != set()
    assert "write-ahead log was reset" in server.log_text()


# ---- copies --------------------------------------------------------------------------------


def test_base_backup(server: Cluster) -> None:
    """Taken from the primary, written meanwhile: restored alone and as a standby."""
    load = server.pgbench(["-i", "-q", "-s", "1"], "main", background=True)
    copy = server.backup(server.root / "copy")
    run(server, "p", "UPDATE t SET v = 'later'")
    assert load.wait(LONG) == 0
    restored = Cluster.from_data(server.root.parent, "restored", copy)
    trusted(restored)
    restored.crash()
    trusted(settled(restored))
    standby = server.standby("replica")
    run(server, "p", "UPDATE t SET v = 'later still'", "CHECKPOINT")
    server.wait_caught_up(standby)
    trusted(standby)


def test_base_backup_of_a_server_without_the_library(server: Cluster) -> None:
    ids = live(server)
    server.stop()
    without_library(server)
    run(server, "p", "UPDATE t SET v = 'unseen'")
    copy = server.backup(server.root / "copy")
    restored = Cluster.from_data(
        server.root.parent, "restored", copy, {"shared_preload_libraries": "agent_branch"}
    )
    distrusted(restored, "base backup of a server that ran without agent_branch", ids)


def test_base_backup_without_a_record_of_ours(server: Cluster) -> None:
    """Nothing shows that the server of the backup had the library: it may have crashed with
    it, and recovered without it."""
    ids = live(server)
    server.sql("CHECKPOINT")
    witnessed(server)
    with held_up(server, KEEPER):
        copy = server.backup(server.root / "copy")
    restored = Cluster.from_data(server.root.parent, "restored", copy)
    distrusted(restored, "Nothing in the WAL of the base backup", ids)
    trusted(server)


def test_standby(server: Cluster) -> None:
    """Clean and unclean restarts of a standby, with and without WAL to replay, and its
    promotion."""
    standby = server.standby("replica")
    server.wait_caught_up(standby)
    for mode in ("fast", "immediate", "fast"):
        run(server, "p", f"UPDATE t SET v = '{mode}'", "CHECKPOINT")
        server.wait_caught_up(standby)
        standby.sql("CHECKPOINT")
        standby.restart(mode)
        trusted(standby)
    server.wait_caught_up(standby)
    server.stop()
    for _ in range(2):  # it starts at a shutdown checkpoint and waits for WAL
        standby.restart("immediate")
        trusted(standby)
    standby.promote()
    settled(standby)
    run(standby, "p", "UPDATE t SET v = 'promoted'")
    trusted(standby)
    standby.crash()
    trusted(standby)


def test_standby_without_the_library(server: Cluster) -> None:
    """It cannot replay the primary's records, but what it did before that nobody saw."""
    standby = server.standby("replica")
    server.wait_caught_up(standby)
    ids = live(standby)
    run(server, "p", "CHECKPOINT", "UPDATE t SET v = 'later'")
    witnessed(server)
    standby.stop("immediate")
    with pytest.raises(ServerError, match="resource manager with ID 186"):
        without_library(standby)
    with_library(standby)
    distrusted(standby, "has been started without agent_branch", ids)
    trusted(server)


def test_base_backup_from_a_standby(server: Cluster) -> None:
    """A standby saves old pages without WAL: its base backup may have a page that was
    overwritten while the image was not there yet.  Snapshots taken later are good."""
    standby = server.standby("replica")
    server.wait_caught_up(standby)
    ids = live(standby)
    copy = standby.backup(standby.root / "copy")
    third = Cluster.from_data(standby.root.parent, "third", copy)
    server.wait_caught_up(third)
    distrusted(third, "not taken from a primary", ids)
    run(server, "p", "UPDATE t SET v = 'seen'")
    create(server, "fresh", "p")
    run(server, "p", "UPDATE t SET v = 'later'", "CHECKPOINT")
    server.wait_caught_up(third)
    assert third.scalar("SELECT count(*) FROM t WHERE v = 'seen'", dbname="fresh") == 3000
    third.promote()
    assert third.scalar("SELECT count(*) FROM t WHERE v = 'seen'", dbname="fresh") == 3000
    trusted(server)
    trusted(standby)


def test_snapshot_during_a_base_backup_from_a_standby(server: Cluster) -> None:
    """Files were copied before it was taken, its record comes before they are consistent.  And
    a branch was gathered after the file of gathered ones was copied, before all others were."""
    standby = server.standby("replica")
    create(server, "early", "p")
    server.wait_caught_up(standby)
    copy = standby.root / "copy"
    with standby.connect() as conn:
        conn.execute("SELECT pg_backup_start('low level', true)")
        origins = standby.data / "agent_branch" / "origins"
        before = origins.read_bytes()
        server.sql("SELECT * FROM branch.gc()")
        server.wait_caught_up(standby)
        assert oid_of(server, "early") in gathered(standby)
        copy_live(standby.data, copy, lambda *_: ["postmaster.pid"])
        (copy / "agent_branch" / "origins").write_bytes(before)
        create(server, "during", "p")
        run(server, "p", "UPDATE t SET v = 'later'", "CHECKPOINT")
        server.wait_caught_up(standby)
        standby.sql("CHECKPOINT")
        label = conn.execute("SELECT labelfile FROM pg_backup_stop()").fetchone()
    assert label is not None
    shutil.copy2(standby.data / "global" / "pg_control", copy / "global" / "pg_control")
    (copy / "backup_label").write_text(label[0])
    for path in (copy, *copy.rglob("*")):
        Cluster.give(path)
    third = Cluster.from_data(standby.root.parent, "third", copy)
    server.wait_caught_up(third)
    assert poisoned(third) == live(server)
    assert gathered(third) == gathered(server)
    for name in (*BRANCHES, "early", "during"):
        with pytest.raises(psycopg.OperationalError, match=r"cannot be read|could not open file"):
            third.connect(name)
    create(server, "fresh", "p")
    run(server, "p", "UPDATE t SET v = 'later still'", "CHECKPOINT")
    server.wait_caught_up(third)
    assert third.scalar("SELECT count(*) FROM t WHERE v = 'later'", dbname="fresh") == 3000
    calm_log(third)


def test_pg_rewind(make_cluster: MakeCluster) -> None:
    """A former primary follows its former standby again.  Each has gathered a branch of its own
    meanwhile."""
    server = server_with_branches(make_cluster, wal_log_hints="on")
    standby = server.standby("replica")
    server.wait_caught_up(standby)
    standby.promote()
    ids = live(server)
    for where, name in ((standby, "there"), (server, "here")):
        run(where, "p", f"UPDATE t SET v = '{name}'")
        create(where, name, "p")
        where.sql("SELECT * FROM branch.gc()")
        assert oid_of(where, name) in gathered(where)
    run(standby, "p", "UPDATE t SET v = 'since'", "CHECKPOINT")
    server.stop()
    conf = (server.data / "agent_branch_test.conf").read_text()
    server.run(
        "pg_rewind",
        *("-D", str(server.data), "-R", "--no-sync"),
        f"--source-server=host={standby.socket_dir} port={standby.port} user=postgres"
        " dbname=postgres",
    )
    (server.data / "agent_branch_test.conf").write_text(conf)
    server.start()
    standby.wait_caught_up(server)
    assert server.scalar("SELECT count(*) FROM t WHERE v = 'since'", dbname="p") == 3000
    assert gathered(server) == gathered(standby)
    distrusted(server, "pg_rewind", ids)
    with pytest.raises(psycopg.OperationalError, match="cannot be read any more"):
        server.connect("there")
    trusted(standby)
    create(standby, "fresh", "p")
    run(standby, "p", "UPDATE t SET v = 'later'", "CHECKPOINT")
    delete(standby, "there")
    standby.sql("SELECT * FROM branch.gc()")
    standby.wait_caught_up(server)
    for where in (standby, server):
        assert gathered(where) == [oid_of(standby, name) for name in ("gathered", "fresh")]
        assert where.scalar("SELECT count(*) FROM t WHERE v = 'since'", dbname="fresh") == 3000
