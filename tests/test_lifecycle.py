"""Deleting branches recoverably, recovering, renaming and expiring them: with the server killed
in the middle, against sessions that come, by the background worker, and in old age.

AGENT_BRANCH_LIFE_ROUNDS sets how often the server is killed, AGENT_BRANCH_SEED when.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from ab_checks import (
    Conn,
    amcheck,
    calm_log,
    contents,
    create,
    create_database,
    delete,
    exists,
    healthy,
    nothing_left,
    oid_of,
    refused,
    run,
)
from ab_cluster import LONG, Cluster, wait_for

ROUNDS = int(os.environ.get("AGENT_BRANCH_LIFE_ROUNDS", "4"))
CLIENTS = 3
NAMES = 4  # of each client: few, so that a name has been many branches

Row = tuple[int, str, int, bool]  # OID, name, OID of the parent, deleted


# ---- the model ---------------------------------------------------------------------------


class RefusedError(Exception):
    """What the server must answer instead."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@dataclass
class Branch:
    name: str
    parent: int
    deleted: int = 0  # 0: living; else the larger, the later
    marked: bool = False  # has a table with its number


@dataclass
class Life:
    """The branches of one client, which nobody else touches."""

    main: int
    branches: dict[int, Branch] = field(default_factory=dict)
    clock: int = 0

    def living(self, name: str) -> int | None:
        return next((i for i, b in self.branches.items() if b.name == name and not b.deleted), None)

    def newest_deleted(self, name: str) -> int | None:
        found = [i for i, b in self.branches.items() if b.name == name and b.deleted]
        return max(found, key=lambda i: self.branches[i].deleted, default=None)

    def children(self, oid: int) -> list[int]:
        return [i for i, b in self.branches.items() if b.parent == oid]

    def need(self, oid: int | None) -> int:
        if oid is None:
            raise RefusedError("3D000")
        return oid

    def check_free(self, name: str) -> None:
        if self.living(name) is not None:
            raise RefusedError("42P04")

    def check_childless(self, oid: int) -> None:
        if any(not self.branches[i].deleted for i in self.children(oid)):
            raise RefusedError("55006")

    def create(self, oid: int, name: str, parent: str) -> None:
        parent_oid = self.main if parent == "main" else self.need(self.living(parent))
        self.check_free(name)
        self.branches[oid] = Branch(name, parent_oid)

    def delete(self, name: str, on_children: str) -> None:
        doomed = [self.need(self.living(name))]
        if on_children == "error":
            self.check_childless(doomed[0])
        if on_children == "cascade":
            for oid in doomed:
                doomed += self.children(oid)
        for oid in doomed:
            if not self.branches[oid].deleted:
                self.clock += 1
                self.branches[oid].deleted = self.clock

    def purge(self, name: str) -> None:
        oid = self.living(name)
        if oid is not None:
            self.check_childless(oid)
        del self.branches[self.need(self.newest_deleted(name) if oid is None else oid)]

    def recover(self, name: str, new_name: str) -> None:
        oid = self.need(self.newest_deleted(name))
        self.check_free(new_name)
        self.branches[oid].name = new_name
        self.branches[oid].deleted = 0

    def rename(self, name: str, new_name: str) -> None:
        oid = self.need(self.living(name))
        self.check_free(new_name)
        self.branches[oid].name = new_name

    def rows(self) -> set[Row]:
        return {(i, b.name, b.parent, b.deleted > 0) for i, b in self.branches.items()}


UNKNOWN = 0  # OID of a branch whose creation was cut off


def after(life: Life, step: tuple[str, ...]) -> Life:
    """The life when a step has been done; unchanged if it must be refused."""
    changed = deepcopy(life)
    what, *names = step
    try:
        if what == "create":
            changed.create(UNKNOWN, *names)
        else:
            getattr(changed, what)(*names)
    except RefusedError:
        return life
    return changed


QUERIES = {
    "create": "SELECT id::int8 FROM branch.create(%s, %s)",
    "delete": "SELECT branch.delete(%s, on_children => %s)",
    "purge": "SELECT branch.delete(%s, hard => true)",
    "recover": "SELECT id::int8 FROM branch.recover(%s, %s)",
    "rename": "SELECT id::int8 FROM branch.rename(%s, %s)",
}


