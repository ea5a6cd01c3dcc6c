"""Generated SQL of diff and merge, run by a server: three databases as base, ours and theirs."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from ab_cluster import Cluster
from ab_merge import Merged, PgSession, merge
from agent_branch.merge import Decisions, Strategy, digest
from agent_branch.revert import to_json
from agent_branch.sqltext import Limits
from agent_branch.tableorder import TableId
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

Rows = dict[tuple[str, ...], dict[str, str | None]]
State = dict[str, Rows]

# Every way in which tables can point to each other, and values that must stay unique.
SCHEMA = """
CREATE TABLE node (
    id int PRIMARY KEY, code text UNIQUE, rank int NOT NULL UNIQUE,
    boss int REFERENCES node, note text);
CREATE TABLE leaf (
    id int, sub text, node int NOT NULL REFERENCES node, note text, PRIMARY KEY (id, sub));
CREATE TABLE one (id int PRIMARY KEY, other int);
CREATE TABLE other (id int PRIMARY KEY, one int NOT NULL REFERENCES one);
ALTER TABLE one ADD FOREIGN KEY (other) REFERENCES other;
CREATE TABLE chain (id int PRIMARY KEY, up int NOT NULL REFERENCES chain, note text);
CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL);
CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL REFERENCES egg);
ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen;
CREATE TABLE soon (
    id int PRIMARY KEY, up int NOT NULL REFERENCES soon DEFERRABLE,
    place int NOT NULL UNIQUE DEFERRABLE);
