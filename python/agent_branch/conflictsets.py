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

from agent_branch.diff import ChangeKind, RowChange
from agent_branch.jsontext import compact
from agent_branch.merge import Decisions, Strategy
from agent_branch.records import dataclass, field
from agent_branch.rowqueries import key_condition
from agent_branch.sqltext import Session, Statement, WritingSession, parse_array, quote_literal
from agent_branch.staging import MAX_COLUMNS, Kind, Stage, is_plain, output_text
from agent_branch.tableshape import Column, TableShape, positions

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
    return Finder(session, shape, strategy, stage, _sent(session, decisions, stage.number))


def _sent(session: WritingSession, decisions: Decisions, number: int) -> str | None:
    """A temporary table of the target with the decisions."""
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

# What becomes of a row (merge.decide): kind of the conflict; other: it is decided elsewhere;
# NULL: nothing.  ours, theirs: masks of the columns that differ from the base; apart: from each
# other; had: has the target the row?
_KINDS: dict[ChangeKind, str] = {
    "added": "CASE WHEN NOT m.had THEN 'other' WHEN m.apart <> 0 THEN 'insert_insert' END",
    "removed": "CASE WHEN NOT m.had THEN NULL WHEN m.ours <> 0 THEN 'update_delete'"
    " ELSE 'other' END",
    "modified": "CASE WHEN m.theirs = 0 THEN NULL WHEN NOT m.had THEN 'delete_update'"
    " WHEN m.theirs & m.ours & m.apart <> 0 THEN 'update_update'"
    " WHEN m.theirs & ~m.ours <> 0 THEN 'other' END",
}

# Columns in conflict, and those that only the source changed.
_MASKS = (
    "CASE c.kind WHEN 'insert_insert' THEN c.apart"
    " WHEN 'update_update' THEN c.theirs & c.ours & c.apart ELSE 0 END AS columns,"
    " CASE c.kind WHEN 'update_update' THEN c.theirs & ~c.ours ELSE 0 END AS merged"
)

# Digest of the versions as of merge.digest: a jsonb is the text that json.dumps makes of the same.
_DIGEST = (
    "('x' || pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to("
    "pg_catalog.concat('[', c.key, ', ', c.before, ', ', c.now, ', ', c.after, ']'),"
    " CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END"
    ")), 'hex'), 16))::pg_catalog.bit(64)::pg_catalog.int8"
)

_KEPT = (
    "pg_catalog.concat('[\"conflict\", ', d.key, ', ', d.columns, ', ', d.merged, ', ', d.before,"
    " ', ', d.now, ', ', d.after, ', ', d.versions, ']')"
)

# What is done in a conflict that was decided (merge.resolve), and which columns are set.
_WHAT = (
    "CASE WHEN e.kind = 'other' OR e.side IS NULL THEN NULL"
    " WHEN e.side = 'theirs' AND e.kind = 'update_delete' THEN 'd'"
    " WHEN e.side = 'theirs' AND e.kind = 'delete_update' THEN 'i'"
    " WHEN e.merged <> 0 OR e.side = 'theirs' THEN 'u' END AS what,"
    " e.merged | CASE e.side WHEN 'theirs' THEN e.columns ELSE 0 END AS mask"
)


def _finding(finder: Finder, kind: ChangeKind, text: str) -> Statement:
    """Answer: numbers of the changes that are left / conflicts: how many, open ones, these kept,
    all shown / lines of actions / "what mask number" of each kind of them."""
    shape = finder.shape
    shown = (
        f"pg_catalog.concat('[', {_name(shape)}, ', \"', d.kind, '\", ', d.shown_key, ', ',"
        f" {_names(shape, 'd.columns')}, ', ', d.base_row, ', ', d.our_row, ', ', d.their_row,"
        " ', null, null, ', d.versions, ', ',"
        " COALESCE(pg_catalog.to_json(d.side)::text, 'null'), ']')"
    )
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
    return Statement(
        f"WITH d AS MATERIALIZED ({_decided(finder, kind, text)}){staged}"
        " SELECT pg_catalog.array_agg(d.n) FILTER (WHERE d.kind = 'other'),"
        f" pg_catalog.count(*) {conflict}, pg_catalog.count(*) {undecided},"
        f" pg_catalog.string_agg({_KEPT}, E'\\n') {undecided},"
        f" pg_catalog.string_agg({shown}, E'\\n') {conflict},"
        f" {actions}, {kinds}"
        " FROM (SELECT * FROM d ORDER BY d.n) AS d"
    )