class Client(threading.Thread):
    """Does what it likes with its branches until the server is killed."""

    def __init__(self, cluster: Cluster, number: int, life: Life, seed: str) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.number = number
        self.life = life
        self.rng = random.Random(seed)
        self.step: tuple[str, ...] | None = None  # under way
        self.done = threading.Semaphore(0)
        self.wrong: list[str] = []

    def choose(self) -> tuple[str, ...]:
        name, other = (f"k{self.number}_{self.rng.randrange(NAMES)}" for _ in range(2))
        what = self.rng.choices(list(QUERIES), (5, 5, 1, 4, 2))[0]
        if what == "create":
            return what, name, self.rng.choice(["main", other])
        if what == "delete":
            return what, name, self.rng.choice(["error", "keep", "cascade"])
        return (what, name) if what == "purge" else (what, name, other)

    def run(self) -> None:
        with contextlib.suppress(psycopg.OperationalError), self.cluster.connect() as conn:
            while not self.wrong:
                self.step = self.choose()
                self.do(conn, self.step)
                self.step = None
                self.done.release()

    def do(self, conn: Conn, step: tuple[str, ...]) -> None:
        oid = UNKNOWN
        answer = "done"
        try:
            row = conn.execute(QUERIES[step[0]], step[1:]).fetchone()
            oid = int(row[0]) if row and row[0] else UNKNOWN
        except psycopg.Error as error:
            if error.sqlstate is None or error.sqlstate.startswith("57P"):
                raise psycopg.OperationalError from error
            answer = error.sqlstate
        try:
            if step[0] == "create":
                self.life.create(oid, *step[1:])
            else:
                getattr(self.life, step[0])(*step[1:])
            expected = "done"
        except RefusedError as refusal:
            expected = refusal.sqlstate
        if answer != expected:
            self.wrong.append(f"{step}: {answer}, expected {expected}")
        if step[0] == "create" and answer == "done" and self.rng.random() < 0.5:
            run(
                self.cluster,
                step[1],
                "CREATE TABLE IF NOT EXISTS mine (v oid)",
                "DELETE FROM mine",  # the parent's
                f"INSERT INTO mine VALUES ({oid})",
            )
            self.life.branches[oid].marked = True


def found(cluster: Cluster, number: int) -> set[Row]:
    return set(
        cluster.sql(
            "SELECT id::int8, name, parent_id::int8, current_state = 'deleted'"
            " FROM branch.branches WHERE starts_with(name, %s)",
            (f"k{number}_",),
        )
    )


def adopt(cluster: Cluster, client: Client) -> Life:
    """The life after a crash: as it was told, with or without the step that was cut off."""
    rows = found(cluster, client.number)
    allowed = [client.life]
    if client.step is not None:
        allowed.append(after(client.life, client.step))
    for life in allowed:
        known = {row[0] for row in life.rows()}
        if UNKNOWN in known:
            (new,) = {row[0] for row in rows} - known or {UNKNOWN}
            life.branches[new] = life.branches.pop(UNKNOWN)
        if life.rows() == rows:
            return life
    raise AssertionError(
        f"client {client.number}, step {client.step}: {sorted(rows)} are there,"
        f" allowed are {[sorted(life.rows()) for life in allowed]}"
    )


def check_whole(cluster: Cluster, life: Life) -> None:
    """Every branch that has a table with its number has the right one, deleted ones after
    they are recovered."""
    for number, (oid, branch) in enumerate(list(life.branches.items())):
        name = branch.name
        if branch.deleted:
            name = f"again_{number}"
            cluster.sql("SELECT branch.recover(%s, %s)", (f"agent_branch_deleted_{oid}", name))
        if branch.marked:
            assert cluster.scalar("SELECT v FROM mine", dbname=name) == oid
        if branch.deleted:
            cluster.sql("SELECT branch.delete(%s, hard => true, on_children => 'keep')", (name,))
            del life.branches[oid]


@pytest.fixture(scope="module")
def server(cluster_base: Any) -> Iterator[Cluster]:
    made = Cluster.create(cluster_base, "life", {"autovacuum": "off"})
    yield made
    made.destroy()