"""


@dataclass(frozen=True)
class Model:
    """Columns of a table; what is unique; what points where; what can be null."""

    key: tuple[str, ...]
    columns: tuple[str, ...]
    unique: tuple[str, ...] = ()
    points: tuple[tuple[str, str], ...] = ()
    nullable: tuple[str, ...] = ()


MODELS = {
    "node": Model(
        ("id",), ("code", "rank", "boss", "note"), ("code", "rank"), (("boss", "node"),),
        ("code", "boss", "note"),
    ),
    "leaf": Model(("id", "sub"), ("node", "note"), (), (("node", "node"),), ("note",)),
    "one": Model(("id",), ("other",), (), (("other", "other"),), ("other",)),
    "other": Model(("id",), ("one",), (), (("one", "one"),)),
    "chain": Model(("id",), ("up", "note"), (), (("up", "chain"),), ("note",)),
    "egg": Model(("id",), ("hen",), (), (("hen", "hen"),)),
    "hen": Model(("id",), ("egg",), (), (("egg", "egg"),)),
    "soon": Model(("id",), ("up", "place"), ("place",), (("up", "soon"),)),
}  # fmt: skip


def broken(state: State) -> list[tuple[str, tuple[str, ...]]]:
    """Rows that a constraint refuses."""
    found = []
    for name, model in MODELS.items():
        seen: dict[tuple[str, str | None], tuple[str, ...]] = {}
        for key, row in state[name].items():
            for column in model.unique:
                value = row[column]
                if value is not None and seen.setdefault((column, value), key) != key:
                    found.append((name, key))
            for column, goal in model.points:
                value = row[column]
                if value is not None and (value,) not in state[goal]:
                    found.append((name, key))
    return found


def repaired(state: State) -> State:
    while bad := broken(state):
        for name, key in bad:
            state[name].pop(key, None)
    return state


KEYS = [str(i) for i in range(1, 7)]


def new_row(rng: random.Random, state: State, model: Model) -> dict[str, str | None]:
    """A row that mostly points to rows that are there, with a value that is mostly free."""
    row: dict[str, str | None] = {}
    goals = dict(model.points)
    for column in model.columns:
        if column in model.nullable and rng.random() < 0.3:
            row[column] = None
        elif column in goals and state[goals[column]]:
            row[column] = rng.choice(sorted(state[goals[column]]))[0]
        else:
            row[column] = str(rng.randint(1, 30))
    return row


def edit(rng: random.Random, state: State) -> None:
    """One change, whether constraints allow it or not."""
    name = rng.choice([*sorted(MODELS), "node", "node", "node", "leaf"])
    model, table = MODELS[name], state[name]
    key = tuple(rng.choice(KEYS) for _ in model.key)
    kind = rng.choice(["put", "drop", "set", "rotate", "ring"])
    if kind == "put":
        table[key] = new_row(rng, state, model)
    elif kind == "drop" and table:
        table.pop(rng.choice(sorted(table)))
    elif kind == "set" and table:
        row = table[rng.choice(sorted(table))]
        column = rng.choice(model.columns)
        row[column] = new_row(rng, state, model)[column]
    elif kind == "rotate" and len(table) > 1 and model.unique:
        column = rng.choice(model.unique)
        keys = rng.sample(sorted(table), rng.randint(2, len(table)))
        values = [table[other][column] for other in keys]
        for other, value in zip(keys, values[1:] + values[:1], strict=True):
            table[other][column] = value
    elif kind == "ring":  # rows that point to each other come at once
        for goal_name, goal_model in MODELS.items():
            for column, goal in model.points:
                if goal_name == goal and any(back == name for _, back in goal_model.points):
                    table[key] = {**new_row(rng, state, model), column: key[0]}
                    back = next(c for c, other in goal_model.points if other == name)
                    row = {**new_row(rng, state, goal_model), back: key[0]}
                    state[goal].setdefault((key[0],), row)


def branched(rng: random.Random, state: State, count: int) -> State:
    """A state that comes from another one by some changes."""
    changed = {name: {key: dict(row) for key, row in rows.items()} for name, rows in state.items()}
    for _ in range(count):
        edit(rng, changed)
    return repaired(changed)


def history(rng: random.Random) -> tuple[State, State, State]:
    base = branched(rng, {name: {} for name in MODELS}, rng.randint(0, 80))
    return base, branched(rng, base, rng.randint(0, 6)), branched(rng, base, rng.randint(0, 12))


def reference(base: State, ours: State, theirs: State, side: str) -> tuple[State, int]:
    """The three-way merge, written down plainly, and how many rows are in conflict."""
    result: State = {}
    conflicts = 0
    for name, model in MODELS.items():
        result[name] = {}
        for key in {*base[name], *ours[name], *theirs[name]}:
            b, o, t = (state[name].get(key) for state in (base, ours, theirs))
            if o == t or t == b:
                row = o
            elif o == b:
                row = t
            elif b is None or o is None or t is None:
                conflicts += 1
                row = o if side == "ours" else t
            else:
                row = {}
                torn = False
                for column in model.columns:
                    if o[column] == t[column] or t[column] == b[column]:
                        row[column] = o[column]
                    elif o[column] == b[column]:
                        row[column] = t[column]
                    else:
                        torn = True
                        row[column] = (o if side == "ours" else t)[column]
                conflicts += torn
            if row is not None:
                result[name][key] = row
    return result, conflicts


class Trio:
    """Sessions in three databases; everything is undone after each example."""

    def __init__(self, cluster: Cluster) -> None:
        self.base, self.ours, self.theirs = (
            PgSession(cluster.connect(name)) for name in ("base", "ours", "theirs")
        )
        self.sessions = (self.base, self.ours, self.theirs)
        for session in self.sessions:
            session.known = session.tables()

    def merge(
        self,
        side: Strategy = "manual",
        limits: Limits | None = None,
        stage_from: int | None = None,
        sets_from: int | None = None,
        decisions: Mapping[TableId, Decisions] | None = None,
    ) -> Merged:
        return merge(
            *self.sessions,
            side,
            limits=limits,
            stage_from=stage_from,
            sets_from=sets_from,
            decisions=decisions,
        )

    def load(self, states: tuple[State, State, State]) -> None:
        for session, state in zip(self.sessions, states, strict=True):
            session.log.clear()
            session.sql("BEGIN")
            session.sql("SET LOCAL session_replication_role = replica")
            for name, table in state.items():
                model = MODELS[name]
                if table:
                    values = ", ".join(
                        "(" + ", ".join(
                            "NULL" if value is None else f"'{value}'"
                            for value in (*key, *(row[c] for c in model.columns))
                        ) + ")"
                        for key, row in table.items()
                    )  # fmt: skip
                    columns = ", ".join((*model.key, *model.columns))
                    session.sql(f"INSERT INTO {name} ({columns}) VALUES {values}")
            session.sql("SET LOCAL session_replication_role = origin")

    def read(self, number: int) -> State:
        found: State = {}
        for name, model in MODELS.items():
            width = len(model.key)
            columns = ", ".join((*model.key, *model.columns))
            found[name] = {
                tuple(str(v) for v in row[:width]): dict(
                    zip(model.columns, row[width:], strict=True)
                )
                for row in self.sessions[number].sql(f"SELECT {columns} FROM {name}")
            }
        return found

    def undo(self) -> None:
        for session in self.sessions:
            session.sql("ROLLBACK")


@pytest.fixture(scope="module")
def server(cluster_base: Path) -> Iterator[Cluster]:
    """A plain server: nothing here needs the library."""
    made = Cluster.create(
        cluster_base, "merge_server", {"fsync": "off"}, extension=False, library=False
    )
    yield made
    made.destroy()


@pytest.fixture(scope="module")
def trio(server: Cluster) -> Trio:
    server.sql("CREATE DATABASE base")
    server.sql(SCHEMA, dbname="base")
    for name in ("ours", "theirs"):
        server.sql(f"CREATE DATABASE {name} TEMPLATE base")
    return Trio(server)


def test_model(trio: Trio, seed: int) -> None:
    """Merging any two histories gives the plain three-way merge, or what its constraints say.

    Every state that the target's constraints allow is reached, whatever order and whatever
    moments without a value that takes: circles of foreign keys, swapped unique values.  Rows that
    only the source has changed, and conflicts, are decided and written one by one, or all at once.
    """

    @example(272632, "theirs", False, 1, None, None)  # the lowest rank is 6; 5 comes in
    @hypothesis_seed(seed)
    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.integers(0, 2**32),
        st.sampled_from(["ours", "theirs"]),
        st.booleans(),
        st.sampled_from([1, 2, 1000]),
        st.sampled_from([None, 1, 2]),
        st.sampled_from([None, 1, 2]),
    )
    def check(
        number: int,
        side: Strategy,
        inline: bool,
        batch: int,
        stage_from: int | None,
        sets_from: int | None,
    ) -> None:
        states = history(random.Random(number))
        expected, conflicts = reference(*states, side)
        trio.load(states)
        for session in trio.sessions:
            session.inline = inline
        try:
            if broken(expected):
                with pytest.raises(psycopg.errors.IntegrityError) as refused:
                    trio.merge(side, Limits(rows=batch), stage_from, sets_from)
                assert refused.value.diag.constraint_name
                return
            merged = trio.merge(side, Limits(rows=batch), stage_from, sets_from)
            assert trio.read(1) == expected
            assert len(merged.conflicts) + sum(found for found, _, _ in merged.sets) == conflicts
            assert not merged.endangered
            assert all(step.planned == step.done for step in merged.written)
            if not conflicts:
                again = trio.merge(stage_from=stage_from)
                assert again.rows == 0
                assert not again.conflicts
        finally:
            trio.undo()

    check()


def test_conflicts_found_at_once(trio: Trio, seed: int) -> None:
    """The target's statement finds the conflicts that are found row by row, and writes the same
    down of them; what is no conflict is done as ever."""

    @hypothesis_seed(seed)
    @settings(
        max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, 2**32), st.sampled_from([None, 1]), st.booleans())
    def check(number: int, stage_from: int | None, inline: bool) -> None:
        states = history(random.Random(number))
        _, conflicts = reference(*states, "ours")
        assume(conflicts)
        trio.load(states)
        for session in trio.sessions:
            session.inline = inline
        try:
            one = trio.merge()
            other = trio.merge(stage_from=stage_from, sets_from=1)
            assert one.run.unresolved == other.run.unresolved == conflicts
            assert sum(count for count, _, _ in other.sets) == conflicts
            assert not other.conflicts
            assert one.rows == other.rows
            assert one.noted(trio.ours) == other.noted(trio.ours)
        finally:
            trio.undo()

    check()


def _decided(rng: random.Random, merged: Merged) -> dict[TableId, Decisions]:
    """Somebody's decisions about some of the conflicts of a merge."""
    made: dict[TableId, Decisions] = {}
    for name, c in merged.conflicts:
        side = rng.choice((None, "ours", "theirs"))
        if side is not None:
            seen = digest(c.key, c.base, c.ours, c.theirs)
            getattr(made.setdefault(name, Decisions()), side).append(seen)
    return {
        name: Decisions(*(array("q", sorted(found)) for found in (one.ours, one.theirs)))
        for name, one in made.items()
    }


