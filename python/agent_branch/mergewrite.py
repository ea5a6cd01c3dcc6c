"""Writes what a merge has collected into the target: the passes of apply.py.

What a constraint refuses is found by halving a statement's rows, tried again after the others, or
exchanged with what it is in the way of (exchange.py).  Anything else that is raised ends the merge,
and says for which row (culprit.py).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

from agent_branch.apply import CHECK, DEFER, Kind, Pass, plan_passes, statements
from agent_branch.claims import MAX_VALUES
from agent_branch.errors import RaisedError, table_text
from agent_branch.exchange import APART, WHY_NOT, exchange, groups, may_exchange
from agent_branch.merge import Action, Delete, Update
from agent_branch.records import dataclass, field, replace
from agent_branch.sqltext import (
    Limits,
    Refusal,
    Row,
    Statement,
    WritingSession,
    qualified,
    quote_literal,
    restore_statements,
    settings_statement,
)
from agent_branch.staging import kind_of
from agent_branch.tableorder import TableId, order_tables
from agent_branch.tablerun import TableRun
from agent_branch.tableshape import TableShape
from agent_branch.writes import GuardPart, Part, RecountPart, halves, key_in

# So many refused updates of a table are tried again when the others are done: what another row
# has given up by then, in an index of which nobody can tell beforehand.
MAX_AGAIN = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """A statement was run: rows it was for, rows that it changed."""

    table: TableId
    kind: Kind
    planned: int
    done: int


@dataclass(frozen=True, slots=True)
class Endangered:
    """Deleting the row with ``key`` would also change or delete ``row`` (jsonb) of ``child``."""

    table: TableId
    key: Row
    constraint: str
    child: TableId
    row: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A constraint refused the change of the row with ``key``, which was not made.

    ``key`` None: it is not known which row; ``table`` None: nor of which table.
    """

    table: TableId | None
    key: Row | None
    why: Refusal


Step = Written | Endangered | Refused

# Constraints that can be deferred: (schema, name).  The search_path is the database's own.
DEFERRABLE = Statement(
    "SELECT DISTINCT n.nspname, c.conname FROM pg_catalog.pg_constraint AS c"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.connamespace"
    " WHERE c.condeferrable ORDER BY n.nspname, c.conname"
)

# Tables that have constraints of a name: (schema, name).
CONSTRAINED = (
    "SELECT n.nspname, t.relname FROM pg_catalog.pg_constraint AS c"
    " JOIN pg_catalog.pg_namespace AS s ON s.oid OPERATOR(pg_catalog.=) c.connamespace"
    " JOIN pg_catalog.pg_class AS t ON t.oid OPERATOR(pg_catalog.=) c.conrelid"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) t.relnamespace"
    " WHERE s.nspname OPERATOR(pg_catalog.=) {} AND c.conname OPERATOR(pg_catalog.=) {}"
    " ORDER BY n.nspname, t.relname"
)


def may_lock_rows(shape: TableShape) -> Statement:
    table = f"{quote_literal(shape.sql)}::pg_catalog.regclass"
    return Statement(
        f"SELECT pg_catalog.has_any_column_privilege({table}, 'UPDATE')"
        f" AND NOT pg_catalog.row_security_active({table})"
    )


