"""A server whose processes stop at named places of the C code, and a workload that passes them.

``make FAILPOINTS=1`` builds the library that has the places (ab_failpoint.h).  It is put into a
relocated copy of the server's programs, so that nothing of the machine's own is touched.
``Failpoints`` says, through a file in a data directory, what happens at which of them.
``Work`` goes through everything that the storage of branches does, knowing after each step
what must be there; ``Trial`` has it die at a place and looks at what is left.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from ab_checks import (
    amcheck,
    branches,
    calm_log,
    drop_all_branches,
    exists,
    healthy,
    nothing_left,
    run,
)
from ab_cluster import Cluster, ServerError, pg_config, wait_for
from ab_oracle import HELPERS, SETTINGS, Witness, plain_again
from ab_tree import Node, Tree

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "build" / "failpoints" / "agent_branch.so"

NAME = 48
NAMES = 256
HEAD = struct.Struct(f"={NAME}sqqqqqq")
SEEN = struct.Struct(f"={NAME}sq")
NOTHING, HOLD, CRASH, ERROR = range(4)
ROWS = 300
STEPS = 100  # or fewer
INVALID = -2  # datconnlimit of what is half dropped
DONE = 300  # seconds that no step takes

# Pages are written by checkpoints and by who needs a buffer; sweeps happen when told.
PLACE_SETTINGS: dict[str, object] = {
    **SETTINGS,
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "agent_branch.sweep_interval": "0",
    "max_wal_size": "1GB",
    "shared_buffers": "8MB",
    "max_connections": "40",
    "wal_consistency_checking": "all",
    "hot_standby_feedback": "on",
    "max_standby_streaming_delay": "-1",
}


def places() -> dict[str, bool]:
    """Names of all failpoints in the sources; may an error be raised there?"""
    found: dict[str, bool] = {}
    for path in sorted((ROOT / "extension" / "src").glob("*.c")):
        for kind, name in re.findall(r'AB_FAILPOINT(_NO_ERROR)?\("([\w-]+)"\)', path.read_text()):
            assert name not in found, f'two failpoints are named "{name}"'
            found[name] = not kind
    return found


def is_of_start(name: str) -> bool:
    """Is it passed while a server starts or replays, and not otherwise?"""
    return name.startswith(("start-", "redo-", "witness-tripwires"))


# ---- the library, and a server that loads it ---------------------------------------------------


def build(target: Path) -> None:
    """Make the library, or what of it is out of date, and copy it: one process at a time."""
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    if not (Path(pg_config("--includedir-server")) / "postgres.h").exists():
        del environment["PG_CONFIG"]  # a relocated server: the one it was copied from has them
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    with (LIBRARY.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["make", "-s", "-j2", "FAILPOINTS=1"],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode != 0:
            raise RuntimeError(f"make FAILPOINTS=1: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        shutil.copy(LIBRARY, target)


def private_server(place: Path, library: Path) -> Path:
    """The installed server under another directory, where PostgreSQL finds everything relative
    to its programs, with another agent_branch.so; returns its pg_config."""

    def mirrored(option: str) -> tuple[Path, Path]:
        here = Path(pg_config(option))
        there = place / here.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        return here, there

    bindir, programs = mirrored("--bindir")
    shutil.copytree(bindir, programs)
    sharedir, share = mirrored("--sharedir")
    share.symlink_to(sharedir)
    libdir, libraries = mirrored("--pkglibdir")
    libraries.mkdir()
    for path in libdir.iterdir():
        if path.name != library.name:
            (libraries / path.name).symlink_to(path)
    shutil.copy(library, libraries / library.name)
    return programs / "pg_config"


@contextmanager
def failpoint_server(base: Path) -> Iterator[None]:
    """In here, clusters are made with the library that has failpoints."""
    place = base / "failpoints"
    place.mkdir()
    built = place / LIBRARY.name
    build(built)
    before = os.environ.get("PG_CONFIG")
    os.environ["PG_CONFIG"] = str(private_server(place, built))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PG_CONFIG"]
        else:
            os.environ["PG_CONFIG"] = before
        shutil.rmtree(place)


# ---- what happens where ------------------------------------------------------------------------


class Failpoints:
    """The file of one data directory.  Its server need not run."""

    def __init__(self, cluster: Cluster) -> None:
        self.path = cluster.data / "agent_branch.failpoints"
        self.path.unlink(missing_ok=True)  # that of whom the directory was copied from
        self.path.write_bytes(bytes(HEAD.size + NAMES * SEEN.size))
        Cluster.give(self.path)
        with self.path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)

    def arm(self, name: str, action: int, at: int = 1) -> None:
        """From now on, what the ``at``-th process that comes there does.  Who was held up
        before stays so until ``release``."""
        released = HEAD.unpack_from(self.memory)[5]
        self.memory[: HEAD.size] = HEAD.pack(name.encode(), action, at, 0, 0, released, 0)

    def disarm(self) -> None:
        self.arm("", NOTHING)

    def release(self) -> None:
        (released,) = struct.unpack_from("=q", self.memory, HEAD.size - 16)
        struct.pack_into("=q", self.memory, HEAD.size - 16, released + 1)

    def name(self) -> str:
        """Of the place that is armed."""
        name: bytes = HEAD.unpack_from(self.memory)[0]
        return name.rstrip(b"\0").decode()

    def who(self) -> int:
        """Pid of the process that came there the n-th time, 0 before."""
        pid: int = HEAD.unpack_from(self.memory)[4]
        return pid

    def seen(self) -> Counter[str]:
        """How often each place was passed since the last call."""
        found: Counter[str] = Counter()
        for at in range(HEAD.size, len(self.memory), SEEN.size):
            name, count = SEEN.unpack_from(self.memory, at)
            struct.pack_into("=q", self.memory, at + NAME, 0)
            if count:
                found[name.rstrip(b"\0").decode()] = count
        return found

    def unlock(self) -> None:
        """After everybody was killed: nobody counts just now."""
        struct.pack_into("=q", self.memory, HEAD.size - 8, 0)


# ---- the workload ------------------------------------------------------------------------------

EXTRAS = [
    *HELPERS,
    "CREATE TABLE tail AS SELECT i, repeat('t', 200) AS v FROM generate_series(1, 2000) AS i",
    "CREATE TABLE gone AS SELECT i, repeat('g', 100) AS v FROM generate_series(1, 500) AS i",
    "CREATE UNLOGGED TABLE lost AS SELECT 1 AS x",
    "CREATE TABLE pruned (id int PRIMARY KEY, v text) WITH (fillfactor = 90)",
    "INSERT INTO pruned SELECT i, repeat('p', 400) FROM generate_series(1, 60) AS i",
    "CREATE SEQUENCE s",
    "SELECT nextval('s')",
    "VACUUM",
]
Step = Callable[[], object]


class Work:
    """All steps of the life of branches, one after the other, beside a model."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.tree = Tree(cluster, rows=ROWS)
        self.root = self.tree.root
        run(cluster, self.root.name, *EXTRAS)
        self.numbers: set[int] = set()
        self.detaching: str | None = None
        self.over = False  # the server is killed, and not to be started
        self.begin(random.Random(0))

    def begin(self, rng: random.Random) -> None:
        """Before a round: only the root is there."""
        self.rng = rng
        self.step = "begin"
        self.over = False
        run(self.cluster, self.root.name, "CREATE TABLE IF NOT EXISTS gone AS SELECT 1 AS i",
            "DELETE FROM tail", "VACUUM tail",
            "INSERT INTO tail SELECT i, repeat('t', 200) FROM generate_series(1, 2000) AS i",
            "DROP TABLE IF EXISTS fresh",
            "CREATE UNLOGGED TABLE IF NOT EXISTS lost AS SELECT 1 AS x",
            "CREATE TABLE fresh AS SELECT i, repeat('f', 100) AS v FROM generate_series(1, 300)"
            " AS i")  # fmt: skip
        self.note_numbers()
        self.witness = Witness.make(self.cluster, self.tree.new_name(), self.root.name)

    def note_numbers(self) -> None:
        self.numbers |= {
            int(number)
            for (number,) in self.cluster.sql(
                "SELECT pg_relation_filenode(oid)::int8 FROM pg_class"
                " WHERE oid >= 16384 AND relkind IN ('r', 'i', 't', 'S')",
                dbname=self.root.name,
            )
        }

    def steps(self) -> Iterator[tuple[str, Step]]:
        tree, root, rng, sql = self.tree, self.root, self.rng, self.cluster.sql
        made: dict[str, Node] = {}

        def fork(name: str, parent: Node) -> Step:
            def step() -> None:
                made[name] = tree.fork(parent)

            return step

        def write(name: str, pages: int = 12) -> Step:
            return lambda: tree.write(made.get(name, root), rng, pages)

        def inside(name: str, *statements: str) -> Step:
            return lambda: run(self.cluster, made[name].name if name else root.name, *statements)

        def checkpoint() -> None:
            sql("CHECKPOINT")

        yield "fork", fork("a", root)
        yield "write a branch", write("a")
        yield "write the parent", write("")
        yield "checkpoint", checkpoint
        yield "fork a branch", fork("c", made["a"])
        yield "write it", write("c")
        yield "write its parent", write("a", 40)
        yield "limit", lambda: sql("SELECT branch.set_quota(%s, max_branches => 900)", (root.name,))
        yield "fork again", fork("b", root)
        yield "fork many", lambda: tree.fork_many(root, 3)
        yield "no limit", lambda: sql("SELECT branch.set_quota(%s)", (root.name,))
        yield "truncate, drop and vacuum in a branch", inside(
            "a", "DELETE FROM tail WHERE i > 50", "VACUUM (TRUNCATE) tail", "DROP TABLE gone",
            "CREATE TABLE gone AS SELECT 2 AS i", "SELECT nextval('s')", "INSERT INTO lost"
            " VALUES (2)")  # fmt: skip
        yield "the same in the parent", inside(
            "", "DELETE FROM tail WHERE i > 100", "VACUUM (TRUNCATE) tail", "DROP TABLE gone",
            "SELECT nextval('s')")  # fmt: skip
        yield "checkpoint", checkpoint
        yield "change lengths", lambda: tree.reshape(root, rng)
        yield "reset", lambda: tree.reset(made["b"])
        yield "write it", write("b")
        yield "see rows of another's time", inside("b", "VACUUM fresh")
        yield "restart", self.restart
        yield "write the parent again", write("")
        yield "have no unlogged tables any more", inside("", "DROP TABLE lost")
        yield "fork without a directory", fork("n", root)
        yield "fork what has none", fork("o", made["n"])
        yield "gather their origins", lambda: sql("SELECT * FROM branch.gc()")
        yield "rewrite its catalogs", inside("o", "VACUUM FULL pg_class", "REINDEX TABLE pg_proc")
        yield "write it", write("o")
        yield "write the parent once more", write("")
        yield "fork a copy", lambda: made.update(k=self.fork_copy(root))
        yield "write it", write("k")
        yield "name a snapshot", lambda: sql("SELECT branch.snapshot(%s, 'named')", (root.name,))
        yield "roll back", lambda: self.roll_back(root)
        yield "suspend", lambda: self.cluster.sql("SELECT branch.suspend(%s)", (made["b"].name,))
        yield "delete and recover", lambda: self.delete_and_recover(made["b"])
        yield "merge", lambda: self.merge(fork, made)
        yield "unname", lambda: sql("SELECT branch.drop_snapshot('named')")
        yield "detach", lambda: self.detach(made["k"])
        yield "prune", self.prune_leaves
        yield "collect", lambda: sql("SELECT * FROM branch.gc()")
        yield "make a table", inside("", "CREATE TABLE gone AS SELECT 3 AS i")
        yield "note its number", self.note_numbers
        yield "fork on", fork("e", root)
        yield "drop it", inside("", "DROP TABLE gone")
        yield "write", write("e")
        yield "prune the rest", self.prune_leaves
        yield "collect again", lambda: sql("SELECT * FROM branch.gc()")
        yield "checkpoint", checkpoint

    def run(self, upto: int = STEPS) -> None:
        """All steps, or the first; ends with an error if the server does."""
        for number, (name, step) in enumerate(self.steps()):
            if number == upto:
                return
            self.step = name
            step()
        self.step = "end"

    # ---- steps that are more than a call ----

    def restart(self) -> None:
        self.cluster.stop("fast", DONE)
        if self.over:
            raise ServerError("killed")
        self.cluster.start()

    def fork_copy(self, parent: Node) -> Node:
        with self.cluster.connect() as conn:
            conn.execute("SET agent_branch.snapshot_method = copy")
            return self.tree.fork(parent, conn)

    def roll_back(self, parent: Node) -> None:
        with self.cluster.connect(autocommit=False) as conn:
            conn.execute("SELECT branch.create('never', %s)", (parent.name,))
            conn.rollback()

    def delete_and_recover(self, node: Node) -> None:
        self.tree.asked[node.name] = node
        self.cluster.sql("SELECT branch.delete(%s)", (node.name,))
        self.cluster.sql("SELECT branch.recover(%s)", (node.name,))
        del self.tree.asked[node.name]

    def merge(self, fork: Callable[[str, Node], Step], made: dict[str, Node]) -> None:
        """Listed tables first, then all: each has a base that the next one begins at."""
        fork("m", self.root)()
        for listed in (True, False):
            self.tree.write(made["m"], self.rng, 6)
            self.tree.merge(made["m"], listed)

    def detach(self, node: Node) -> None:
        self.detaching = node.name
        self.cluster.sql("SELECT branch.detach(%s)", (node.name,))
        self.drop_detached()

    def prune_leaves(self) -> None:
        for node in self.tree.leaves():
            self.tree.prune(node)

    def drop_detached(self) -> None:
        """A database that is no branch any more still has its rows, and can be dropped; once more,
        if a crash cut that off: the server calls it invalid then."""
        assert self.detaching is not None
        node = self.tree.nodes[self.detaching]
        limit = "SELECT datconnlimit FROM pg_database WHERE datname = %s"
        if self.cluster.scalar(limit, [node.name]) != INVALID:
            self.tree.check(node)
        self.cluster.sql(f"DROP DATABASE {node.name}")
        del self.tree.nodes[node.name]
        self.detaching = None

    # ---- after a crash ----

    def settle(self) -> None:
        """What was acknowledged is there, what was not is there whole or not at all."""
        there = branches(self.cluster)
        if self.detaching is not None and self.detaching not in there:
            if exists(self.cluster, self.detaching):
                self.drop_detached()
            else:
                del self.tree.nodes[self.detaching]
        self.detaching = None
        assert self.witness.name in there, "the witness is lost"
        self.tree.nodes[self.witness.name] = Node(self.witness.name, None, {})
        self.tree.settle()
        del self.tree.nodes[self.witness.name]
        assert not exists(self.cluster, "never"), "what was rolled back is there"

    def check(self, when: str, cluster: Cluster | None = None) -> None:
        self.tree.check_all(cluster)
        self.witness.check(cluster or self.cluster, when)

    def works(self) -> None:
        """A new branch can be made, written, and is separate."""
        node = self.tree.fork(self.root)
        self.tree.write(node, self.rng)
        self.tree.write(self.root, self.rng)
        self.cluster.sql("CHECKPOINT")
        self.tree.check(node)
        self.tree.check(self.root)

    def finish(self, when: str) -> None:
        """Everything goes, and nothing is left."""
        drop_all_branches(self.cluster)
        self.cluster.sql("SELECT branch.drop_snapshot('named', true)")
        for _ in range(2):
            self.cluster.sql("SELECT * FROM branch.gc()")
        self.tree.nodes = {self.root.name: self.root}
        nothing_left(self.cluster, when)
        healthy(self.cluster)
        plain_again(self.cluster, self.root.name, self.numbers)