def test_kill_nine(server: Cluster, rng: random.Random, seed: int) -> None:
    """Three clients create, delete (with and without their branches), recover, rename and purge
    branches, each its own ones under few names, and a model says what every answer must be.  At
    a random step everything is killed.  Afterwards each has what it was told, with or without
    the step that was cut off; deleted branches come back with their contents; verify() is
    empty; no file is an orphan."""
    lives = [Life(oid_of(server, "main")) for _ in range(CLIENTS)]
    for turn in range(ROUNDS):
        clients = [Client(server, i, lives[i], f"{seed}/{turn}/{i}") for i in range(CLIENTS)]
        steps = rng.randrange(10, 60)
        print(f"round {turn}: {steps} steps")
        for client in clients:
            client.start()
        for _ in range(steps):
            assert clients[0].done.acquire(timeout=LONG) or clients[0].wrong
        server.kill()
        for client in clients:
            client.join(LONG)
        position = len(server.log_text())
        server.start()
        assert [client.wrong for client in clients if client.wrong] == []
        healthy(server)
        lives = [adopt(server, client) for client in clients]
        for life in lives:
            check_whole(server, life)
        server.sql("SELECT * FROM branch.gc()")
        healthy(server)
        calm_log(server, position)
    for life in lives:
        for branch in life.branches.values():
            server.sql(
                "SELECT branch.delete(%s, hard => true, on_children => 'keep')", (branch.name,)
            )
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server)


def test_open_at_the_end(server: Cluster) -> None:
    """A deletion of a tree and a recovery are done but not committed when the server goes: the
    tree is there, the deleted one still deleted, and nothing else has changed."""
    for name, parent in (("t1", "main"), ("t2", "t1"), ("t3", "main")):
        create(server, name, parent)
        run(server, name, f"CREATE TABLE of_{name} AS SELECT '{name}' AS v")
    server.sql("SELECT branch.delete('t3')")
    conn = server.connect(autocommit=False)
    conn.execute("SELECT branch.delete('t1', on_children => 'cascade')")
    conn.execute("SELECT branch.recover('t3')")
    conn.execute("SELECT branch.rename('t3', 't1')")
    server.sql("CHECKPOINT")
    server.crash()
    conn.close()
    healthy(server)
    assert server.sql("SELECT name, current_state FROM branch.branches ORDER BY name") == [
        ("t1", "ready"), ("t2", "ready"), ("t3", "deleted")
    ]  # fmt: skip
    assert server.scalar("SELECT v FROM of_t2", dbname="t2") == "t2"
    server.sql("SELECT branch.delete('t1', on_children => 'cascade')")
    server.crash()
    assert server.scalar("SELECT count(branch.recover(name)) FROM branch.branches") == 3
    assert server.scalar("SELECT v FROM of_t2", dbname="t2") == "t2"
    assert server.scalar("SELECT v FROM of_t3", dbname="t3") == "t3"
    server.sql("SELECT branch.delete(n, hard => true) FROM unnest(ARRAY['t2', 't1', 't3']) AS n")


# ---- contents ------------------------------------------------------------------------------


def test_contents_after_recovery(server: Cluster) -> None:
    """Tables of every kind, indexes, sequences and large objects are as they were, although the
    parent was written, vacuumed and cut short meanwhile, and a crash came in between."""
    create_database(
        server,
        "source",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT i, repeat(i::text, 50) FROM generate_series(1, 3000) AS i",
        "CREATE TABLE wide AS SELECT i, (SELECT string_agg(md5(i::text || j), '')"
        " FROM generate_series(1, 300) AS j) AS v FROM generate_series(1, 20) AS i",
        "CREATE SEQUENCE s",
        "CREATE INDEX ON t (v)",
    )
    create(server, "kept", "source")
    run(
        server,
        "kept",
        "SELECT nextval('s') FROM generate_series(1, 10)",
        "UPDATE t SET v = 'changed' WHERE id % 7 = 0",
        "CREATE TABLE own AS SELECT i FROM generate_series(1, 1000) AS i",
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM t",
        "SELECT lo_from_bytea(4711, 'large')",
        "CREATE UNLOGGED TABLE u (i int)",
    )
    before = contents(server, "kept")
    oid = oid_of(server, "kept")
    server.sql("SELECT branch.delete('kept')")
    run(server, "source", "DELETE FROM t WHERE id > 100", "VACUUM FULL t", "DROP TABLE wide")
    server.sql("CHECKPOINT")
    server.crash()
    server.sql("SELECT * FROM branch.gc()")
    assert server.scalar("SELECT id::int8 FROM branch.recover('kept')") == oid
    assert contents(server, "kept") == before
    assert server.scalar("SELECT nextval('s')", dbname="kept") > 10
    assert server.scalar("SELECT convert_from(lo_get(4711), 'UTF8')", dbname="kept") == "large"
    assert server.scalar("SELECT count(*) FROM t WHERE v = 'changed'", dbname="kept") == 428
    amcheck(server, "kept")
    healthy(server)
    delete(server, "kept")


