"""What differs between two versions of a table, at a cost that follows what changed.

The files of a branch start as those of its parent, so a row in a page that neither side has
changed is the same row on both sides.  Hence: read the rows in the changed pages of one side
and look them up by key on the other; then the rows in the same pages of the other side, which
finds what is only there.  A row that moved to another page is found by its key and is not a
difference.  Where a side's files were rewritten, or cannot tell, both are read whole.

Nothing here talks to a server: functions make statements, and read rows from ``Session``s.
"""

from __future__ import annotations

from agent_branch.blocks import ALL, Blocks, block_of
from agent_branch.hints import Iterable, Iterator, Literal, Protocol, Sequence
from agent_branch.records import dataclass
from agent_branch.sqltext import (
    Limits,
    Row,
    Session,
    Statement,
    Value,
    batches,
    columns_of,
    parse_array,
    size_of,
    unnest,
)
from agent_branch.tableshape import Column, TableShape, common_key, mask_of, positions

# A row ``t`` with all its columns, also if one of them has the name t.
SHOWN = "pg_catalog.to_jsonb(t.*)"

ChangeKind = Literal["added", "modified", "removed"]


@dataclass(frozen=True, slots=True)
class TableState:
    """One side of a comparison.

    ``lineage``: same for two sides if they have the same file, or copies of one file that
    differ in the changed pages only.  ``changed``: pages changed since the two parted; None
    if that cannot be told.  ``pages``: size, in blocks.
    """

    shape: TableShape
    lineage: object = None
    changed: Blocks | None = None
    pages: int = 0


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that differs: ``before`` in the version compared from, ``after`` in the other.

    Rows have the columns of the plan.  ``changed``: mask of the columns that differ, for
    modified rows.  ``copies``: of a row without a key, how many there are more or less.
    ``shown``: if asked for, the rows with all columns of their tables, as jsonb.
    """

    kind: ChangeKind
    key: Row
    before: Row | None
    after: Row | None
    changed: int = 0
    copies: int = 1
    shown: tuple[Value, Value] = (None, None)


@dataclass(frozen=True, slots=True)
class TableDiff:
    """How two versions of a table are compared.

    ``shape``: what is compared, which is the columns that both have, under the names of both;
    its key is what rows are matched by, empty if they can only be counted.  ``blocks``: what is
    read on either side.  ``reason``: why they are read whole, empty if they are not.
    """

    shape: TableShape
    blocks: Blocks
    reason: str
    pages_read: int

    @property
    def counted(self) -> bool:
        return not self.shape.key


def plan_diff(before: TableState, after: TableState, shape: TableShape | None = None) -> TableDiff:
    """Plan the comparison of two versions of a table.

    Columns are matched by name; one whose type differs is compared by its text.  ``shape``:
    to be compared by this one, the columns and the key of which both have.
    """
    blocks, reason = _blocks_to_read(before, after)
    if not blocks.whole:
        reason = _other_values(before.shape, after.shape)
        blocks = ALL if reason else blocks
    return TableDiff(
        shape or common_shape(before.shape, after.shape),
        blocks,
        reason,
        blocks.count(before.pages) + blocks.count(after.pages),
    )


def _blocks_to_read(before: TableState, after: TableState) -> tuple[Blocks, str]:
    if before.lineage != after.lineage:
        return ALL, "the table was rewritten"
    if before.changed is None or after.changed is None or before.lineage is None:
        return ALL, "it is not known which pages changed"
    # Beyond the end of the shorter one, whatever the list of changed pages says.
    low, high = sorted((before.pages, after.pages))
    return before.changed | after.changed | Blocks.of([(low, high)]), ""


def _other_values(before: TableShape, after: TableShape) -> str:
    """Why rows of the same bytes may be other rows; empty: they are not."""
    theirs = {column.name: column for column in before.columns}
    for column in after.columns:
        other = theirs.get(column.name, column)
        if (column.type_name, column.definition) != (other.type_name, other.definition):
            return f'the type of column "{column.name}" is another'
        if column.stored != other.stored:
            what = " or a label of its type" if column.definition else ""
            return f'column "{column.name}"{what} was made again'
    return ""


def common_shape(before: TableShape, after: TableShape) -> TableShape:
    """The columns that two versions of a table share, in the order of ``after``."""
    theirs = {column.name: column for column in before.columns}
    columns = tuple(
        _common_column(theirs[column.name], column)
        for column in after.columns
        if column.name in theirs
    )
    shape = TableShape(after.schema, after.name, columns)
    key = tuple(shape.position(name) for name in common_key([after, before]))
    return TableShape(after.schema, after.name, columns, key)


def _common_column(one: Column, other: Column) -> Column:
    same_type = (one.type_name, one.definition) == (other.type_name, other.definition)
    return Column(
        other.name,
        other.type_name if same_type else "pg_catalog.text",
        other.equals if same_type else None,
        not_null=one.not_null and other.not_null,
        generated=one.generated or other.generated,
        identity=other.identity,
        definition=other.definition if same_type else "",
        exact=same_type and one.exact and other.exact,
        number=other.number if one.number == other.number else 0,
        bytes=one.bytes if same_type and one.bytes == other.bytes else "u",
    )


# ---- statements ----------------------------------------------------------------


def scan(
    shape: TableShape, blocks: Blocks, extra: Sequence[str] = (), *, bare: bool = False
) -> Statement:
    """Rows of a table in some of its blocks: the columns of ``shape``, then ``extra``.

    ``extra``: SQL expressions over the row ``t``; ``bare``: nothing but these.  Reads just these
    blocks (TID range scans).
    """
    listed = () if bare else (f"t.{column.sql}" for column in shape.columns)
    columns = ", ".join([*listed, *extra])
    ranges = blocks.ranges
    if ranges is None:
        return Statement(f"SELECT {columns} FROM {shape.only} AS t")
    # OFFSET 0 keeps the subquery apart, so that the bounds are constants to its plan.
    return Statement(
        f"SELECT {columns} FROM {unnest(1, 2)} AS b (low, high),"
        f" LATERAL (SELECT t.* FROM {shape.only} AS t"
        " WHERE t.ctid OPERATOR(pg_catalog.>=) b.low::pg_catalog.tid"
        " AND t.ctid OPERATOR(pg_catalog.<) b.high::pg_catalog.tid OFFSET 0) AS t",
        (
            [f"({start},0)" for start, _ in ranges],
            [f"({end},0)" for _, end in ranges],
        ),
        0,
    )


def match(
    shape: TableShape,
    keys: Sequence[Row],
    versions: Sequence[Sequence[Row | None]],
    *,
    only_different: bool = False,
    extra: Sequence[str] = (),
) -> Statement:
    """Look rows up by key and compare them with versions of them.

    ``versions[v][n]``: version ``v`` of the row with ``keys[n]``, or None.  Rows of the answer:
    n (from 0) / ctid, NULL if there is no such row / its columns / for each version an array,
    for each column true if the row differs from the version in it (means nothing if either is
    missing) / ``extra``, expressions over the row ``t``.

    ``only_different``: leave out rows that equal the first version.
    """
    width = len(shape.columns)
    key_columns = [shape.columns[i] for i in shape.key]
    names = [f"k{i}" for i in range(len(shape.key))]
    casts = [
        c.cast(f"u.{name}") + f" AS {name}" for c, name in zip(key_columns, names, strict=True)
    ]
    parameters = list(columns_of(keys, len(shape.key)))
    masks: list[str] = []
    for v, version in enumerate(versions):
        for i, column in enumerate(shape.columns):
            if i in shape.key or column.generated:
                continue
            names.append(f"v{v}_{i}")
            casts.append(column.cast_if_any(f"u.{names[-1]}") + f" AS {names[-1]}")
            parameters.append([None if row is None else row[i] for row in version])
        masks.append(_differences(shape, v, width))
    joined = key_condition(shape, "t", "r")
    answer = ["r.n", "t.ctid", *(f"t.{c.sql}" for c in shape.columns), *masks, *extra]
    filtered = f" WHERE t.ctid IS NULL OR {_any_difference(shape)}" if only_different else ""
    return Statement(
        f"SELECT {', '.join(answer)} FROM (SELECT u.n OPERATOR(pg_catalog.-) 1 AS n,"
        f" {', '.join(casts)} FROM {unnest(1, len(parameters))} WITH ORDINALITY"
        f" AS u ({', '.join(names)}, n)) AS r LEFT JOIN {shape.only} AS t ON {joined}{filtered}",
        tuple(parameters),
        len(keys),
    )


def key_condition(shape: TableShape, table: str, keys: str) -> str:
    """Condition: a row has a key, the columns of which are k0, k1...; an index can answer it."""
    conditions = []
    for n, i in enumerate(shape.key):
        column = shape.columns[i]
        left, right = f"{table}.{column.sql}", f"{keys}.k{n}"
        if column.equals is None:
            left, right = f"{left}::pg_catalog.text", f"{right}::pg_catalog.text"
        conditions.append(f"{left} {column.equals or 'OPERATOR(pg_catalog.=)'} {right}")
    return " AND ".join(conditions)


def keys_condition(shape: TableShape, one: str, other: str) -> str:
    """The same for two rows with the columns of the key as k0, k1..."""
    return " AND ".join(
        shape.columns[i].same(f"{one}.k{n}", f"{other}.k{n}")
        if shape.columns[i].equals is None
        else f"{one}.k{n} {shape.columns[i].equals} {other}.k{n}"
        for n, i in enumerate(shape.key)
    )


def _difference(column: Column, version: int, position: int) -> str:
    return f"NOT {column.same(f't.{column.sql}', f'r.v{version}_{position}')}"


def _differences(shape: TableShape, version: int, width: int) -> str:
    compared = shape.compared
    flags = (
        _difference(shape.columns[i], version, i) if compared >> i & 1 else "false"
        for i in range(width)
    )
    return f"ARRAY[{', '.join(flags)}]"


def _any_difference(shape: TableShape) -> str:
    compared = shape.compared
    flags = [
        _difference(column, 0, i) for i, column in enumerate(shape.columns) if compared >> i & 1
    ]
    return " OR ".join(flags) or "false"


def mask_from(text: Value) -> int:
    """Mask from the text of an array of booleans that ``match`` answered."""
    return mask_of(i for i, flag in enumerate(parse_array(text or "{}")) if flag == "t")


def by_place(shape: TableShape, extra: Sequence[str] = ()) -> tuple[str, str]:
    """A query of rows like ``scan``, in two parts; the text of a tid[] goes between them."""
    columns = ", ".join([*(f"t.{column.sql}" for column in shape.columns), *extra])
    return (
        f"SELECT {columns} FROM {shape.only} AS t WHERE t.ctid OPERATOR(pg_catalog.=) ANY ('",
        "'::pg_catalog.tid[])",
    )


# ---- rows with a key ----------------------------------------------------------------


# A row before and after; None: there is none.
Pair = tuple[Row | None, Row | None]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows that differ.  ``unsure``: those of the same key of which bytes do not tell."""

    added: int
    modified: int
    removed: int
    unsure: Iterable[Pair]


