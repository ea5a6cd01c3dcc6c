"""Conflicts of a merge found by the target, many rows by one statement.

What merge.py decides row by row is decided here by the server: changes of the source are sent to
the target as they are, which looks its rows up, says which are in conflict, and writes down these
itself: as lines for what is kept of a merge (revert.conflict_to_json) and for people
(clashes.Clash).  What was decided for them, by a strategy or by somebody, goes into the stage
(staging.py) at once, with a line for each action (revert.to_json).  No row in conflict is looked
at here; changes that are none are left to staging.py and merge.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from agent_branch import conflictsql
from agent_branch.conflictsql import array_text, differences, if_there, joined, row_text
from agent_branch.diff import ChangeKind, RowChange
from agent_branch.jsontext import compact
from agent_branch.merge import Decisions, Strategy
from agent_branch.records import dataclass, field
from agent_branch.sqltext import Session, Statement, WritingSession, parse_array, quote_literal
from agent_branch.staging import MAX_COLUMNS, Kind, Stage
from agent_branch.tableshape import TableShape

# Characters of changes in one statement; a single change that is longer is left alone.
CHARACTERS = 2 << 20
# Decisions that are sent at once.
SENT = 50_000


@dataclass(frozen=True, slots=True)
class Found:
    """``count`` conflicts, ``open`` of them decided by nobody, as lines with their ends: ``kept``
    of the open ones, ``shown`` to people, ``actions`` of the others, with the number of each kind.
    """

    count: int
    open: int
    kept: str
    shown: str
    actions: str = ""
    kinds: Counter[Kind] = field(default_factory=Counter)


def may_find(shape: TableShape) -> bool:
    return bool(shape.key) and len(shape.columns) <= MAX_COLUMNS


@dataclass(frozen=True, slots=True)
class Finder:
    """Of one table.  ``strategy``: for conflicts not in ``decisions``, the name of a table;
    ``stage``: for what was decided."""

    session: Session
    shape: TableShape
    strategy: Strategy = "manual"
    stage: Stage | None = None
    decisions: str | None = None

    def find(self, changes: Iterable[RowChange]) -> tuple[list[RowChange], list[Found]]:
        """(changes that are to be decided elsewhere, conflicts among the others).

        The session's settings are those for reading.
        """
        by_kind: dict[ChangeKind, list[RowChange]] = {}
        for change in changes:
            by_kind.setdefault(change.kind, []).append(change)
        left: list[RowChange] = []
        found: list[Found] = []
        if self.stage is not None and self.decides:
            self.stage.make()
        for kind, some in by_kind.items():
            self._find(kind, some, left, found)
        return left, found

    @property
    def decides(self) -> bool:
        return self.strategy != "manual" or self.decisions is not None

    def _find(
        self,
        kind: ChangeKind,
        changes: Sequence[RowChange],
        left: list[RowChange],
        found: list[Found],
    ) -> None:
        able = self.shape.updatable
        text = compact([(c.key, c.before, c.after, c.changed & able) for c in changes])
        if len(text) > CHARACTERS:
            middle = len(changes) // 2
            for some in (changes[:middle], changes[middle:]):
                if middle:
                    self._find(kind, some, left, found)
                else:
                    left += some
            return
        ((others, count, undecided, kept, shown, actions, kinds),) = list(
            self.session.rows(_finding(self, kind, text))
        )
        left += (changes[int(n or 0)] for n in parse_array(others or "{}"))
        if count and count != "0":
            found.append(
                Found(
                    int(count),
                    int(undecided or 0),
                    _ended(kept),
                    _ended(shown),
                    _ended(actions),
                    _kinds(kinds or ""),
                )
            )


def _ended(lines: str | None) -> str:
    return lines + "\n" if lines else ""


def _kinds(text: str) -> Counter[Kind]:
    """From "what mask number" of each."""
    words = text.split()
    return Counter(
        {
            (what, int(mask)): int(number)
            for what, mask, number in zip(words[::3], words[1::3], words[2::3], strict=True)
        }
    )


def finder(
    session: WritingSession,
    shape: TableShape,
    strategy: Strategy,
    decisions: Decisions,
    stage: Stage | None,
) -> Finder | None:
    """None: conflicts of the table are to be decided row by row."""
    if not may_find(shape):
        return None
    if strategy == "manual" and not decisions:
        return Finder(session, shape)
    if stage is None:
        return None
    sides = decisions_table(session, decisions, stage.number)
    return Finder(session, shape, strategy, stage, sides)


def decisions_table(session: WritingSession, decisions: Decisions, number: int) -> str | None:
    """A temporary table of the target with the decisions; None: there are none."""
    if not decisions:
        return None
    table = f"pg_temp.ab_sides_{number}"
    session.execute(
        Statement(
            f"CREATE TEMPORARY TABLE {table.removeprefix('pg_temp.')}"
            " (v pg_catalog.int8 PRIMARY KEY, s pg_catalog.text) ON COMMIT DROP"
        )
    )
    for side, digests in (("ours", decisions.ours), ("theirs", decisions.theirs)):
        for start in range(0, len(digests), SENT):
            some = ",".join(map(str, digests[start : start + SENT]))
            session.execute(
                Statement(
                    f"INSERT INTO {table} SELECT u.v, '{side}'"
                    f" FROM pg_catalog.unnest('{{{some}}}'::pg_catalog.int8[]) AS u (v)"
                    " ON CONFLICT (v) DO NOTHING"
                )
            )
    return table


# ---- the statement ----------------------------------------------------------------


def _finding(finder: Finder, kind: ChangeKind, text: str) -> Statement:
    """Answer: numbers of the changes that are left / conflicts: how many, open ones, these kept,
    all shown / lines of actions / "what mask number" of each kind of them."""
    shape = finder.shape
    shown = conflictsql.shown(shape, ("d.shown_key", "d.base_row", "d.our_row", "d.their_row"))
    kept = conflictsql.kept(("d.key", "d.before", "d.now", "d.after"))
    conflict = "FILTER (WHERE d.kind <> 'other')"
    undecided = "FILTER (WHERE d.kind <> 'other' AND d.side IS NULL)"
    staged, actions, kinds = "", "NULL", "NULL"
    if finder.decides:
        assert finder.stage is not None
        staged = f", s AS ({_staging(finder.stage, kind)})"
        actions = (
            f"pg_catalog.string_agg({_action(shape)}, E'\\n') FILTER (WHERE d.what IS NOT NULL)"
        )
        kinds = (
            "(SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', k.what, k.mask, k.number),"
            " ' ') FROM (SELECT d.what, d.mask, pg_catalog.count(*) AS number FROM d"
            " WHERE d.what IS NOT NULL GROUP BY d.what, d.mask) AS k)"
        )
    decided = conflictsql.decided(
        f"SELECT m.*, {conflictsql.KINDS[kind]} AS kind FROM ({_matched(finder, kind, text)}) AS m"
        " OFFSET 0",
        finder.strategy,
        finder.decisions,
        digest=conflictsql.digest(("c.key", "c.before", "c.now", "c.after")),
    )
    return Statement(
        f"WITH d AS MATERIALIZED ({decided}){staged}"
        " SELECT pg_catalog.array_agg(d.n) FILTER (WHERE d.kind = 'other'),"
        f" pg_catalog.count(*) {conflict}, pg_catalog.count(*) {undecided},"
        f" pg_catalog.string_agg({kept}, E'\\n') {undecided},"
        f" pg_catalog.string_agg({shown}, E'\\n') {conflict},"
        f" {actions}, {kinds}"
        " FROM (SELECT * FROM d ORDER BY d.n) AS d"
    )


def _staging(stage: Stage, kind: ChangeKind) -> str:
    shape = stage.shape
    keys = [f"k{j}" for j, _ in enumerate(shape.key)]
    values = shape.stored if kind != "removed" else ()
    into = ["what", "mask", "n", *keys, *(f"v{i}" for i in values)]
    used = (f"CASE WHEN d.what = 'i' OR d.mask & {1 << i} <> 0 THEN d.v{i} END" for i in values)
    return (
        f"INSERT INTO {stage.table} ({', '.join(into)})"
        f" SELECT d.what, d.mask, d.n, {', '.join([*(f'd.{key}' for key in keys), *used])}"
        " FROM d WHERE d.what IS NOT NULL"
    )


def _action(shape: TableShape) -> str:
    """A line as staging.py has them."""
    known = (1 << len(shape.columns)) - 1
    return (
        "CASE d.what WHEN 'i' THEN pg_catalog.concat('[\"insert\", ', d.key, ', ', d.after, ']')"
        " WHEN 'd' THEN pg_catalog.concat('[\"delete\", ', d.key, ', ', d.now, ']')"
        " ELSE pg_catalog.concat('[\"set\", ', d.key, ', ', d.mask, ', ', d.now,"
        f" ', {known}, ', d.after, ']') END"
    )


def _matched(finder: Finder, kind: ChangeKind, text: str) -> str:
    """Changes beside the rows of the target; all that is JSON as text."""
    shape, before, after = finder.shape, kind != "added", kind != "removed"
    columns = shape.columns
    width = range(len(columns))
    casts = [f"{columns[i].cast(f'(l.a -> 0 ->> {j})')} AS k{j}" for j, i in enumerate(shape.key)]
    if before:
        casts += [f"{columns[i].cast(f'(l.a -> 1 ->> {i})')} AS b{i}" for i in width]
    if after:
        casts += [f"{columns[i].cast(f'(l.a -> 2 ->> {i})')} AS v{i}" for i in width]
    ours = [f"t.{column.sql}" for column in columns]
    others = [f"r.{'v' if after else 'b'}{i}" for i in width]
    keys = [f"CASE WHEN {_HAD} THEN {ours[i]} ELSE {others[i]} END" for i in shape.key]
    none = "'null'::text"
    answer = {
        "now": if_there(_HAD, array_text(columns, ours)),
        "ours": differences(shape, shape.compared, ours.__getitem__, "r.b{}".format)
        if before
        else "0::int8",
        "apart": differences(shape, shape.updatable, ours.__getitem__, "r.v{}".format)
        if after
        else "0::int8",
        "base_row": row_text(columns, [f"r.b{i}" for i in width]) if before else none,
        "their_row": row_text(columns, [f"r.v{i}" for i in width]) if after else none,
        "our_row": if_there(_HAD, row_text(columns, ours)),
        "shown_key": row_text([columns[i] for i in shape.key], keys),
    }
    if finder.decides:
        answer |= {f"k{j}": f"r.k{j}" for j, _ in enumerate(shape.key)}
        answer |= {f"v{i}": f"r.v{i}" for i in shape.stored if after}
    return (
        f"SELECT r.n, r.key, r.before, r.after, r.theirs, {_HAD} AS had,"
        f" {', '.join(f'{value} AS {name}' for name, value in answer.items())}"
        f" FROM (SELECT l.n - 1 AS n, (l.a -> 0)::text AS key, (l.a -> 1)::text AS before,"
        f" (l.a -> 2)::text AS after, (l.a ->> 3)::int8 AS theirs, {', '.join(casts)}"
        f" FROM pg_catalog.jsonb_array_elements({quote_literal(text)}::jsonb)"
        f" WITH ORDINALITY AS l (a, n) OFFSET 0) AS r {joined(shape, 'r')} OFFSET 0"
    )


_HAD = "(t.ctid IS NOT NULL)"