def _decided(finder: Finder, kind: ChangeKind, text: str) -> str:
    """Changes with what becomes of them, but for those that nothing becomes of."""
    side, joined = "NULL::text", ""
    if finder.strategy != "manual":
        side = quote_literal(finder.strategy)
    if finder.decisions is not None:
        side = f"COALESCE(s.s, {side})"
        joined = f" LEFT JOIN {finder.decisions} AS s ON s.v = c.versions"
    return (
        f"SELECT e.*, {_WHAT} FROM (SELECT c.*, {side} AS side"
        f" FROM (SELECT c.*, {_MASKS},"
        f" CASE WHEN c.kind <> 'other' THEN {_DIGEST} END AS versions"
        f" FROM (SELECT m.*, {_KINDS[kind]} AS kind"
        f" FROM ({_matched(finder, kind, text)}) AS m OFFSET 0) AS c"
        f" WHERE c.kind IS NOT NULL) AS c{joined}) AS e"
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
    keys = (f"CASE WHEN {_HAD} THEN {ours[i]} ELSE {others[i]} END" for i in shape.key)
    now = ", ".join(output_text(c, value) for c, value in zip(columns, ours, strict=True))
    answer = {
        "now": _if_had(f"pg_catalog.to_jsonb(ARRAY[{now}]::text[])"),
        "ours": _differences(shape, shape.compared, "r.b") if before else "0::int8",
        "apart": _differences(shape, shape.updatable, "r.v") if after else "0::int8",
        "base_row": _row(columns, [f"r.b{i}" for i in width]) if before else "'null'::text",
        "their_row": _row(columns, [f"r.v{i}" for i in width]) if after else "'null'::text",
        "our_row": _if_had(_row(columns, ours)),
        "shown_key": _row([columns[i] for i in shape.key], list(keys)),
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
        " WITH ORDINALITY AS l (a, n) OFFSET 0) AS r"
        f" LEFT JOIN {shape.only} AS t ON {key_condition(shape, 't', 'r')} OFFSET 0"
    )


_HAD = "(t.ctid IS NOT NULL)"


def _if_had(value: str) -> str:
    return f"CASE WHEN {_HAD} THEN {value}::text ELSE 'null' END"


def _differences(shape: TableShape, wanted: int, others: str) -> str:
    """Mask of the wanted columns in which the target's row is not the same."""
    bits = (
        f"CASE WHEN {column.same(f't.{column.sql}', f'{others}{i}')} THEN 0 ELSE {1 << i} END"
        for i, column in ((i, shape.columns[i]) for i in positions(wanted))
    )
    return f"({' | '.join(['0::int8', *bits])})"


def _row(columns: Sequence[Column], values: Sequence[str]) -> str:
    """A row as the text of an object, in one line; as jsonb it is that of rowqueries.json_rows."""
    # A json has the line breaks that it was given.
    made = "row_to_json" if all(map(is_plain, columns)) else "to_jsonb"
    fields = (f"{value} AS {column.sql}" for value, column in zip(values, columns, strict=True))
    return f"(SELECT pg_catalog.{made}(x.*) FROM (SELECT {', '.join(fields)}) AS x)::text"


def _name(shape: TableShape) -> str:
    parts = (f"pg_catalog.quote_ident({quote_literal(part)})" for part in shape.id)
    return f"pg_catalog.to_json({' || $$.$$ || '.join(parts)})"


def _names(shape: TableShape, mask: str) -> str:
    """Names of the columns of a mask, as the text of an array; null for none."""
    some = (
        f"CASE WHEN {mask} & {1 << i} <> 0 THEN {quote_literal(shape.columns[i].name)} END"
        for i in positions(shape.updatable)
    )
    return (
        f"CASE WHEN {mask} <> 0 THEN pg_catalog.array_to_json("
        f"pg_catalog.array_remove(ARRAY[{', '.join(some)}]::text[], NULL))::text ELSE 'null' END"
    )