class Pairing(Protocol):
    """Finds rows of which the two sides do not have the same version, by looking at pages."""

    def pairs(self, plan: TableDiff, extra: Sequence[str]) -> Iterator[Pair] | None:
        """By key, with ``extra``, as ``scan`` gives them; those whose texts are the same may be
        left out.  None: it cannot be done for these tables."""

    def counts(self, plan: TableDiff) -> Counts | None:
        """How many rows differ, if their bytes tell.  None: it cannot be done so."""

    def kinds(self, plan: TableDiff) -> Iterator[ChangeKind] | None:
        """What became of each row that differs, of a table where texts tell."""


def diff_rows(
    plan: TableDiff,
    before: Session,
    after: Session,
    limits: Limits | None = None,
    *,
    show: bool = False,
    pairing: Pairing | None = None,
) -> Iterator[RowChange]:
    """The rows that differ, in no certain order; memory for a batch of rows.

    ``plan`` has a key.  Each session must see one moment of its database to the end.
    """
    limits = limits or Limits()
    shape, extra = plan.shape, [SHOWN] if show else []
    width = len(shape.columns)
    if pairing is not None and can_pair(plan):
        pairs = pairing.pairs(plan, extra)
        if pairs is not None:
            yield from paired(shape, before, pairs, limits, extra)
            return
    for batch in batches(after.rows(scan(shape, plan.blocks, extra)), limits, size_of):
        for n, _, other, changed in _different(shape, before, batch, extra):
            yield _change(shape, other, batch[n], changed, width)
    # What differs is known already where the other row lies in a page that was read.
    for batch in batches(before.rows(scan(shape, plan.blocks, extra)), limits, size_of):
        for n, block, other, changed in _different(shape, after, batch, extra):
            if other is None or block not in plan.blocks:
                yield _change(shape, batch[n], other, changed, width)


