"""The life of branches against models: many clients at once, and one client with all that
there is, the server killed among their calls.

AGENT_BRANCH_LIFECYCLE sets how many times as much is done, AGENT_BRANCH_SEED what.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from ab_checks import Conn, calm_log, healthy, nothing_left, run
from ab_cluster import LONG, Cluster
from ab_history import CONTENTION, DONE, EMPTY, Call, History, Living, Slot, State, Told, check

TIMES = int(os.environ.get("AGENT_BRANCH_LIFECYCLE", "1"))

# ---- many clients ------------------------------------------------------------------------

CLIENTS = 64
ROUNDS = 3 * TIMES
CALLS = (500, 900)  # in a round, before the server is killed
NAMES = [f"b{number:03d}" for number in range(500)]
PARENTS = ("main", "left", "right")  # they stay
ROWS = 100


class Clients:
    """Clients that all work on the same names, and write down what they do and are told."""

    def __init__(self, cluster: Cluster, turn: int, seed: int) -> None:
        self.cluster = cluster
        self.turn = turn
        self.seed = seed
        self.history = History()
        self.surprises: list[str] = []
        self.threads = [
            threading.Thread(target=self.client, args=(number,), daemon=True)
            for number in range(CLIENTS)
        ]

    def client(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{self.turn}/{number}")
        try:
            with self.cluster.connect() as conn:
                for step in range(1_000_000):
                    self.step(conn, rng, number, (self.turn * 1_000 + step) * CLIENTS + number)
        except psycopg.OperationalError:
            return  # the server was killed

    def step(self, conn: Conn, rng: random.Random, client: int, number: int) -> None:
        if rng.random() < 0.01:
            run(self.cluster, rng.choice(PARENTS), "UPDATE kept SET v = v + 1 WHERE id % 9 = 0")
        kind = rng.choices(
            ("create", "create_many", "ensure", "statement", "delete", "delete_hard", "drop",
             "reset", "preserve", "recover", "recover_as", "rename", "protect", "unprotect",
             "transaction"),
            (14, 3, 3, 3, 10, 4, 2, 8, 3, 6, 4, 8, 3, 6, 6),
        )[0]  # fmt: skip
        if kind == "transaction":
            names = rng.sample(NAMES, 4)
            parts = [
                Call(rng.choice(("create", "recover", "delete_hard")), (names[0],), number),
                Call("rename", (names[1], names[2])),
                Call(rng.choice(("delete", "reset", "recover")), (names[3],)),
            ]
            rng.shuffle(parts)
            names = [name for part in parts for name in part.names]
            call = Call("transaction", tuple(names), number, tuple(parts), rng.random() < 0.7)
        else:
            call = choose(rng, kind, number)
        told = self.history.begin(client, call)
        try:
            if call.parts:
                transaction(conn, rng, told)
            else:
                conn.execute(*statement(rng, call))
            answer = DONE
        except psycopg.Error as error:
            if error.sqlstate is None or error.sqlstate.startswith("57P"):
                raise psycopg.OperationalError from error
            answer = error.sqlstate
            if answer not in CONTENTION | {"3D000", "42P04", "55000"}:
                self.surprises.append(f"{told}: {error}")
        self.history.end(told, answer)


def choose(rng: random.Random, kind: str, number: int) -> Call:
    if kind == "recover_as":
        return Call("recover", tuple(rng.sample(NAMES, 2)), number)
    many = {"create_many": 3, "preserve": 2, "rename": 2}.get(kind, 1)
    return Call(kind, tuple(rng.sample(NAMES, many)), None if kind == "statement" else number)


def statement(rng: random.Random, call: Call) -> tuple[str, tuple[object, ...]]:
    first, last = call.names[0], call.names[-1]
    parent = rng.choice(PARENTS)
    labels = f'{{"number": {call.number}}}'
    return {
        "create": ("SELECT branch.create(%s, %s, labels => %s)", (first, parent, labels)),
        "create_many": (
            "SELECT branch.create_many(%s, %s, labels => %s)",
            (list(call.names), parent, labels),
        ),
        "ensure": ("SELECT branch.ensure(%s, %s, labels => %s)", (first, parent, labels)),
        "statement": (f"CREATE DATABASE {first} TEMPLATE {parent} STRATEGY branch", ()),
        "delete": ("SELECT branch.delete(%s)", (first,)),
        "delete_hard": ("SELECT branch.delete(%s, hard => true)", (first,)),
        "drop": (f"DROP DATABASE {first}", ()),
        "reset": ("SELECT branch.reset(%s)", (first,)),
        "preserve": ("SELECT branch.reset(%s, preserve_under_name => %s)", (first, last)),
        "recover": (
            "SELECT branch.recover(%s, %s)",
            (first, last if len(call.names) > 1 else None),
        ),
        "rename": ("SELECT branch.rename(%s, %s)", (first, last)),
        "protect": ("SELECT branch.protect(%s)", (first,)),
        "unprotect": ("SELECT branch.unprotect(%s)", (first,)),
    }[call.kind]


class RolledBackError(Exception):
    pass


def transaction(conn: Conn, rng: random.Random, told: Told) -> None:
    """All parts, and COMMIT or ROLLBACK; until COMMIT is sent nothing can have happened."""
    told.sure = True
    try:
        with conn.transaction():
            for part in told.call.parts:
                try:
                    conn.execute(*statement(rng, part))
                except psycopg.Error as error:
                    if error.sqlstate is not None:
                        told.parts.append(error.sqlstate)
                    raise
                told.parts.append(DONE)
            if not told.call.commit:
                raise RolledBackError
            told.sure = False
    except RolledBackError:
        pass


def what_there_is(cluster: Cluster) -> State:
    """The pool's names as branch.branches shows them."""
    rows = cluster.sql(
        "SELECT name::text, (labels ->> 'number')::int8, current_state, protected"
        " FROM branch.branches WHERE name LIKE 'b%' ORDER BY deleted_at NULLS FIRST"
    )
    found: State = dict.fromkeys(NAMES, EMPTY)
    for name, number, state, protected in rows:
        slot = found[name]
        if state == "deleted":
            found[name] = Slot(slot.living, (*slot.deleted, number))
        else:
            assert slot.living is None, f'"{name}" is there twice'
            found[name] = Slot(Living(number, protected), slot.deleted)
    return found


