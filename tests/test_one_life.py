"""One client and all that there is to do with branches, against a model (ab_life.py), the
server killed among its calls.

AGENT_BRANCH_LIFECYCLE sets how many times as many lives are lived, AGENT_BRANCH_SEED which.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_checks import calm_log, healthy, run
from ab_cluster import Cluster
from ab_life import Node
from ab_life_client import NAMES, Client, counted
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

LIVES = 12 * int(os.environ.get("AGENT_BRANCH_LIFECYCLE", "1"))
STEPS = 50
ONES = st.sampled_from(NAMES)
PICKS = st.integers(0, 799)  # seven of eight times something that is there
ON_CHILDREN = st.sampled_from(["error", "keep", "cascade"])
OFTEN = st.integers(0, 5).map(bool)
SELDOM = st.integers(0, 9).map(lambda number: number == 0)


class OneLife(Client):
    """From nothing to nothing."""

    @initialize()
    def begin(self) -> None:
        self.create("a", 1, True, 2)
        self.create("b", 1, False, 2)
        self.create("c", 1 + 8, False, 2)

    @rule(name=ONES, number=PICKS, labelled=st.booleans(), protected=st.integers(0, 9))
    def create(self, name: str, number: int, labelled: bool, protected: int) -> None:
        parent = self.pick(number, main=True)
        labels = {"of": f"{name}{next(self.numbers)}"} if labelled else {}
        new = Node("", None, set(), labels=labels, protected=protected == 0)
        if protected == 1:
            new.expires = "later"
        wrong = self.life.create(name, parent, None, new)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.create(%s, %s, labels => %s,"
            " protected => %s, expires_in => %s)",
            (name, parent, json.dumps(labels), new.protected, "1 day" if new.expires else None),
            wrong,
        )
        self.answered(name, answer, same=False)
        if answer:
            self.check_rows(name)
            self.change_rows((name, parent, "main")[protected % 3], protected % 2 == 0)

    @rule(name=ONES, number=PICKS)
    def ensure(self, name: str, number: int) -> None:
        there = self.life.living(name)
        parent = self.pick(number, main=True)
        if there is None:
            wrong = self.life.create(name, parent, None, Node("", None, set()))
        else:
            wrong = self.life.ensure(name)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.ensure(%s, %s)",
            (name, parent),
            wrong,
        )
        self.answered(name, answer, same=there is not None)

    @rule(names=st.lists(ONES, min_size=2, max_size=3, unique=True), number=PICKS)
    def create_many(self, names: list[str], number: int) -> None:
        parent = self.pick(number, main=True)
        life = self.life.copy()
        wrong = frozenset[str]().union(
            *(life.create(name, parent, None, Node("", None, set())) for name in names)
        )
        query = "SELECT id::int8, name::text, current_state FROM branch.create_many(%s, %s)"
        if wrong:
            self.call(query, (names, parent), wrong)
            return
        for answer in self.conn.execute(query, (names, parent)).fetchall():
            self.life.create(answer[1], parent, None, Node("", None, set()))
            self.answered(answer[1], answer, same=False)

    @precondition(lambda self: self.life.snapshots)
    @rule(name=ONES, data=st.data())
    def create_at(self, name: str, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.life.snapshots)), label="at")
        source = self.life.snapshots[at].source
        if source not in self.life.nodes or not source.living:
            return
        wrong = self.life.create(name, source.name, at, Node("", None, set()))
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.create(%s, %s, at => %s)",
            (name, source.name, at),
            wrong,
        )
        self.answered(name, answer, same=False)
        if answer:
            self.check_rows(name)

    @rule(number=PICKS, forget=st.booleans())
    def write(self, number: int, forget: bool) -> None:
        self.change_rows(self.pick(number, main=True), forget)

    @rule(number=PICKS, hard=st.booleans(), on_children=ON_CHILDREN)
    def delete(self, number: int, hard: bool, on_children: str) -> None:
        self.do_delete(self.pick(number), hard, on_children)

    def do_delete(self, name: str, hard: bool, on_children: str) -> None:
        wrong = self.life.delete(name, hard, on_children)
        self.call(
            "SELECT branch.delete(%s, hard => %s, on_children => %s)",
            (name, hard, on_children),
            wrong,
        )

    @rule(number=PICKS, new_name=st.one_of(st.none(), ONES))
    def recover(self, number: int, new_name: str | None) -> None:
        name = self.pick(number, deleted=True)
        wrong = self.life.recover(name, new_name)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.recover(%s, %s)",
            (name, new_name),
            wrong,
        )
        self.answered(new_name or name, answer)
        if answer:
            self.check_rows(new_name or name)

    @rule(number=PICKS, new_name=ONES)
    def rename(self, number: int, new_name: str) -> None:
        name = self.pick(number)
        wrong = self.life.rename(name, new_name)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.rename(%s, %s)",
            (name, new_name),
            wrong,
        )
        self.answered(new_name, answer)

    @rule(number=PICKS, how=st.sampled_from(["unprotect", "protect", "lease", "lease"]))
    def protect(self, number: int, how: str) -> None:
        name = self.pick(number)
        lease = how == "lease"
        what = "unprotect" if how == "unprotect" else "protect"
        wrong = self.life.change(name, f"{what}ed", protected=what == "protect", lease=lease)
        answer = self.call(
            f"SELECT id::int8, name::text, current_state FROM branch.{what}(%s"
            f"{', lease => %s::interval' if lease else ''})",
            (name, "1 hour") if lease else (name,),
            wrong,
        )
        self.answered(name, answer)

    @rule(data=st.data(), hard=st.booleans(), on_children=ON_CHILDREN)
    @precondition(lambda self: any(node.living for node in self.life.leased()))
    def lease_ends(self, data: st.DataObject, hard: bool, on_children: str) -> None:
        """Refused as long as it lasts; when its time has come nothing of it is left."""
        names = sorted(node.name for node in self.life.leased() if node.living)
        name = data.draw(st.sampled_from(names), label="name")
        node = self.life.living(name)
        assert node is not None
        self.do_delete(name, hard, on_children)
        counted["leases"] += 1
        self.conn.execute(
            "UPDATE branch.registry SET protected_until = protected_until - '1 hour'::interval"
            " WHERE db = %s",
            (node.oid,),
        )
        self.life.lease_ends(node)
        self.do_delete(name, hard, on_children)

    @rule(number=PICKS)
    def set_labels(self, number: int) -> None:
        name = self.pick(number)
        labels = {"set": f"{next(self.numbers)}"}
        wrong = self.life.change(name, "labels_set", labels=labels)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.set_labels(%s, %s)",
            (name, json.dumps(labels)),
            wrong,
        )
        self.answered(name, answer)

    @rule(number=PICKS, expires=st.sampled_from([None, "later", "now"]))
    def set_expiration(self, number: int, expires: str | None) -> None:
        name = self.pick(number)
        wrong = self.life.change(name, "expiration_set", expires=expires)
        answer = self.call(
            "SELECT id::int8, name::text, current_state"
            " FROM branch.set_expiration(%s, now() + %s::interval)",
            (name, "1 day" if expires else None),
            wrong,
        )
        self.answered(name, answer)
        if answer and expires == "now":
            self.conn.execute(
                "UPDATE branch.registry SET expires_at = now() - '1 s'::interval WHERE db = %s",
                (answer[0],),
            )

    @rule()
    def expire(self) -> None:
        gone = self.life.expire()
        found = self.conn.execute(
            "SELECT name FROM branch.expire() WHERE action = 'delete'"
        ).fetchall()
        assert sorted(name for (name,) in found) == sorted(gone)

    @precondition(lambda self: any(not node.living for node in self.life.nodes))
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        """Time passes for one that is deleted, and garbage collection comes by."""
        gone = sorted(node.deleted for node in self.life.nodes if not node.living)
        which = data.draw(st.integers(0, len(gone) - 1), label="which")
        node = next(node for node in self.life.nodes if node.deleted == gone[which])
        self.conn.execute(
            "UPDATE branch.registry SET deleted_at = deleted_at - '8 days'::interval WHERE db = %s",
            (node.oid,),
        )
        self.conn.execute("SELECT * FROM branch.gc()")
        self.life.delete_for_good(node)

    @rule(number=PICKS, preserve=st.one_of(st.none(), ONES))
    def reset(self, number: int, preserve: str | None) -> None:
        name = self.pick(number)
        wrong = self.life.reset(name, preserve)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.reset(%s, %s)",
            (name, preserve),
            wrong,
        )
        self.answered(name, answer, same=False)
        if answer:
            self.check_rows(name)

    @rule(number=PICKS, own=OFTEN, preserve=st.one_of(st.none(), ONES), data=st.data())
    def restore(self, number: int, own: bool, preserve: str | None, data: st.DataObject) -> None:
        name = self.pick(number)
        node = self.life.living(name)
        source = node if own or node is None else node.parent
        usable = self.life.snapshots_of(source)
        if node is None or source is None or not source.living or not usable:
            return
        at = data.draw(st.sampled_from(usable), label="at")
        wrong = self.life.reset(name, preserve, at)
        answer = self.call(
            "SELECT id::int8, name::text, current_state FROM branch.restore(%s, %s, %s)",
            (name, at, preserve),
            wrong,
        )
        self.answered(name, answer, same=False)
        if answer:
            self.check_rows(name)

    @rule(number=PICKS)
    def take_snapshot(self, number: int) -> None:
        source = self.pick(number, main=True)
        name = f"s{next(self.numbers)}"
        wrong = self.life.take_snapshot(source, name)
        self.call("SELECT branch.snapshot(%s, %s)", (source, name), wrong)

    @precondition(lambda self: self.life.snapshots)
    @rule(data=st.data())
    def drop_snapshot(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.life.snapshots)), label="name")
        self.life.drop_snapshot(name)
        self.call("SELECT branch.drop_snapshot(%s)", (name,), frozenset())

    @rule()
    def collect(self) -> None:
        self.conn.execute("SELECT * FROM branch.gc()")
        healthy(self.server)

    @rule(number=PICKS)
    def detach(self, number: int) -> None:
        name = self.pick(number)
        node = self.life.living(name)
        if node is not None and node.lends:
            return  # refused if it has written what is read below: the model does not know
        wrong = self.life.detach(name)
        self.call("SELECT branch.detach(%s)", (name,), wrong)

    @rule(number=PICKS, of=PICKS, cut_off=SELDOM)
    def undone(self, number: int, of: int, cut_off: bool) -> None:
        """A transaction that does all kinds of things, and then has not happened."""
        if cut_off:
            self.expire()
        name = self.pick(number)
        parent = self.pick(of, main=True)
        life = self.life.copy()
        conn = self.server.connect(autocommit=False)
        for query, params, wrong in (
            ("SELECT branch.delete(%s)", (name,), life.delete(name, False, "error")),
            (
                "SELECT branch.create(%s, %s)",
                (name, parent),
                life.create(name, parent, None, Node("", None, set())),
            ),
            ("SELECT branch.reset(%s)", (name,), life.reset(name, None)),
        ):
            if not wrong:
                conn.execute(query, params)
        if cut_off:
            self.kill()
        else:
            conn.rollback()
        conn.close()

    @rule(wanted=SELDOM)
    def crash(self, wanted: bool) -> None:
        if wanted:
            self.expire()  # the keeper would do it after its start, or would not yet
            self.kill()


@pytest.fixture(scope="module")
def lonely(cluster_base: Path) -> Iterator[Cluster]:
    made = Cluster.create(
        cluster_base,
        "onelife",
        {"fsync": "off", "log_statement": "all", "agent_branch.sweep_interval": "0"},
    )
    run(made, "main", "CREATE TABLE t (v text)")
    yield made
    made.destroy()


def test_one_client(lonely: Cluster) -> None:
    """Random lives of a few branches, crashes among them: every answer, every refusal, all
    that branch.branches shows, the events and the contents are what the model says."""

    class Machine(OneLife):
        server = lonely

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS,
            phases=[Phase.generate],
        ),
    )
    calm_log(lonely)
    print(f"{LIVES} lives: {dict(counted)}")
