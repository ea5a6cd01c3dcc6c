"""Expressions by which the server decides about rows, and writes conflicts down.

The rules are those of merge.py, and the lines those of revert.conflict_to_json, clashes.Clash and
branch.merge_decided.  conflictsets.py and contested.py put statements together from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_branch.diff import ChangeKind
from agent_branch.rowqueries import key_condition
from agent_branch.sqltext import quote_literal
from agent_branch.staging import is_plain, output_text
from agent_branch.tableshape import Column, TableShape, positions

# What becomes of a row (merge.decide): kind of the conflict; other: it is in none; NULL: nothing.
# ours, theirs: masks of the columns that differ from the base; apart: from each other; had: has the
# target the row?
KINDS: dict[ChangeKind, str] = {
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

# What is done in a conflict that was decided (merge.resolve), and which columns are set.
_WHAT = (
    "CASE WHEN e.kind = 'other' OR e.side IS NULL THEN NULL"
    " WHEN e.side = 'theirs' AND e.kind = 'update_delete' THEN 'd'"
    " WHEN e.side = 'theirs' AND e.kind = 'delete_update' THEN 'i'"
    " WHEN e.merged <> 0 OR e.side = 'theirs' THEN 'u' END"
)
_MASK = "e.merged | CASE e.side WHEN 'theirs' THEN e.columns ELSE 0 END"


# Texts of JSON, expressions: a key, and three versions of a row.
Texts = tuple[str, str, str, str]


def digest(arrays: Texts) -> str:
    """Of versions as of merge.digest: a jsonb is the text that json.dumps makes of the same."""
    key, before, now, after = arrays
    return (
        "('x' || pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to("
        f"pg_catalog.concat('[', {key}, ', ', {before}, ', ', {now}, ', ', {after}, ']'),"
        " CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END"
        ")), 'hex'), 16))::pg_catalog.bit(64)::pg_catalog.int8"
    )


def decided(
    found: str,
    strategy: str,
    decisions: str | None,
    *,
    digest: str = "NULL::int8",
    what: str = _WHAT,
    mask: str = _MASK,
) -> str:
    """Rows with what becomes of them, but for those that nothing becomes of.

    ``found``: a query of them with kind, ours, theirs and apart; ``decisions``: a table of digests
    and sides that counts before the strategy; ``digest``: an expression over c.
    """
    side, joined = "NULL::text", ""
    if strategy != "manual":
        side = quote_literal(strategy)
    if decisions is not None:
        side = f"COALESCE(s.s, {side})"
        joined = f" LEFT JOIN {decisions} AS s ON s.v = c.versions"
    return (
        f"SELECT e.*, {what} AS what, {mask} AS mask FROM (SELECT c.*, {side} AS side"
        f" FROM (SELECT c.*, {_MASKS},"
        f" CASE WHEN c.kind <> 'other' THEN {digest} END AS versions FROM ({found}) AS c"
        f" WHERE c.kind IS NOT NULL) AS c{joined}) AS e"
    )


def plain_too(what: str, mask: str) -> dict[str, str]:
    """``what`` and ``mask`` of rows in no conflict, too, from expressions over e."""
    return {
        "what": f"CASE WHEN e.kind = 'other' THEN {what} ELSE {_WHAT} END",
        "mask": f"CASE WHEN e.kind = 'other' THEN {mask} ELSE {_MASK} END",
    }


# ---- lines, of rows d ----------------------------------------------------------------


def kept(arrays: Texts) -> str:
    """A line as of revert.conflict_to_json."""
    key, before, now, after = arrays
    return (
        f"pg_catalog.concat('[\"conflict\", ', {key}, ', ', d.columns, ', ', d.merged, ', ',"
        f" {before}, ', ', {now}, ', ', {after}, ', ', d.versions, ']')"
    )


_SIDE = "COALESCE(pg_catalog.to_json(d.side)::text, 'null')"


def shown(shape: TableShape, objects: Texts) -> str:
    """For people: a line as of clashes.Clashes."""
    key, *versions = objects
    listed = ", ', ', ".join(versions)
    return (
        f"pg_catalog.concat('[', {_name(shape)}, ', \"', d.kind, '\", ', {key}, ', ',"
        f" {_names(shape, 'd.columns')}, ', ', {listed}, ', null, null, ', d.versions, ', ',"
        f" {_SIDE}, ']')"
    )


def shown_decided(shape: TableShape, objects: Texts) -> str:
    """The same as branch.merge_decided has it."""
    key, *versions = objects
    values = {
        "table_name": _name(shape),
        "kind": "pg_catalog.to_json(d.kind)",
        "key": key,
        "columns": _names(shape, "d.columns"),
        **dict(zip(("base_row", "our_row", "their_row"), versions, strict=True)),
        "versions": "COALESCE(d.versions::text, 'null')",
        "resolution": _SIDE,
    }
    fields = ", ', ', ".join(f"'\"{name}\": ', {value}" for name, value in values.items())
    return f"pg_catalog.concat('{{', {fields}, '}}')"


def row_text(columns: Sequence[Column], values: Sequence[str]) -> str:
    """A row as the text of an object, in one line; as jsonb it is that of rowqueries.json_rows."""
    # A json has the line breaks that it was given.
    made = "row_to_json" if all(map(is_plain, columns)) else "to_jsonb"
    fields = (f"{value} AS {column.sql}" for value, column in zip(values, columns, strict=True))
    return f"(SELECT pg_catalog.{made}(x.*) FROM (SELECT {', '.join(fields)}) AS x)::text"


def array_text(columns: Sequence[Column], values: Sequence[str]) -> str:
    """Values as the text of an array."""
    texts = ", ".join(output_text(c, value) for c, value in zip(columns, values, strict=True))
    return f"pg_catalog.to_jsonb(ARRAY[{texts}]::text[])::text"


def if_there(condition: str, text: str) -> str:
    return f"CASE WHEN {condition} THEN {text} ELSE 'null' END"


Values = Callable[[int], str]


def differences(shape: TableShape, wanted: int, one: Values, other: Values) -> str:
    """Mask of the wanted columns in which two versions of a row are not the same."""
    bits = (
        f"CASE WHEN {shape.columns[i].same(one(i), other(i))} THEN 0 ELSE {1 << i} END"
        for i in positions(wanted)
    )
    return f"({' | '.join(['0::int8', *bits])})"


def joined(shape: TableShape, rows: str) -> str:
    """The target's rows t beside others, by key."""
    return f"LEFT JOIN {shape.only} AS t ON {key_condition(shape, 't', rows)}"


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