def finish_drops(cluster: Cluster, history: History) -> None:
    """A DROP DATABASE that was cut off may leave the database marked invalid, as anywhere in
    PostgreSQL; whoever wants it gone drops it again."""
    cut_off = {
        name
        for told in history.calls
        if told.call.kind == "drop" and told.answer is None
        for name in told.call.names
    }
    for (name,) in cluster.sql("SELECT datname::text FROM pg_database WHERE datconnlimit = -2"):
        assert name in cut_off, name
        cluster.sql(f"DROP DATABASE {name}")


def odd_lives(cluster: Cluster) -> list[str]:
    """Branches of which events do not tell, once, how they came to be and how they went."""
    there = dict(cluster.sql("SELECT id::int8, name::text FROM branch.branches"))
    told: dict[int, list[str]] = {oid: [] for oid in there}
    for oid, event, old, gone in cluster.sql(
        "SELECT branch_id::int8, event,"
        " CASE WHEN event = 'reset' AND NOT detail ? 'preserved_as'"
        " THEN (detail ->> 'old_id')::int8 END,"
        " event = 'purged' OR coalesce((detail ->> 'hard')::boolean, false)"
        " FROM branch.events ORDER BY id"
    ):
        told.setdefault(oid, []).append("gone" if gone else event)
        if old is not None:
            told.setdefault(old, []).append("gone")
    return [
        f"{oid} {there.get(oid)}: {events}"
        for oid, events in told.items()
        if events[:1] not in (["created"], ["reset"])
        or {"created", "reset"}.intersection(events[1:])
        or "gone" in events[:-1]
        or (events[-1] == "gone") == (oid in there)
    ]


def lives(cluster: Cluster) -> None:
    """Events tell of each branch how it came to be, once, and if it is gone how it went;
    of statements, and of what a crash has swallowed, in the background."""
    try:
        cluster.wait_for(lambda: not odd_lives(cluster))
    except TimeoutError:
        assert odd_lives(cluster) == []


@pytest.fixture(scope="module")
def crowded(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "lifecycle",
        {
            "deadlock_timeout": "200ms",
            "fsync": "off",  # processes are killed, not the machine
            "log_statement": "none",
            "agent_branch.max_snapshots": "4096",
        },
    )
    run(
        made,
        "main",
        "CREATE TABLE kept (id int, v int)",
        f"INSERT INTO kept SELECT i, 0 FROM generate_series(1, {ROWS}) AS i",
    )
    for name in PARENTS[1:]:
        made.sql("SELECT branch.create(%s)", (name,))
    made.sql("""SELECT branch.create_many(%s, labels => '{"number": 0}')""", (NAMES[::2],))
    yield made
    made.destroy()


def test_many_clients(crowded: Cluster, rng: random.Random, seed: int) -> None:
    """64 clients create, delete, recover, reset, rename and protect branches under 500
    names, alone and in transactions, until everything is killed after a random call.  After
    each start there is an order of all calls that explains every answer and what is there;
    what was cut off is whole or absent; events tell the life of each branch; verify() is
    empty, no file is an orphan, and branches are readable."""
    state = what_there_is(crowded)
    answers: Counter[str] = Counter()
    for turn in range(ROUNDS):
        clients = Clients(crowded, turn, seed)
        for thread in clients.threads:
            thread.start()
        clients.history.wait_for_calls(rng.randint(*CALLS))
        crowded.kill()
        for thread in clients.threads:
            thread.join(LONG)
        position = len(crowded.log_text())
        crowded.start()
        assert clients.surprises == []
        finish_drops(crowded, clients.history)
        seen = what_there_is(crowded)
        check(clients.history, state, seen)
        state = seen
        answers.update(told.answer or "cut off" for told in clients.history.calls)
        healthy(crowded)
        crowded.sql("SELECT * FROM branch.gc()")
        nothing_left(crowded, f"in round {turn}")
        lives(crowded)
        living = sorted(name for name, slot in state.items() if slot.living)
        for name in rng.sample(living, 3):
            assert crowded.scalar("SELECT count(*) FROM kept", dbname=name) == ROWS
        calm_log(crowded, position)
    print(f"{CLIENTS} clients, {ROUNDS} rounds: {dict(answers)}")
    assert answers[DONE] > sum(answers.values()) / 4, answers