@dataclass(slots=True)
class Writing:
    """Of all tables of a merge; ``schema``: all tables of the target; ``gone``: what was deleted
    before its turn."""

    ours: WritingSession
    schema: Sequence[TableShape]
    tables: Mapping[TableId, TableRun]
    limits: Limits = field(default_factory=Limits)
    gone: dict[TableId, set[Row]] = field(default_factory=dict)

    def write(self) -> Iterator[Step]:
        """Report each step.

        What constraints refuse is reported, and the rest written; then, as after an error of
        the server's, the caller's transaction is to be rolled back.
        """
        active = [run for run in self.tables.values() if run.count]
        self._put_in_order(active)
        self.ours.execute(DEFER)
        passes = plan_passes(
            [run.merge.shape for run in active],
            self.schema,
            {run.merge.shape.id: run.claims for run in active},
        )
        for one in passes:
            refused: list[tuple[Part, Statement, Refusal]] = []
            for part in one.parts:
                yield from self._write_staged(one, part, refused)
            for part, statement in statements(one, self._actions, self.limits):
                if isinstance(part, GuardPart):
                    yield from self._endangered(part, self.ours.rows(self._but(part, statement)))
                elif one.kind == "hold":
                    self._hold(part, statement)
                elif one.kind == "early":
                    yield from self._early(part, statement)
                else:
                    yield from self._written(part, one.kind, statement, refused)
            while one.kind == "update" and 0 < len(refused) <= MAX_AGAIN:
                again, refused = refused, []
                for part, statement, _ in again:
                    yield from self._written(part, one.kind, statement, refused)
                if len(refused) == len(again):
                    break
            if one.kind == "vacate":
                refused = []  # what it was to make way for is refused then, or changes places
            if one.kind == "update":
                refused = yield from self._exchanged(refused)
            for part, statement, why in refused:
                yield Refused(part.shape.id, key_in(part, statement), why)
        yield from self._checked()

    def _early(self, part: Part, statement: Statement) -> Iterator[Step]:
        """Delete rows before others are written; those that something points to go later."""
        gone = self.gone.setdefault(part.shape.id, set())
        if len(gone) >= MAX_VALUES:
            return
        refused: list[tuple[Part, Statement, Refusal]] = []
        yield from self._written(part, "delete", statement, refused)
        left = {key_in(part, row) for _, row, _ in refused}
        gone.update(key for key in zip(*statement.parameters, strict=True) if key not in left)

    def _hold(self, part: Part, statement: Statement) -> None:
        """To lock rows takes the right to update them; who has not got it locks the table."""
        if list(self.ours.rows(may_lock_rows(part.shape))) != [("t",)]:
            statement = Statement(f"LOCK TABLE {part.shape.only} IN EXCLUSIVE MODE")
        self.ours.attempt(statement)

    def _put_in_order(self, active: Sequence[TableRun]) -> None:
        groups = order_tables([run.merge.shape for run in active])
        late = {name for group in groups for name, mask in group.late.items() if mask}
        late |= {table.id for group in groups if group.at_once for table in group.tables}
        for run in active:
            if not run.is_in_order(self.schema, run.merge.shape.id in late):
                run.unstage()

    def _write_staged(
        self, one: Pass, part: Part, refused: list[tuple[Part, Statement, Refusal]]
    ) -> Iterator[Step]:
        """All rows of a kind at once; what is refused so, in batches."""
        run = self.tables[part.shape.id]
        if run.stage is None:
            return
        for kind, statement in run.stage.statements(part):
            try:
                done = self.ours.attempt(statement)
            except RaisedError as error:
                rows = (batch for _, batch in self._batched(one, part, kind))
                raise self._located(error, part, rows) from error
            if not isinstance(done, Refusal):
                yield Written(part.shape.id, one.kind, statement.rows, done)
                continue
            for _, batch in self._batched(one, part, kind):
                yield from self._written(part, one.kind, batch, refused)

    def _batched(
        self, one: Pass, part: Part, kind: tuple[str, int]
    ) -> Iterator[tuple[Part, Statement]]:
        def of_kind(table: TableId) -> Iterator[Action]:
            staged = self.tables[table].staged_actions()
            return (action for action in staged if kind_of(action) == kind)

        return statements(Pass(one.kind, (part,)), of_kind, self.limits)

    def _written(
        self,
        part: Part,
        kind: Kind,
        statement: Statement,
        refused: list[tuple[Part, Statement, Refusal]],
    ) -> Iterator[Step]:
        """A batch in which something is refused is halved until it is known what."""
        try:
            done = self.ours.attempt(self._placed(part, statement))
        except RaisedError as error:
            raise self._located(error, part, [statement]) from error
        if not isinstance(done, Refusal):
            yield Written(part.shape.id, kind, statement.rows, done)
            return
        smaller = halves(part, statement)
        for half in smaller:
            yield from self._written(part, kind, half, refused)
        if not smaller:
            refused.append((part, statement, done))

    def _placed(self, part: Part, statement: Statement) -> Statement:
        """Rows without a key are told by the texts of their values, which are those of the settings
        for reading; triggers see the database's own."""
        if not isinstance(part, RecountPart) or not part.removes or statement.answers:
            return statement
        for _ in self.ours.rows(settings_statement()):
            pass
        places = [place or "" for (place,) in self.ours.rows(part.places(statement))]
        for one in restore_statements():
            self.ours.execute(one)
        return part.removal(statement, places)

    def _exchanged(
        self, refused: list[tuple[Part, Statement, Refusal]]
    ) -> Generator[Step, None, list[tuple[Part, Statement, Refusal]]]:
        """Rows in each other's way change places, if they can; the others are still refused."""
        keys: dict[TableId, set[Row]] = {}
        for part, statement, why in refused:
            key = key_in(part, statement)
            if key is not None and why.sqlstate in APART:
                keys.setdefault(part.shape.id, set()).add(key)
        cannot: set[tuple[TableId, Row]] = set()
        done: set[tuple[TableId, Row]] = set()
        for table, some in keys.items():
            run = self.tables[table]
            updates = [a for a in run.spool if isinstance(a, Update) and a.key in some]
            for group in groups(run.claims, updates):
                found = {(table, update.key) for update in group}
                if self._exchange(run.merge.shape, group):
                    done |= found
                    yield Written(table, "update", len(group), len(group))
                else:
                    cannot |= found
        left = []
        for part, statement, why in refused:
            place = (part.shape.id, key_in(part, statement) or ())
            if place in cannot:
                why = replace(why, detail=f"{why.detail} {WHY_NOT}".lstrip())
            if place not in done:
                left.append((part, statement, why))
        return left

    def _exchange(self, shape: TableShape, updates: Sequence[Update]) -> bool:
        if list(self.ours.rows(may_exchange(shape, updates))) != [("t",)]:
            return False
        whole = next(one for one in self.schema if one.id == shape.id)
        try:
            return self.ours.attempt(exchange(shape, whole, updates)) == len(updates)
        except RaisedError as error:
            raise error.with_detail(f"It was raised for {table_text([shape.id])}.") from error

    def _checked(self) -> Iterator[Step]:
        """The server stops at the first constraint that does not hold; each is asked for."""
        raised = None
        try:
            if not isinstance(self.ours.attempt(CHECK), Refusal):
                return
        except RaisedError as error:
            raised = error
        for schema, name in list(self.ours.rows(DEFERRABLE)):
            assert schema is not None
            assert name is not None
            said = self._one_checked(schema, name)
            if isinstance(said, Refusal):
                table = (said.schema, said.table)
                yield Refused(table if said.table else None, None, said)
        if raised is not None:
            raise raised

    def _located(
        self, error: RaisedError, part: Part, statements: Iterable[Statement]
    ) -> RaisedError:
        from agent_branch.culprit import located  # few merges need it

        return located(error, self.ours, part, statements)

    def _one_checked(self, schema: str, name: str) -> int | Refusal:
        try:
            return self.ours.attempt(
                Statement(f"SET CONSTRAINTS {qualified(schema, name)} IMMEDIATE")
            )
        except RaisedError as error:
            found = CONSTRAINED.format(quote_literal(schema), quote_literal(name))
            tables = [(s or "", t or "") for s, t in self.ours.rows(Statement(found))]
            said = f'It was raised by trigger "{name}" of {table_text(tables)}.'
            raise error.with_detail(said) from error

    def _but(self, part: GuardPart, statement: Statement) -> Statement:
        """Without what is deleted from the other table by the same statement."""
        if part.beside is None:
            return statement
        actions = self._actions(part.beside.id)
        return part.but(statement, [a.key for a in actions if isinstance(a, Delete)])

    def _endangered(self, part: GuardPart, answers: Iterator[Row]) -> Iterator[Endangered]:
        width = len(part.shape.key)
        for answer in answers:
            row = answer[width]
            assert row is not None
            yield Endangered(part.shape.id, answer[:width], part.key.name, part.child.id, row)

    def _actions(self, table: TableId) -> Iterable[Action]:
        spool, gone = self.tables[table].spool, self.gone.get(table)
        if not gone:
            return spool
        return (a for a in spool if not (isinstance(a, Delete) and a.key in gone))
