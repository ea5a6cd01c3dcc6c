"""Sessions for the package's diff and merge over psycopg, and a merge from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from ab_cluster import Cluster
from agent_branch.blocks import Blocks
from agent_branch.catalog import TABLES, Table, table_from
from agent_branch.clashes import Clashes, of_rows
from agent_branch.diffplan import TableState
from agent_branch.merge import Conflict, Decisions, Strategy
from agent_branch.mergeplan import plan_table
from agent_branch.mergerun import MergeRun
from agent_branch.mergewrite import Endangered, Written
from agent_branch.sqltext import (
    Limits,
    Refusal,
    Row,
    Statement,
    array_text,
    restore_statements,
    settings_statement,
)
from agent_branch.tableorder import TableId
from psycopg import pq


class PgSession:
    """A ``Session`` over a connection.  ``inline``: parameters are put into the text."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self.connection = connection
        self.inline = False
        self.log: list[str] = []
        self.known: dict[TableId, Table] | None = None
        self.sql("SET jit = off")

    def _run(self, statement: Statement) -> pq.abc.PGresult:
        pgconn = self.connection.pgconn
        if self.inline:
            text = statement.inline()
            result = pgconn.exec_(text.encode())
        else:
            text = statement.sql
            values = [array_text(values).encode() for values in statement.parameters]
            result = pgconn.exec_params(text.encode(), values or None)
        self.log.append(text)
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        return result

    def rows(self, statement: Statement) -> Iterator[Row]:
        result = self._run(statement)
        for i in range(result.ntuples):
            yield tuple(
                None if value is None else value.decode()
                for value in (result.get_value(i, j) for j in range(result.nfields))
            )

    def execute(self, statement: Statement) -> int:
        return self._run(statement).command_tuples or 0

    def attempt(self, statement: Statement) -> int | Refusal:
        """Constraints raise, as anything else does."""
        if not statement.answers:
            return self.execute(statement)
        return sum(int(row[0] or 0) for row in self.rows(statement))

    def sql(self, text: str) -> list[Row]:
        """Any one statement; its rows."""
        return list(self.rows(Statement(text)))

    def script(self, text: str) -> None:
        """Statements, outside of a transaction of their own if one is open."""
        result = self.connection.pgconn.exec_(text.encode())
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result, encoding="utf-8")

    def tables(self) -> dict[TableId, Table]:
        if self.known is not None:
            return self.known
        list(self.rows(settings_statement()))
        found = [table_from(row) for row in self.rows(TABLES)]
        return {table.shape.id: table for table in found}


def state(table: Table, changed: Blocks | None = None, pages: int = 0) -> TableState:
    return TableState(table.shape, table.file, changed, pages)


class Merged:
    """What a merge did."""

    def __init__(self, run: MergeRun) -> None:
        self.run = run
        self.conflicts: list[tuple[TableId, Conflict]] = []
        self.written: list[Written] = []
        self.endangered: list[Endangered] = []
        # Conflicts that were found many at once: how many, how many are open, and their lines.
        self.sets: list[tuple[int, int, str]] = []

    @property
    def rows(self) -> int:
        return self.run.rows

    def noted(self, session: PgSession) -> tuple[list[str], list[str]]:
        """What is written down of conflicts: for the merge, if they are open, and for people."""
        list(session.rows(settings_statement()))
        clashes = Clashes()
        for name, conflict in self.conflicts:
            shape = self.run.tables[name].merge.shape
            merge = self.run.tables[name].merge
            for clash in of_rows(session, shape, [conflict], merge.side_of, ".".join):
                clashes.add(clash)
        for count, _, lines in self.sets:
            clashes.add_lines(count, lines)
        shown = [json.loads(line) for piece in clashes.pieces() for line in piece.splitlines()]
        assert len(shown) == clashes.count
        for _, _, key, _, base, ours, theirs, *_ in shown:
            row = ours or theirs or base
            if isinstance(key, dict):
                assert key == {name: row[name] for name in key}
        kept = [
            json.loads(line)
            for run in self.run.tables.values()
            for piece in run.open.pieces()
            for line in piece.splitlines()
        ]
        return _sorted(kept), _sorted([[*a[:2], sorted(a[2] or ()), *a[3:]] for a in shown])


def _sorted(lines: list[list[object]]) -> list[str]:
    return sorted(json.dumps(line, sort_keys=True) for line in lines)


def merge(
    base: PgSession,
    ours: PgSession,
    theirs: PgSession,
    strategy: Strategy = "manual",
    changed: tuple[dict[TableId, Blocks], dict[TableId, Blocks]] | None = None,
    limits: Limits | None = None,
    stage_from: int | None = None,
    sets_from: int | None = None,
    decisions: Mapping[TableId, Decisions] | None = None,
) -> Merged:
    """Merge all tables, in transactions that are open in the three sessions.

    ``changed``: changed blocks of ours and of theirs; None: tables are read whole;
    ``stage_from``, ``sets_from``, ``decisions``: as in ``MergeRun``.
    """
    for session in (base, ours, theirs):
        list(session.rows(settings_statement()))
    versions = [session.tables() for session in (base, ours, theirs)]
    schema = [table.shape for table in versions[1].values()]
    run = MergeRun(
        ours,
        schema,
        strategy,
        decisions=decisions or {},
        limits=limits or Limits(),
        stage_from=stage_from,
    )
    merged = Merged(run)
    run.sets_from, run.take_set = sets_from, lambda *found: merged.sets.append(found)
    blocks: Sequence[dict[TableId, Blocks] | None] = (
        (dict.fromkeys(versions[0], Blocks(())), *changed) if changed else (None, None, None)
    )
    for name in sorted({name for tables in versions for name in tables}):
        states = [
            state(tables[name], None if known is None else known[name]) if name in tables else None
            for tables, known in zip(versions, blocks, strict=True)
        ]
        plan = plan_table(*states)
        merged.conflicts.extend(run.collect(plan, base, theirs))
    for session in (base, ours, theirs):
        for statement in restore_statements():
            session.execute(statement)
    if not run.unresolved:
        for step in run.write():
            if isinstance(step, Written):
                merged.written.append(step)
            elif isinstance(step, Endangered):
                merged.endangered.append(step)
            else:
                raise AssertionError(step)
    return merged


@contextmanager
def branch_of_branch(cluster: Cluster) -> Iterator[None]:
    """Branch b of p, which is one of main, until the block ends."""
    cluster.sql("SELECT branch.create('p', 'main')")
    cluster.sql("SELECT branch.create('b', 'p')")
    yield
    for name in ("b", "p"):
        cluster.sql("SELECT branch.delete(%s, hard => true)", [name])