# ---- dying at a place ----------------------------------------------------------------------------

# A place of recovery is come to when the server died at another one.
BEFORE = {
    "redo-create-origin": "create-logged",
    "redo-snapshot": "snapshot-confirmed",
    "redo-confirm": "snapshot-confirmed",
    "redo-retire": "retire-logged",
    "redo-remove": "remove-logged",
    "redo-wipe": "remove-logged",
    "redo-detach": "detach-logged",
    "redo-relmap": "map-changed",
    "redo-gather": "gather-logged",
}
ON_STANDBY = {"redo-layer-published"}  # only there
BY_ANOTHER = {"window-older-saved", "snapshot-given-up"}  # when somebody else does something
VERBS = ("", "killed", "crashed", "failed")


def was_cut_off(error: BaseException | None) -> bool:
    """Did the server go away, or did a failpoint raise it (in the checkpointer, too)?"""
    if isinstance(error, psycopg.Error):
        text = str(error)
        return (
            error.sqlstate is None
            or error.sqlstate.startswith("57P")
            or "failpoint" in text
            or "checkpoint request failed" in text
        )
    return error is None or isinstance(error, (ServerError, OSError))


def has_started(cluster: Cluster) -> bool:
    """Or has it ended?"""
    process = cluster._process
    if process is None or process.poll() is not None:
        return True
    try:
        lines = (cluster.data / "postmaster.pid").read_text().split("\n")
    except FileNotFoundError:
        return False
    return lines[0] == str(process.pid) and len(lines) > 7 and lines[7].strip() in READY