def can_pair(plan: TableDiff) -> bool:
    return not plan.blocks.whole and plan.shape.exact_key


def paired(
    shape: TableShape,
    before: Session,
    pairs: Iterable[Pair],
    limits: Limits,
    extra: Sequence[str] = (),
) -> Iterator[RowChange]:
    """Changes from pairs of rows; where their texts do not tell, the database is asked."""
    width = len(shape.columns)
    compared = list(positions(shape.compared))
    inexact = mask_of(i for i in compared if not shape.columns[i].exact)
    unsure: list[Row] = []
    size = 0
    for old, new in pairs:
        changed = 0
        if old is not None and new is not None:
            changed = mask_of([i for i in compared if old[i] != new[i]])
            if changed & inexact:
                unsure.append(new)
                size += size_of(new)
                if len(unsure) >= limits.rows or size >= limits.bytes:
                    yield from _asked(shape, before, unsure, extra)
                    unsure, size = [], 0
                continue
            if not changed:
                continue
        yield _change(shape, old, new, changed, width)
    yield from _asked(shape, before, unsure, extra)


def _asked(
    shape: TableShape, before: Session, rows: Sequence[Row], extra: Sequence[str]
) -> Iterator[RowChange]:
    if rows:
        for n, _, other, changed in _different(shape, before, rows, extra):
            yield _change(shape, other, rows[n], changed, len(shape.columns))


