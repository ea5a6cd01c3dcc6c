"""One session and its model (ab_life.py): how they are held against each other.

The rules are in test_one_life.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import psycopg
import pytest
from ab_checks import Conn, Row, healthy, nothing_left, run
from ab_cluster import Cluster
from ab_life import Life
from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, invariant

NAMES = ["a", "b", "c", "d", "e", "f", "g"]

counted: Counter[str] = Counter()


class Client(RuleBasedStateMachine):
    """One session and its model, from nothing to nothing."""

    server: Cluster

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self.life = Life()
        self.conn: Conn = self.server.connect()
        self.last_event = self.one("SELECT coalesce(max(id), 0) FROM branch.events")

    # ---- talking to the server ----

    def one(self, query: str, params: tuple[object, ...] = ()) -> Any:
        row = self.conn.execute(query, params).fetchone()
        return row[0] if row else None

    def call(self, query: str, params: tuple[object, ...], wrong: frozenset[str]) -> Row | None:
        """Do it, or fail as expected."""
        counted["calls"] += 1
        note(f"{query} {params}" + (f", wrong: {sorted(wrong)}" if wrong else ""))
        if not wrong:
            return self.conn.execute(query, params).fetchone()
        counted["refused"] += 1
        with pytest.raises(psycopg.Error) as caught:
            self.conn.execute(query, params)
        assert caught.value.sqlstate in wrong, f"{query} {params}: {caught.value!r}, not {wrong}"
        return None

    def answered(self, name: str, answer: Row | None, same: bool = True) -> None:
        """A function has answered with the row of a branch: (id, name, state)."""
        if answer is None:
            return
        node = self.life.living(name)
        assert node is not None and answer[1:] == (name, "ready")
        if same:
            assert node.oid == answer[0], f'"{name}" has become another database'
        else:
            assert answer[0] not in {one.oid for one in self.life.nodes}
        node.oid = answer[0]

    def pick(self, number: int, main: bool = False, deleted: bool = False) -> str:
        """The name of a database: usually of one that is there (or is deleted)."""
        there = sorted(
            node.name
            for node in self.life.nodes
            if node.living is not deleted and (main or node is not self.life.main)
        )
        names = there if number % 8 and there else NAMES
        return names[number // 8 % len(names)]

    def rows_of(self, name: str) -> set[str]:
        return {value for (value,) in self.server.sql("SELECT v FROM t", dbname=name)}

    def check_rows(self, name: str) -> None:
        node = self.life.living(name)
        assert node is not None
        assert self.rows_of(name) == node.rows, f'contents of "{name}"'

    def change_rows(self, name: str, forget: bool) -> None:
        node = self.life.living(name)
        if node is None:
            return
        value = f"{name}{next(self.numbers)}"
        old = min(node.rows, default="") if forget else ""
        run(
            self.server,
            name,
            f"INSERT INTO t VALUES ('{value}')",
            f"DELETE FROM t WHERE v = '{old}'",
        )
        node.rows = (node.rows | {value}) - {old}
        counted["writes"] += 1

    def kill(self) -> None:
        counted["crashes"] += 1
        self.server.crash()
        self.conn = self.server.connect()
        healthy(self.server)
        for node in self.life.nodes:
            if node.living:
                self.check_rows(node.name)

    # ---- what always holds ----

    @invariant()
    def there_is_what_there_should_be(self) -> None:
        counted["steps"] += 1
        found = self.conn.execute(
            "SELECT id::int8, name::text, current_state, parent_name::text, protected,"
            " protected_until IS NOT NULL,"
            " expires_at IS NOT NULL, labels FROM branch.branches ORDER BY id"
        ).fetchall()
        expected = [
            (
                node.oid,
                node.name,
                "ready" if node.living else "deleted",
                node.parent.name if node.parent else None,
                node.protected,
                node.protected and node.lease,
                node.expires is not None,
                node.labels,
            )
            for node in sorted(self.life.branches(), key=lambda node: node.oid)
        ]
        assert found == expected

    @invariant()
    def events_tell_what_happened(self) -> None:
        found = self.conn.execute(
            "SELECT id, event, branch FROM branch.events_after(%s)", (self.last_event,)
        ).fetchall()
        self.last_event = max([self.last_event, *(number for number, _, _ in found)])
        told = sorted((event, name) for _, event, name in found)
        assert told == sorted(self.life.told)
        self.life.told = []

    def teardown(self) -> None:
        try:
            for node in self.life.nodes:
                if node.living:
                    self.check_rows(node.name)
            healthy(self.server)
        finally:
            self.conn.close()
            clean(self.server)
        nothing_left(self.server)
        healthy(self.server)


def attempt(server: Cluster, query: str) -> None:
    """Do it, if what is in the way has gone: a plain database that has the name of a deleted
    branch, a deleted branch that reads a plain database's pages."""
    try:
        server.sql(query)
    except psycopg.Error as error:
        if error.sqlstate not in ("42809", "55006"):
            raise


def clean(server: Cluster) -> None:
    """Nothing is left of this life, whatever it has come to."""
    server.sql("SELECT branch.unprotect(name) FROM branch.branches WHERE current_state = 'ready'")
    server.sql("SELECT branch.drop_snapshot(name) FROM branch.snapshots WHERE name IS NOT NULL")
    for _ in NAMES:
        for (name,) in server.sql("SELECT name::text FROM branch.branches ORDER BY depth DESC"):
            attempt(
                server,
                f"SELECT branch.delete('{name}', hard => true, on_children => 'keep',"
                " force => true)",
            )
        server.sql("SELECT * FROM branch.gc()")
        for name in NAMES:
            attempt(server, f"DROP DATABASE IF EXISTS {name}")
        if server.sql("SELECT name FROM branch.branches") == []:
            break
    server.sql("TRUNCATE t", dbname="main")
