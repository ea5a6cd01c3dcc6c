"""Lines of what a merge did to rows: JSON of those that were decided one by one (revert.py), and
what COPY writes of those that are kept many at once, which costs the server far less.

The latter have letter, columns that were set, columns there are new values of, length of the key,
its values, those of the whole row before, and the new ones; parted by tabs, as COPY escapes them.
"""

from __future__ import annotations

from agent_branch.hints import Callable
from agent_branch.merge import Action, Delete, Insert
from agent_branch.revert import from_json, updated
from agent_branch.sqltext import Value
from agent_branch.tableshape import TableShape, positions

# An expression for the value of a column.
Values = Callable[[int], str]

_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def inserted(shape: TableShape, new: Values) -> str:
    """What is to be selected for lines of inserted rows."""
    return _columns("i", "0", 0, shape, new, _all(shape, new))


def deleted(shape: TableShape, old: Values) -> str:
    return _columns("d", "0", 0, shape, old, _all(shape, old))


def changed(shape: TableShape, old: Values, mask: str, known: int, new: Values) -> str:
    """``mask``: an expression; ``known``: of which columns there are values that may be set."""
    news = [new(i) for i in positions(known)]
    return _columns("u", mask, known, shape, old, [*_all(shape, old), *news])


def _all(shape: TableShape, values: Values) -> list[str]:
    return [values(i) for i, _ in enumerate(shape.columns)]


def _columns(
    letter: str, mask: str, known: int, shape: TableShape, key: Values, rest: list[str]
) -> str:
    head = [f"'{letter}'", mask, str(known), str(len(shape.key))]
    return ", ".join([*head, *map(key, shape.key), *rest])


def from_line(line: str) -> Action:
    """The action of a line without its end; ``ValueError`` for another text."""
    if line.startswith("["):
        return from_json(line)
    try:
        letter, mask, known, width, *rest = line.split("\t")
        values = tuple(map(_value, rest))
        key, row = values[: int(width)], values[int(width) :]
        match letter:
            case "i":
                return Insert(key, row)
            case "d":
                return Delete(key, row)
            case "u":
                columns = len(row) - int(known).bit_count()
                return updated(key, int(mask), row[:columns], int(known), row[columns:])
    except ValueError:
        pass
    raise ValueError(f"not an action: {line!r}")


def _value(text: str) -> Value:
    if "\\" not in text:
        return text
    if text == "\\N":
        return None
    import re  # merges do not need it, and it takes long to import

    return re.sub(r"\\(.)", lambda found: _LETTERS.get(found[1], found[1]), text, flags=re.DOTALL)