def test_what_is_said_survives(server: Cluster) -> None:
    """A reset, a deletion with its recovery, a renaming and a crash keep what was said about a
    branch; its named snapshots are still its own."""
    server.sql(
        "SELECT branch.create('said', 'main', expires_in => '1 day', suspend_timeout => '5 min',"
        " labels => '{\"a\": 1}')"
    )
    server.sql("SELECT branch.snapshot('said', 'of_said')")
    query = (
        "SELECT created_at, expires_at, suspend_timeout_seconds, labels, protected"
        " FROM branch.branches WHERE name = %s"
    )
    before = server.sql(query, ("said",))
    server.sql("SELECT branch.reset('said')")
    server.sql("SELECT branch.delete('said')")
    server.crash()
    server.sql("SELECT branch.recover('said')")
    server.sql("SELECT branch.rename('said', 'told')")
    assert server.sql(query, ("told",)) == before
    server.sql("SELECT branch.protect('told', '1 hour')")
    server.crash()
    refused(server, "SELECT branch.delete('told')", "55000")
    refused(server, "DROP DATABASE told", "55000", dbname="main")
    server.sql("SELECT branch.unprotect('told')")
    assert server.sql(query, ("told",)) == before
    assert server.scalar("SELECT parent_name FROM branch.snapshots WHERE name = 'of_said'") == (
        "told"
    )
    server.sql("SELECT branch.restore('told', 'of_said')")
    server.sql("SELECT branch.drop_snapshot('of_said')")
    delete(server, "told")


# ---- sessions --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_deletion_against_a_connection(server: Cluster, end: str) -> None:
    """Who connects while a deletion is under way waits for its end, and gets in only if it is
    rolled back."""
    create(server, "wanted")
    answer: list[object] = []

    def connect() -> None:
        try:
            answer.append(server.scalar("SELECT 1", dbname="wanted"))
        except psycopg.OperationalError as error:
            answer.append(str(error))

    with server.connect(autocommit=False) as conn:
        conn.execute("SELECT branch.delete('wanted')")
        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        wait_for(
            lambda: server.scalar(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND NOT granted"
                " AND classid = 'pg_database'::regclass"
            ),
            what="the connection to wait",
        )
        if end == "commit":
            conn.commit()
        else:
            conn.rollback()
    thread.join(LONG)
    if end == "commit":
        assert 'database "wanted" does not exist' in str(answer[0])
    else:
        assert answer == [1]
    delete(server, "wanted")


# ---- the background worker ---------------------------------------------------------------------


def state(cluster: Cluster, name: str) -> str | None:
    answer: str | None = cluster.scalar(
        "SELECT current_state FROM branch.branches WHERE name = %s", (name,)
    )
    return answer


def test_swept(server: Cluster) -> None:
    """The background worker deletes what has expired, although somebody idles in it, and purges
    it with its files when the time to recover it is over; a protected one stays."""
    for name in ("swept", "stays"):
        server.sql("SELECT branch.create(%s, expires_in => '1 hour')", (name,))
    server.sql("SELECT branch.protect('stays')")
    oid = oid_of(server, "swept")
    server.set(agent_branch__sweep_interval="1s")
    with server.connect("swept") as idle:
        idle.execute("CREATE TABLE t (i int)")
        server.sql("UPDATE branch.registry SET expires_at = now() - interval '1 second'")
        wait_for(lambda: state(server, "swept") == "deleted", what="the expiration")
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
    assert state(server, "stays") == "ready"
    server.sql(
        "UPDATE branch.registry SET deleted_at = now() - interval '8 days' WHERE db = %s", (oid,)
    )
    wait_for(lambda: state(server, "swept") is None, what="the purge")
    wait_for(lambda: not (server.data / "base" / str(oid)).exists(), what="its files to go")
    told = server.sql("SELECT event FROM branch.events WHERE branch = 'swept' ORDER BY id")
    assert told == [("created",), ("expired",), ("deleted",), ("purged",)]
    server.set(agent_branch__sweep_interval="0")
    server.sql("SELECT branch.unprotect('stays')")
    delete(server, "stays")
    healthy(server)


