"""Statements that read rows of a table: by page, by place, by key beside versions of them."""

from __future__ import annotations

from agent_branch.blocks import Blocks
from agent_branch.hints import Iterable, Sequence
from agent_branch.sqltext import (
    Row,
    Statement,
    Value,
    columns_of,
    parse_array,
    unnest,
)
from agent_branch.tableshape import Column, TableShape, mask_of

# A row ``t`` with all its columns, also if one of them has the name t.
SHOWN = "pg_catalog.to_jsonb(t.*)"


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
        return Statement(f"SELECT {columns} FROM {shape.rows} AS t")
    # OFFSET 0 keeps the subquery apart, so that the bounds are constants to its plan.
    return Statement(
        f"SELECT {columns} FROM {unnest(1, 2)} AS b (low, high),"
        f" LATERAL (SELECT t.* FROM {shape.rows} AS t"
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
        f" AS u ({', '.join(names)}, n)) AS r LEFT JOIN {shape.rows} AS t ON {joined}{filtered}",
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
        f"SELECT {columns} FROM {shape.rows} AS t WHERE t.ctid OPERATOR(pg_catalog.=) ANY ('",
        "'::pg_catalog.tid[])",
    )


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
