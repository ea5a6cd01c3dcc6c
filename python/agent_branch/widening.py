"""Types of columns that were made wider: each value is, by its text, one of the new type, too."""

from __future__ import annotations

from agent_branch.records import replace
from agent_branch.sqltext import TEXT
from agent_branch.tableshape import Column, TableShape

_WHOLE = ("smallint", "integer", "bigint", "numeric")
_VARCHAR = "character varying"
_NUMERIC = "numeric"


def widened(before: TableShape, after: TableShape) -> set[str]:
    """Columns of which that is so."""
    old = {column.name: column for column in before.columns}
    return {c.name for c in after.columns if c.name in old and _is_wider(old[c.name], c)}


def as_wide(before: TableShape, after: TableShape) -> TableShape:
    """A table as if its columns had been of the wider types already."""
    wide = widened(before, after)
    types = {column.name: column.type_name for column in after.columns}
    columns = tuple(
        replace(c, type_name=types[c.name]) if c.name in wide else c for c in before.columns
    )
    return replace(before, columns=columns) if wide else before


def _is_wider(old: Column, new: Column) -> bool:
    if old.generated or new.generated:
        return False
    if old.definition or new.definition:
        return _has_more_labels(old, new)
    one, other = old.type_name, new.type_name
    if one in _WHOLE and other in _WHOLE:
        return _WHOLE.index(one) < _WHOLE.index(other)
    letters, more = _modifiers(one, _VARCHAR), _modifiers(other, _VARCHAR)
    if letters:
        return other in (TEXT, _VARCHAR) or more > letters
    (digits, scale), (more_digits, same_scale) = (
        _modifiers(name, _NUMERIC) or (0, 0) for name in (one, other)
    )
    return 0 < digits < more_digits and scale == same_scale


def _modifiers(type_name: str, of: str) -> tuple[int, ...]:
    """What stands in parentheses behind the name of a type; (): it is another type, or has none."""
    name, _, rest = type_name.partition("(")
    if name != of or not rest.endswith(")"):
        return ()
    return tuple(int(number) for number in rest[:-1].split(","))


def _has_more_labels(old: Column, new: Column) -> bool:
    """Is it an enum (of what users define only these are exact) with all its labels, and others
    after them?  ``stored`` ends with the labels as an array, in the order in which they came."""
    return (
        old.type_name == new.type_name
        and old.exact
        and new.exact
        and old.stored.endswith("}")
        and new.stored.startswith(f"{old.stored[:-1]},")
    )
