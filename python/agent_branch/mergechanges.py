"""What merges changed, row by row (branch.merge_changes): kept so that they can be taken back.

Written in the transaction that has the row of the merge name the target's transaction: so it is
there if the target has the merge.  A row of the table has many changes of one table, as
lines (keptlines.py); memory holds one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from agent_branch.hints import Protocol
from agent_branch.jsontext import compact, parsed
from agent_branch.keptlines import from_line
from agent_branch.merge import Action, Delete, Insert, Recount, Update
from agent_branch.mergerun import MergeRun
from agent_branch.records import dataclass
from agent_branch.revert import to_json
from agent_branch.rowqueries import mask_from, match
from agent_branch.sqltext import (
    Limits,
    Row,
    WritingSession,
    batches,
    quote_literal,
    restore_statements,
    settings_statement,
    size_of,
)
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape

# Characters of changes in one row of the table, at most but for one change.
CHUNK = 1 << 20
# Such rows that are fetched at once.
FETCHED = 4

# The texts are long, and written once: by far the most of the time of it is compression.
_COMPRESSION = (
    "SELECT set_config(s.name, 'lz4', true) FROM pg_settings AS s"
    " WHERE s.name = 'default_toast_compression' AND 'lz4' = ANY (s.enumvals)"
)

# One table with what was changed in it.
Written = tuple[TableShape, Iterable[str]]


class Log(Protocol):
    """A transaction where the table is."""

    def run(self, sql: str) -> None: ...

    def rows(self, sql: str) -> list[Row]: ...

    def stream(self, sql: str, batch: int) -> Iterator[Row]:
        """Rows of a query, no more than ``batch`` of them in memory."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A table as it was merged: (name, type) of its columns, names of those of its key."""

    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)


def prepare(log: Log) -> None:
    """Before something is written."""
    log.rows(_COMPRESSION)


def record(log: Log, number: int, tables: Iterable[Written], first: int = 1) -> None:
    """Texts of a table are lines, each with its end, one or some at a time."""
    n = first
    for shape, lines in tables:
        head = insertion(number, shape)
        for chunk in batches(lines, Limits(rows=1 << 62, bytes=CHUNK), len):
            if n == first:
                prepare(log)
            log.run(f"{head}{n}, {sum(map(_count_lines, chunk))}, {quote_literal(''.join(chunk))})")
            n += 1


def insertion(number: int, shape: TableShape) -> str:
    """An INSERT up to where the number within the merge, the number of rows and the text come."""
    facts = compact(
        [
            [(column.name, column.type_name) for column in shape.columns],
            [shape.columns[i].name for i in shape.key],
        ]
    )
    texts = ", ".join(map(quote_literal, (shape.schema, shape.name, facts)))
    return (
        "INSERT INTO branch.merge_changes"
        " (merge_id, table_schema, table_name, shape, n, rows, changes)"
        f" VALUES ({number}, {texts}, "
    )


def _count_lines(text: str) -> int:
    return text.count("\n")


def tables(log: Log, number: int) -> dict[TableId, Kept]:
    """The tables that a merge changed."""
    found: dict[TableId, Kept] = {}
    for schema, name, facts in log.rows(
        "SELECT DISTINCT ON (c.table_schema, c.table_name)"
        " c.table_schema, c.table_name, c.shape::text"
        f" FROM branch.merge_changes AS c WHERE c.merge_id = {number}"
        " ORDER BY c.table_schema, c.table_name, c.n"
    ):
        columns, key = parsed(facts or "")
        found[schema or "", name or ""] = Kept(tuple((c, t) for c, t in columns), tuple(key))
    return found


def changes(log: Log, number: int, table: TableId) -> Iterator[Action]:
    """What a merge did to the rows of one table."""
    schema, name = table
    where = f"c.table_schema = {quote_literal(schema)} AND c.table_name = {quote_literal(name)}"
    for _, text in texts(log, number, where):
        # Only what to_json has put between them parts lines.
        yield from (from_line(line) for line in text.split("\n") if line)


def texts(log: Log, number: int, where: str = "true") -> Iterator[tuple[TableId, str]]:
    """Pieces of what is kept of a merge."""
    for schema, name, text in log.stream(
        "SELECT c.table_schema, c.table_name, c.changes FROM branch.merge_changes AS c"
        f" WHERE c.merge_id = {number} AND {where} ORDER BY c.n",
        FETCHED,
    ):
        yield (schema or "", name or ""), text or ""


def planned(run: MergeRun) -> Iterator[Written]:
    """What a merge would change, and the conflicts that keep it from that."""
    for one in run.tables.values():
        if one.count or one.open.count:
            staged = (to_json(action) + "\n" for action in one.staged_actions())
            yield one.merge.shape, chain(one.spool.pieces(), staged, one.open.pieces())


# ---- what was written indeed ----------------------------------------------------------------


def written(
    target: WritingSession, run: MergeRun, triggered: Collection[TableId], *, kept: bool = False
) -> Iterator[Written]:
    """The changes of a merge; those of ``triggered`` tables as triggers may have altered them.

    ``kept``: without those that are kept already."""
    changed = {name: one for name, one in run.tables.items() if one.count}
    if triggered:
        for _ in target.rows(settings_statement()):
            pass
    for name, one in changed.items():
        shape = one.merge.shape
        if name in triggered and shape.key:
            yield shape, (to_json(action) + "\n" for action in _found(target, shape, one.actions()))
        else:
            yield shape, one.pieces(with_kept=not kept)
    if triggered:
        for statement in restore_statements():
            target.execute(statement)


def _found(
    target: WritingSession, shape: TableShape, actions: Iterable[Action]
) -> Iterator[Action]:
    """The changes as the rows show them now."""
    for batch in batches(actions, Limits(), _size):
        rows = _look_up(target, shape, batch)
        for n, action in enumerate(batch):
            row, mask = rows.get(n, (None, 0))
            match action:
                case Insert(key) if row is not None:
                    yield Insert(key, row)
                case Update(key, _, before) if row is not None and mask:
                    yield Update(key, mask, before, row)
                case Delete() if row is None:
                    yield action


def _look_up(
    target: WritingSession, shape: TableShape, batch: list[Action]
) -> dict[int, tuple[Row, int]]:
    width = len(shape.columns)
    before = [action.before if isinstance(action, Update) else None for action in batch]
    return {
        int(answer[0] or 0): (answer[2 : 2 + width], mask_from(answer[2 + width]))
        for answer in target.rows(match(shape, [action.key for action in batch], [before]))
        if answer[1] is not None
    }


def _size(action: Action) -> int:
    match action:
        case Insert(_, row) | Recount(row):
            return size_of(row)
        case Delete(_, before):
            return size_of(before)
        case Update(_, _, before, after):
            return size_of(before) + size_of(after)
