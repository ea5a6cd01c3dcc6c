"""Conflicts of a merge found by the target, many rows by one statement.

What merge.py decides row by row is decided here by the server: changes of the source are sent to
the target as they are, which looks its rows up, says which are in conflict, and writes down these
itself: as lines for what is kept of a merge (revert.conflict_to_json) and for people
(clashes.Clash).  No row in conflict is looked at here.  Only conflicts that nobody has decided are
found so; changes that are to be written are left to staging.py and merge.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from agent_branch.diff import ChangeKind, RowChange, key_condition
from agent_branch.records import dataclass
from agent_branch.sqltext import Session, Statement, parse_array, quote_literal
from agent_branch.staging import MAX_COLUMNS, is_plain, output_text
from agent_branch.tableshape import Column, TableShape, positions

# Characters of changes in one statement; a single change that is longer is left alone.
CHARACTERS = 2 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """``count`` conflicts, as lines with their ends: ``kept`` of the merge, ``shown`` to people."""

    count: int
    kept: str
    shown: str


def may_find(shape: TableShape) -> bool:
    return bool(shape.key) and len(shape.columns) <= MAX_COLUMNS


def find(
    session: Session, shape: TableShape, changes: Iterable[RowChange]
) -> tuple[list[RowChange], list[Found]]:
    """(changes that are to be decided elsewhere, conflicts among the others).

    The session's settings are those for reading.
    """
    by_kind: dict[ChangeKind, list[RowChange]] = {}
    for change in changes:
        by_kind.setdefault(change.kind, []).append(change)
    left: list[RowChange] = []
    found: list[Found] = []
    for kind, some in by_kind.items():
        _find(session, shape, kind, some, left, found)
    return left, found


def _find(
    session: Session,
    shape: TableShape,
    kind: ChangeKind,
    changes: Sequence[RowChange],
    left: list[RowChange],
    found: list[Found],
) -> None:
    able = shape.updatable
    text = json.dumps(
        [(change.key, change.before, change.after, change.changed & able) for change in changes],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    if len(text) > CHARACTERS:
        middle = len(changes) // 2
        for some in (changes[:middle], changes[middle:]):
            if middle:
                _find(session, shape, kind, some, left, found)
            else:
                left += some
        return
    ((others, count, kept, shown),) = list(session.rows(_finding(shape, kind, text)))
    left += (changes[int(n or 0)] for n in parse_array(others or "{}"))
    if kept and shown:
        found.append(Found(int(count or 0), kept + "\n", shown + "\n"))


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


def _finding(shape: TableShape, kind: ChangeKind, text: str) -> Statement:
    """Answer: numbers of the changes that are left / conflicts: how many, kept, shown."""
    before, after = kind != "added", kind != "removed"
    shown = (
        f"pg_catalog.concat('[', {_name(shape)}, ', \"', d.kind, '\", ', d.shown_key, ', ',"
        f" {_names(shape, 'd.columns')}, ', ', d.base_row, ', ', d.our_row, ', ', d.their_row,"
        " ', null, null, ', d.versions, ', null]')"
    )
    conflict = "FILTER (WHERE d.kind <> 'other')"
    return Statement(
        "SELECT pg_catalog.array_agg(d.n) FILTER (WHERE d.kind = 'other'),"
        f" pg_catalog.count(*) {conflict},"
        f" pg_catalog.string_agg({_KEPT}, E'\\n') {conflict},"
        f" pg_catalog.string_agg({shown}, E'\\n') {conflict}"
        f" FROM (SELECT c.*, {_MASKS},"
        f" CASE WHEN c.kind <> 'other' THEN {_DIGEST} END AS versions"
        f" FROM (SELECT m.*, {_KINDS[kind]} AS kind"
        f" FROM ({_matched(shape, text, before=before, after=after)}) AS m OFFSET 0) AS c"
        " WHERE c.kind IS NOT NULL ORDER BY c.n) AS d"
    )


def _matched(shape: TableShape, text: str, *, before: bool, after: bool) -> str:
    """Changes beside the rows of the target; all that is JSON as text."""
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
    """A row as the text of an object, in one line; as jsonb it is that of diff.json_rows."""
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
