"""Two databases compared table by table, over two sessions; no server here.

*before* is the target of a merge, *after* its source: what the source has and the target has
not is "added".
"""

from __future__ import annotations

from agent_branch import bags
from agent_branch.blocks import ALL, Blocks
from agent_branch.catalog import Table
from agent_branch.diff import ChangeKind, Pairing, RowChange, can_pair, diff_rows, paired
from agent_branch.diffplan import TableDiff, TableState, plan_diff
from agent_branch.errors import ReportedError
from agent_branch.hints import Callable, Iterable, Iterator, Mapping, Sequence
from agent_branch.largeobjects import (
    CONTENTS,
    METADATA,
    UNREADABLE,
    changed_objects,
)
from agent_branch.records import dataclass, field
from agent_branch.rowqueries import SHOWN, scan
from agent_branch.sides import Side
from agent_branch.sqltext import (
    Limits,
    Session,
    Statement,
    Value,
)
from agent_branch.tableorder import TableId
from agent_branch.tableshape import same_definition

AMBIGUOUS = "42702"
UNDEFINED_TABLE = "42P01"

Shown = tuple[ChangeKind, Value, Value]


@dataclass(slots=True)
class Summary:
    """How the versions of one table differ.  ``note``: why more was read than what changed."""

    table: TableId
    schema_change: bool
    pages_read: int
    note: str
    added: int = 0
    modified: int = 0
    removed: int = 0

    @property
    def data_change(self) -> bool:
        return self.added + self.modified + self.removed > 0

    def count(self, kind: ChangeKind, copies: int = 1) -> None:
        match kind:
            case "added":
                self.added += copies
            case "removed":
                self.removed += copies
            case "modified":
                self.modified += 1


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of a table before and after, in pages, and where they may differ; None: not known."""

    before: int
    after: int
    changed: Blocks | None


Extents = Mapping[TableId, Extent]


@dataclass(frozen=True, slots=True)
class Comparison:
    before: Side
    after: Side
    extents: Extents
    limits: Limits = field(default_factory=Limits)
    # What can look at the pages of the two, if anything can.
    pairing: Pairing | None = None
    # Called with each table before it is compared.
    turn_to: Callable[[TableId], None] = lambda _: None

    def plan(self, name: TableId) -> TableDiff:
        """Of a table that is on both sides."""
        old, new, extent = self.before.files[name], self.after.files[name], self.extents[name]
        # One list for both: which side changed a page makes no difference.
        return plan_diff(
            TableState(old.shape, old.file, extent.changed, extent.before),
            TableState(new.shape, new.file, extent.changed, extent.after),
        )


def summaries(whole: Comparison) -> Iterator[Summary]:
    """The tables that differ, by name."""
    before, after = whole.before, whole.after
    for name in sorted({*before.tables, *after.tables}):
        whole.turn_to(name)
        old, new, extent = before.tables.get(name), after.tables.get(name), whole.extents[name]
        if old is not None and new is not None:
            found = _summary(whole, name, old, new)
            if found.schema_change or found.data_change:
                yield found
        elif new is not None:
            there = _count(after.session, new)
            yield Summary(name, True, extent.after, "only the source has the table", added=there)
        elif old is not None:
            there = _count(before.session, old)
            yield Summary(name, True, extent.before, "only the target has the table", removed=there)
    found = _objects_summary(whole)
    if found.data_change or found.note == UNREADABLE:
        yield found


def _summary(whole: Comparison, name: TableId, old: Table, new: Table) -> Summary:
    plan = whole.plan(name)
    before, after = whole.before.session, whole.after.session
    changed = not same_definition(old.shape, new.shape)
    found = Summary(name, changed, plan.pages_read, plan.reason)
    if not plan.blocks:
        return found
    if _counted(whole, plan, found):
        return found
    changes: Iterable[RowChange]
    if plan.counted:
        lines = (bags.lines(session, plan.shape, plan.blocks) for session in (before, after))
        changes = bags.changes(*lines)
    else:
        changes = diff_rows(plan, before, after, whole.limits, pairing=whole.pairing)
    for change in changes:
        found.count(change.kind, change.copies)
    return found


def _counted(whole: Comparison, plan: TableDiff, found: Summary) -> bool:
    """Count what differs without a look at the rows, as far as that can be done."""
    if whole.pairing is None or not can_pair(plan):
        return False
    counts = whole.pairing.counts(plan)
    if counts is not None:
        found.added, found.modified = counts.added, counts.modified
        found.removed = counts.removed
        for change in paired(plan.shape, whole.before.session, counts.unsure, whole.limits):
            found.count(change.kind)
        return True
    kinds = whole.pairing.kinds(plan) if plan.shape.exact else None
    for kind in kinds or ():
        found.count(kind)
    return kinds is not None


def large_objects(whole: Comparison) -> Iterator[tuple[ChangeKind, str]]:
    """(kind, OID) of each large object that differs."""
    whole.turn_to(CONTENTS)
    closed = whole.before.closed | whole.after.closed
    metadata, contents = (
        None if name in closed else whole.plan(name) for name in (METADATA, CONTENTS)
    )
    return changed_objects(
        metadata, contents, whole.before.session, whole.after.session, whole.limits
    )


def _objects_summary(whole: Comparison) -> Summary:
    closed = whole.before.closed | whole.after.closed
    plans = {name: whole.plan(name) for name in (METADATA, CONTENTS)}
    notes = [UNREADABLE for name in closed if plans[name].blocks]
    notes += [plan.reason for plan in plans.values() if plan.reason]
    pages = sum(plan.pages_read for name, plan in plans.items() if name not in closed)
    found = Summary(CONTENTS, False, pages, "".join(notes[:1]))
    for kind, _ in large_objects(whole):
        found.count(kind)
    return found


def _count(session: Session, table: Table) -> int:
    statement = Statement(f"SELECT pg_catalog.count(*) FROM {table.shape.only} AS t")
    return sum(int(row[0] or 0) for row in session.rows(statement))


def changed_rows(whole: Comparison, table: TableId) -> Iterator[Shown]:
    """(kind, row before, row after) of each row that differs, as jsonb."""
    whole.turn_to(table)
    if table == CONTENTS:
        for kind, oid in large_objects(whole):
            one = f'{{"loid": {oid}}}'
            yield kind, None if kind == "added" else one, None if kind == "removed" else one
        return
    before, after = whole.before, whole.after
    old, new = before.tables.get(table), after.tables.get(table)
    if old is not None and new is not None:
        plan = whole.plan(table)
        if not plan.blocks:
            return
        if not plan.counted:
            changes = diff_rows(
                plan, before.session, after.session, whole.limits, show=True, pairing=whole.pairing
            )
            yield from ((change.kind, *change.shown) for change in changes)
            return
        lines = (bags.shown_lines(s.session, plan.shape, plan.blocks) for s in (before, after))
        for change in bags.changes(*lines):
            row = change.key[0]
            added = change.kind == "added"
            for _ in range(change.copies):
                yield change.kind, None if added else row, row if added else None
    elif new is not None:
        for (shown,) in after.session.rows(scan(new.shape, ALL, [SHOWN], bare=True)):
            yield "added", None, shown
    elif old is not None:
        for (shown,) in before.session.rows(scan(old.shape, ALL, [SHOWN], bare=True)):
            yield "removed", shown, None


def find_table(before: Side, after: Side, parts: Sequence[str]) -> TableId:
    """A table by its name, with or without its schema.

    Raises ``ReportedError``: 42P01 neither database has it, 42702 it is in several schemas.
    """
    if tuple(parts) in (CONTENTS, CONTENTS[1:]):
        return CONTENTS
    known = {*before.tables, *after.tables}
    if len(parts) == 2:
        found = [name for name in known if name == tuple(parts)]
    else:
        found = [name for name in known if name[1:] == tuple(parts)]
    if len(found) == 1:
        return found[0]
    shown = ".".join(parts)
    if found:
        schemas = ", ".join(sorted(f'"{schema}"' for schema, _ in found))
        raise ReportedError(
            AMBIGUOUS,
            f'table name "{shown}" is ambiguous',
            detail=f"There is one in each of the schemas {schemas}.",
            hint="Put the name of a schema before it.",
        )
    raise ReportedError(
        UNDEFINED_TABLE,
        f'table "{shown}" does not exist',
        detail="Neither of the databases has an ordinary table of this name.",
        hint="Partitioned tables are compared partition by partition.",
    )
