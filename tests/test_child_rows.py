"""Rows that children have acknowledged, against a model: nothing else knows what must be there.

Clients write branches, branch them and write those, while a spread checkpoint is under way,
the background writer is busy and there are hardly any buffers; then everything dies.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from ab_checks import Conn, amcheck, calm_log, create_database, delete, healthy, run
from ab_cluster import LONG, Cluster
from ab_oracle import SETTINGS
from ab_storm import lost_connection

# More of them on demand.
ROUNDS = int(os.environ.get("AGENT_BRANCH_ROUNDS", "2"))
CLIENTS = 4
Rows = dict[int, int]
SELECT = "SELECT id, v FROM t"


@dataclass
class Model:
    """What each database has, and what it has if the last statement was done after all."""

    rows: dict[str, Rows] = field(default_factory=dict)
    maybe: dict[str, Rows] = field(default_factory=dict)
    born: dict[str, Rows] = field(default_factory=dict)  # of a branch that may not be there


class Client(threading.Thread):
    """Writes one branch, makes a branch of it now and then, and goes on in either."""

    def __init__(self, cluster: Cluster, model: Model, start: str, seed: str) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.model = model
        self.name_now = start
        self.rng = random.Random(seed)
        self.tag = seed.replace("/", "_")
        self.made = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                with self.cluster.connect(self.name_now) as conn:
                    for _ in range(self.rng.randint(2, 12)):
                        self.write(conn)
                self.branch()
        except psycopg.Error as error:
            if not lost_connection(error):
                self.failure = error
        except BaseException as error:
            self.failure = error

    def write(self, conn: Conn) -> None:
        rows, name = self.model.rows[self.name_now], self.name_now
        after = dict(rows)
        number = self.rng.randrange(1 << 30)
        what = self.rng.choice(("insert", "insert", "update", "delete"))
        if what == "insert":
            low, count = max(rows) + 1, self.rng.randint(1, 150)
            query = f"INSERT INTO t SELECT i, {number} FROM generate_series({low}, {low + count}) i"
            after |= dict.fromkeys(range(low, low + count + 1), number)
        else:
            step, rest = self.rng.randint(3, 40), self.rng.randrange(40)
            hit = {i for i in rows if i % step == rest % step and i > 5}
            if what == "update":
                query = f"UPDATE t SET v = {number}"
                after |= dict.fromkeys(hit, number)
            else:
                query = "DELETE FROM t"
                after = {i: v for i, v in rows.items() if i not in hit}
            query += f" WHERE id % {step} = {rest % step} AND id > 5"
        self.model.maybe[name] = after
        conn.execute(query.encode())
        self.model.rows[name] = after

    def branch(self) -> None:
        self.made += 1
        child = f"c{self.tag}_{self.made}"
        self.model.born[child] = self.model.rows[self.name_now]
        self.cluster.sql("SELECT branch.create(%s, %s)", (child, self.name_now))
        self.model.rows[child] = self.model.born.pop(child)
        if self.rng.random() < 0.6:
            self.name_now = child


def spread_checkpoints(cluster: Cluster) -> None:
    """One after the other, none of them in a hurry, until cut off."""
    with suppress(psycopg.Error), cluster.connect() as conn:
        while True:
            conn.execute("SELECT pg_backup_start('spread')")
            conn.execute("SELECT pg_backup_stop()")


def await_branches(cluster: Cluster, clients: list[Client], goal: int) -> None:
    """Until the clients have made so many, or one of them has failed."""
    cluster.wait_for(
        lambda: (
            sum(client.made for client in clients) >= goal
            or any(client.failure for client in clients)
        ),
        what="some branches",
    )


def check(cluster: Cluster, model: Model, when: str) -> None:
    there = {name for (name,) in cluster.sql("SELECT name FROM branch.branches")}
    for name, rows in model.born.items():
        if name in there:
            model.rows[name] = rows
    model.born.clear()
    assert set(model.rows) <= there | {"p"}, when
    for name in sorted(model.rows):
        found: Rows = dict(cluster.sql(SELECT, dbname=name))
        known = model.rows[name]
        if found != known:
            lost, more = known.keys() - found.keys(), found.keys() - known.keys()
            assert found == model.maybe.get(name), f'"{name}", {when}: {lost=} {more=}'
        model.rows[name] = found
    model.maybe.clear()


def test_acknowledged_rows(make_cluster: Callable[..., Cluster], seed: int) -> None:
    """After each kill -9 every branch, however deep, has the rows that its client was told of,
    and what its parent had when it was made."""
    rng = random.Random(seed)
    server = make_cluster(
        "rows",
        {
            **SETTINGS,
            "shared_buffers": "1MB",
            "max_wal_size": "1GB",
            "autovacuum": "on",
            "autovacuum_naptime": "1s",
            "autovacuum_vacuum_threshold": "0",
            "autovacuum_vacuum_scale_factor": "0.05",
            "checkpoint_completion_target": "0.3",
            "log_statement": "none",
        },
    )
    create_database(
        server,
        "p",
        "CREATE TABLE t (id int PRIMARY KEY, v int) WITH (fillfactor = 60)",
        "INSERT INTO t SELECT i, 0 FROM generate_series(1, 3000) AS i",
        "DELETE FROM t WHERE id % 3 = 0",
        "VACUUM t",
    )
    model = Model({"p": dict(server.sql(SELECT, dbname="p"))})
    for turn in range(ROUNDS):
        starts = rng.sample(sorted(model.rows), min(CLIENTS, len(model.rows)))
        clients = [
            Client(server, model, name, f"{turn}_{n}_{rng.randrange(1000)}")
            for n, name in enumerate(starts)
        ]
        spread = threading.Thread(target=spread_checkpoints, args=(server,), daemon=True)
        for thread in (*clients, spread):
            thread.start()
        await_branches(server, clients, rng.randint(4, 12))
        server.kill()
        for thread in (*clients, spread):
            thread.join(LONG)
        assert [repr(client.failure) for client in clients if client.failure] == []
        server.start()
        check(server, model, f"after crash {turn}")
        parents = {parent for (parent,) in server.sql("SELECT parent_name FROM branch.branches")}
        leaves = sorted(set(model.rows) - parents - {"p"})
        for name in rng.sample(leaves, max(0, len(leaves) - 6)):
            delete(server, name)
            del model.rows[name]
    amcheck(server, *rng.sample(sorted(model.rows), min(2, len(model.rows))))
    run(server, "postgres", "SELECT * FROM branch.gc()")
    check(server, model, "at the end")
    healthy(server)
    calm_log(server)