READY = ("ready", "standby")


def start_and_kill(cluster: Cluster, points: Failpoints, name: str) -> bool:
    """Start; everything is killed when somebody has come to that place (else at the end)."""
    points.arm(name, HOLD)
    cluster.start(wait=False)
    wait_for(lambda: points.who() or has_started(cluster), what=f"the start to come to {name}")
    reached = points.who() != 0
    cluster.kill()
    points.unlock()
    points.disarm()
    return reached


class Trials:
    """One server and its workload, again and again."""

    def __init__(self, cluster: Cluster, seed: object) -> None:
        self.cluster = cluster
        self.seed = seed
        self.points = Failpoints(cluster)
        self.work = Work(cluster)
        self.hits: Counter[str] = Counter()  # in a workload that nothing happens to
        self.starts: Counter[str] = Counter()  # in a crash recovery
        self.done: Counter[str] = Counter()
        self.passed: set[str] = set()

    def count(self) -> None:
        """Which places the workload passes, and how often."""
        self.points.seen()
        self.work.run()
        self.hits = self.points.seen()
        self.work.check("untroubled")
        self.kill()
        self.cluster.start()
        self.starts = self.points.seen()
        self.after("untroubled, killed at the end", 0)

    def at(self, name: str, action: int, number: int, then: str | None = None) -> bool:
        """The workload until that place is come to; ``then``: and its recovery until another.
        False if it was not."""
        when = f"{VERBS[action]} at {name}, time {number}"
        rng = random.Random(f"{self.seed}/{when}")
        position = len(self.cluster.log_text())
        self.work.begin(rng)
        self.points.arm(name, action, number)
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self.work.run)
            wait_for(lambda: self.points.who() or work.done(), what=when)
            reached = self.points.who() != 0
            if reached and action == HOLD:
                if rng.random() < 0.5 or then in BEFORE:
                    self.flush()
                self.kill()
            else:
                wait_for(work.done, what=f"the workload to end, {when}")
            error = work.exception()
        if not was_cut_off(error):
            raise AssertionError(f"{when}, {self.work.step}: {error!r}") from error
        when += f" ({self.work.step})"
        if reached:
            self.note(name, VERBS[action])
        if action == ERROR:
            self.cluster.sql("SELECT * FROM branch.gc()")  # what that was to remove is due again
            self.check_after(f"{when}, before a restart", position)
        self.kill()
        self.recover(when, position if action != CRASH else len(self.cluster.log_text()), then)
        return reached

    def note(self, name: str, what: str) -> None:
        self.done[what] += 1
        self.passed.add(name)

    def flush(self) -> None:
        """What is in WAL by now, is on disk."""
        with suppress(psycopg.Error), self.cluster.connect() as conn:
            conn.execute("SET statement_timeout = '15s'")
            conn.execute("SELECT pg_switch_wal()")

    def kill(self) -> None:
        self.work.over = True
        self.cluster.kill()
        self.points.unlock()
        self.points.disarm()

    def recover(self, when: str, position: int, then: str | None) -> None:
        if then is not None and start_and_kill(self.cluster, self.points, then):
            self.note(then, "killed again in recovery")
            when += f", recovery killed at {then}"
        self.cluster.start()
        self.after(when, position)

    def in_recovery(self, name: str) -> bool:
        """Killed at that place of recovery; False if it is not come to."""
        before = next((BEFORE[begin] for begin in BEFORE if name.startswith(begin)), None)
        rng = random.Random(f"{self.seed}/{name}")
        for _ in range(3):
            place = before or rng.choice(sorted(set(self.hits) - self.starts.keys()))
            self.at(place, HOLD, rng.randint(1, self.hits[place]), name)
            if name in self.passed:
                return True
        return False

    # ---- places that take two ----

    def by_another(self, name: str, then: str | None = None) -> bool:
        """A snapshot is held up while somebody prunes a page of its parent, or cancels it."""
        position = len(self.cluster.log_text())
        self.work.begin(random.Random(f"{self.seed}/{name}"))
        root = self.work.root
        run(self.cluster, root.name, "UPDATE pruned SET v = repeat('n', 400) WHERE id % 2 = 0",
            "CHECKPOINT")  # fmt: skip
        first = "snapshot-flushed" if name == "window-older-saved" else "snapshot-mended"
        self.points.arm(first, HOLD)
        with ThreadPoolExecutor(1) as pool, self.cluster.connect(root.name) as other:
            creation = pool.submit(self.work.tree.fork, root)
            wait_for(lambda: self.points.who() or creation.done(), what=first)
            if name == "window-older-saved":
                other.execute("SELECT count(*) FROM pruned")
            else:
                other.execute("SELECT pg_cancel_backend(%s)", (self.points.who(),))
            self.points.arm(name, HOLD)
            self.points.release()
            wait_for(lambda: self.points.who() or creation.done(), what=name)
            reached = self.points.who() != 0
            self.kill()
            error = creation.exception()
        # a cancel may be heeded after the snapshot is done, and nothing is given up
        late = name != "window-older-saved" and isinstance(error, psycopg.errors.QueryCanceled)
        assert was_cut_off(error) or late, f"{name}: {error!r}"
        if reached:
            self.note(name, "killed")
        self.recover(f"killed at {name}", position, then)
        return reached

    # ---- what must hold ----

    def check_after(self, when: str, position: int) -> None:
        self.work.settle()
        self.work.check(when)
        healthy(self.cluster)
        calm_log(self.cluster, position)

    def after(self, when: str, position: int) -> None:
        """Everything that must hold after a restart; then nothing is left."""
        print(when, flush=True)
        try:
            self.check_after(when, position)
            self.work.works()
            self.work.note_numbers()
            self.work.finish(when)
        except AssertionError as failure:
            raise AssertionError(f"{when}: {failure}") from failure

    def finish(self) -> None:
        amcheck(self.cluster, self.work.root.name)