def test_conflicts_decided_at_once(trio: Trio, seed: int) -> None:
    """A strategy, and decisions of somebody, are followed in the statement that finds conflicts:
    rows, what is written down, and what is kept are those of a merge row by row."""

    @hypothesis_seed(seed)
    @settings(
        max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, 2**32), st.sampled_from(["manual", "ours", "theirs"]), st.booleans())
    def check(number: int, side: Strategy, inline: bool) -> None:
        rng = random.Random(number)
        states = history(rng)
        merged_state, conflicts = reference(*states, "ours")
        assume(conflicts and not broken(merged_state))
        trio.load(states)
        for session in trio.sessions:
            session.inline = inline
        try:
            decisions = (
                _decided(rng, trio.merge()) if side == "manual" or rng.random() < 0.5 else {}
            )
            found: list[object] = []
            for stage_from, sets_from in ((None, None), (1, 1)):
                trio.ours.sql("SAVEPOINT s")
                try:
                    one = trio.merge(
                        side, stage_from=stage_from, sets_from=sets_from, decisions=decisions
                    )
                except psycopg.errors.IntegrityError:
                    found.append(None)
                else:
                    assert sum(n for n, _, _ in one.sets) == (conflicts if sets_from else 0)
                    assert not (sets_from and one.conflicts)
                    assert sum(n for _, n, _ in one.sets) == one.run.unresolved * bool(sets_from)
                    actions = [
                        sorted(map(to_json, run.actions())) for run in one.run.tables.values()
                    ]
                    state, noted = trio.read(1), one.noted(trio.ours)
                    found.append((one.run.unresolved, one.rows, actions, noted, state))
                trio.ours.sql("ROLLBACK TO s")
            assert found[0] == found[1]
        finally:
            trio.undo()

    check()