def text_mask(shape: TableShape, one: Row, other: Row) -> int:
    """Mask of the compared columns whose texts differ."""
    mask = 0
    for i in positions(shape.compared):
        if one[i] != other[i]:
            mask |= 1 << i
    return mask


def _change(
    shape: TableShape, before: Row | None, after: Row | None, changed: int, width: int
) -> RowChange:
    """From rows that may be followed by what is shown of them."""
    row = after or before
    assert row is not None
    return RowChange(
        "added" if before is None else "removed" if after is None else "modified",
        shape.key_of(row),
        before and before[:width],
        after and after[:width],
        changed,
        shown=(_after(before, width), _after(after, width)),
    )


def _after(row: Row | None, width: int) -> Value:
    return row[width] if row is not None and len(row) > width else None


def _different(
    shape: TableShape, session: Session, batch: Sequence[Row], extra: Sequence[str]
) -> Iterator[tuple[int, int, Row | None, int]]:
    """(n, block, row of the session, mask) for rows of the batch that it has not, or others."""
    width = len(shape.columns)
    keys = [shape.key_of(row) for row in batch]
    statement = match(shape, keys, [batch], only_different=True, extra=extra)
    for answer in session.rows(statement):
        number, ctid = answer[0], answer[1]
        assert number is not None
        if ctid is None:
            yield int(number), -1, None, 0
        else:
            row = answer[2 : 2 + width] + answer[3 + width :]
            yield int(number), block_of(ctid), row, mask_from(answer[2 + width])


def changes_at(
    shape: TableShape,
    before: Session,
    after: Session,
    places: tuple[Iterable[str], Iterable[str]],
    limits: Limits,
) -> Iterator[RowChange]:
    """What differs of the rows at some places, before and after, each with its key looked up on
    the other side; ``places``: texts of tid[].  Rows that are at places on both sides come once."""
    head, tail = by_place(shape)
    width = len(shape.columns)
    for text in places[1]:
        for batch in batches(after.rows(Statement(head + text + tail)), limits, size_of):
            yield from _asked(shape, before, batch, ())
    for text in places[0]:
        for batch in batches(before.rows(Statement(head + text + tail)), limits, size_of):
            for n, _, other, _ in _different(shape, after, batch, ()):
                if other is None:
                    yield _change(shape, batch[n], None, 0, width)


def json_rows(shape: TableShape, rows: Iterable[Row]) -> Statement:
    """Rows as jsonb, in their order: n (from 0) / jsonb.  To run where the table's types are."""
    listed = list(rows)
    width = len(shape.columns)
    names = [f"c{i}" for i in range(width)]
    fields = ", ".join(
        f"{column.cast(f'u.{name}')} AS {column.sql}"
        for column, name in zip(shape.columns, names, strict=True)
    )
    return Statement(
        "SELECT u.n OPERATOR(pg_catalog.-) 1,"
        f" (SELECT pg_catalog.to_jsonb(x.*) FROM (SELECT {fields}) AS x)"
        f" FROM {unnest(1, width)} WITH ORDINALITY AS u ({', '.join(names)}, n) ORDER BY u.n",
        columns_of(listed, width),
        len(listed),
    )