class StandbyTrials:
    """A streaming standby that dies while it replays the workload of its primary."""

    def __init__(self, cluster: Cluster, seed: object) -> None:
        self.cluster = cluster
        self.seed = seed
        self.work = Work(cluster)
        self.standby = cluster.standby("places-standby")
        self.points = Failpoints(self.standby)
        self.hits: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.passed: set[str] = set()

    def count(self) -> None:
        self.points.seen()
        self.run_and_compare("untroubled, on a standby", STEPS, None)
        self.hits = self.points.seen()

    def at(self, name: str, action: int, number: int, then: str | None = None) -> bool:
        """The standby dies there while the primary works, and ``then`` again in its start."""
        when = f"{VERBS[action]} at {name} on a standby, time {number}"
        rng = random.Random(f"{self.seed}/{when}")
        self.work.begin(rng)
        self.points.arm(name, action, number)
        early = rng.random() < 0.6  # while most branches are there
        self.run_and_compare(when, rng.randint(6, 26) if early else STEPS, then)
        return name in self.passed

    def run_and_compare(self, when: str, steps: int, then: str | None) -> None:
        name = self.points.name()
        self.work.run(steps)
        when += f" ({self.work.step})"
        target = self.cluster.scalar("SELECT pg_current_wal_flush_lsn()::text")

        def come() -> bool:
            if self.points.who() or not self.standby.is_running():
                return True
            with suppress(psycopg.Error):
                query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
                return bool(self.standby.scalar(query, (target,)))
            return False

        wait_for(come, what=f"the standby, {when}")
        if self.points.who():
            self.done["standby died"] += 1
            self.passed.add(name)
        self.restart(when, then)
        self.compare(when)
        self.work.note_numbers()
        self.work.finish(when)
        self.cluster.wait_caught_up(self.standby)
        nothing_left(self.standby, when)

    def restart(self, when: str, then: str | None) -> None:
        if self.points.who():
            self.standby.kill()
        self.points.unlock()
        self.points.disarm()
        if not self.standby.is_running():
            if then is not None and start_and_kill(self.standby, self.points, then):
                self.done["standby died again"] += 1
                self.passed.add(then)
            self.standby.start()

    def compare(self, when: str) -> None:
        self.cluster.wait_caught_up(self.standby)
        print(when, flush=True)
        self.work.check(when, self.standby)
        text = self.standby.log_text()
        assert "inconsistent page found" not in text, self.standby.log_tail()
        assert "PANIC:" not in text, self.standby.log_tail()
        assert not self.standby.sql("SELECT * FROM branch.snapshots WHERE poisoned"), (
            f"{when}: a snapshot is poisoned on the standby"
        )