def test_tree_of_many(server: Cluster) -> None:
    """A tree of 126 branches, wide and deep, is deleted and recovered in one statement each."""
    server.sql("SELECT branch.create('w', 'main')")
    server.sql(
        "SELECT branch.create_many(ARRAY(SELECT 'w' || i FROM generate_series(1, 100) i), 'w')"
    )
    for i in range(25):
        create(server, f"d{i}", f"d{i - 1}" if i else "w1")
    assert server.scalar("SELECT count(*) FROM branch.branches") == 126
    server.sql("SELECT branch.delete('w', on_children => 'cascade')")
    assert server.sql("SELECT DISTINCT current_state FROM branch.branches") == [("deleted",)]
    assert server.scalar("SELECT count(branch.recover(name)) FROM branch.branches") == 126
    assert server.scalar("SELECT max(depth) FROM branch.branches") == 27
    server.sql("SELECT branch.delete('w', hard => true, on_children => 'cascade')")
    assert server.scalar("SELECT count(*) FROM branch.branches") == 0
    server.sql("SELECT * FROM branch.gc()")
    nothing_left(server)
    healthy(server)


# ---- old age -------------------------------------------------------------------------------------


def burn(cluster: Cluster, xids: int) -> None:
    """Use up transaction ids."""
    cluster.sql(
        "DO $$BEGIN FOR i IN 1.." + str(xids) + " LOOP"
        " PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END$$"
    )


def age(cluster: Cluster, oid: int) -> int:
    return int(
        cluster.scalar("SELECT age(datfrozenxid) FROM pg_database WHERE oid = %s", (oid,)) or 0
    )


def test_old_age(make_cluster: Callable[..., Cluster]) -> None:
    """Autovacuum freezes a deleted branch as it does any database.  One that it cannot freeze,
    for a replication slot needs its old catalog rows, is purged before its time, with a
    warning, and the slot goes with it: it cannot drive the cluster into wraparound."""
    server = make_cluster(
        "old",
        {
            "autovacuum": "on",
            "autovacuum_freeze_max_age": 100_000,
            "autovacuum_naptime": "1s",
            "vacuum_failsafe_age": 0,
            "wal_level": "logical",
            "synchronous_commit": "off",
            "agent_branch.sweep_interval": 0,
        },
    )
    run(server, "main", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    frozen = oid_of(server, create(server, "frozen"))
    server.sql("SELECT branch.delete('frozen')")
    burn(server, 95_000)
    server.sql("SELECT * FROM branch.gc()")  # closes its snapshot
    burn(server, 8_000)
    wait_for(lambda: age(server, frozen) < 100_000, what="autovacuum")
    server.sql("SELECT branch.recover('frozen')")
    assert server.scalar("SELECT sum(i) FROM t", dbname="frozen") == 500500
    amcheck(server, "frozen")
    create(server, "stuck")
    run(
        server,
        "stuck",
        "VACUUM (FREEZE)",
        "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
    )
    stuck = oid_of(server, "stuck")
    server.sql("SELECT branch.delete('stuck')")
    burn(server, 95_000)
    server.sql("SELECT * FROM branch.gc()")
    burn(server, 12_000)
    assert age(server, stuck) > 105_000
    warnings: list[str] = []
    with server.connect() as conn:
        conn.add_notice_handler(lambda d: warnings.append(d.message_primary or ""))
        purged = conn.execute(
            "SELECT name FROM branch.gc() WHERE kind = 'deleted branch'"
        ).fetchall()
    assert purged == [("stuck",)]
    assert any('"stuck" cannot be recovered' in warning for warning in warnings), warnings
    server.sql("SELECT * FROM branch.gc()")
    assert server.sql("SELECT slot_name FROM pg_replication_slots") == []
    assert not exists(server, f"agent_branch_deleted_{stuck}")
    healthy(server)
