"""SQL text: quoting, and statements whose parameters are columns of text values.

Generated statements are right under any ``search_path`` and any setting of
``standard_conforming_strings``: every name is quoted and qualified.  Values travel in the text
form of their types (what the output function gives, what the input function takes), a batch
of rows as one ``text[]`` for each column.
"""

from __future__ import annotations

from agent_branch.hints import Callable, Iterable, Iterator, Protocol, Sequence, TypeVar
from agent_branch.records import dataclass

T = TypeVar("T")

Value = str | None
Row = tuple[Value, ...]

TEXT = "pg_catalog.text"

# Around the number of a parameter in a template: no name can have a NUL.
_MARK = "\0"


def quote_ident(name: str) -> str:
    """A name as an identifier; always in quotes, so that no list of keywords is needed.

    Raises ``ValueError`` for what can be no name: nothing, or a NUL in it.
    """
    if not name or "\0" in name:
        raise ValueError(f"not a name: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """A text as a literal.  Raises ``ValueError`` for a NUL, which no text can have."""
    if "\0" in value:
        raise ValueError("a text cannot have a NUL")
    quoted = value.replace("'", "''")
    if "\\" in quoted:
        return " E'" + quoted.replace("\\", "\\\\") + "'"
    return f"'{quoted}'"


def qualified(schema: str, name: str) -> str:
    return f"{quote_ident(schema)}.{quote_ident(name)}"


def array_text(values: Iterable[Value]) -> str:
    """Values as the text form of a one-dimensional ``text[]`` (documentation, 8.15.6)."""
    return "{" + ",".join(map(_item, values)) + "}"


def _item(value: Value) -> str:
    if value is None:
        return "NULL"
    if '"' in value or "\\" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def parse_array(text: str) -> Row:
    """Values of a one-dimensional array from its text form.

    Raises ``ValueError`` for another text, an array of arrays included.
    """
    import re

    if text == "{}":
        return ()
    values: list[Value] = []
    position = 1
    for found in re.finditer(
        r'(?:"((?:[^"\\]|\\.)*)"|([^",{}\\\s](?:[^",{}\\]|\\.)*))([,}])', text, re.DOTALL
    ):
        if found.start() != position:
            break
        position = found.end()
        quoted, plain, end = found.groups()
        if quoted is not None:
            values.append(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
        else:
            values.append(None if plain == "NULL" else plain)
        if end == "}" and position == len(text) and text[0] == "{":
            return tuple(values)
    raise ValueError(f"not the text of an array: {text!r}")


def placeholder(number: int) -> str:
    """Parameter ``number`` (from 1) in the template of a ``Statement``."""
    return f"{_MARK}{number}{_MARK}::{TEXT}[]"


def unnest(first: int, count: int) -> str:
    """Rows from ``count`` parameters; to be followed by WITH ORDINALITY or AS.

    The form with several arguments is a word of the grammar and takes no schema; the one with
    one argument is a function like others.
    """
    arrays = ", ".join(placeholder(n) for n in range(first, first + count))
    return f"unnest({arrays})" if count > 1 else f"pg_catalog.unnest({arrays})"


def _filled(template: str, value: Callable[[int], str]) -> str:
    """A template with something in the place of each parameter, given its number."""
    parts = template.split(_MARK)
    parts[1::2] = (value(int(number)) for number in parts[1::2])
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and its parameters, each of them an array of texts.

    ``rows``: how many rows it is for; a statement that changes fewer met something that it
    was not planned for (a trigger that suppressed a row, a cascade).  ``answers``: it is a
    query whose only value is how many rows were changed.
    """

    template: str
    parameters: tuple[Sequence[Value], ...] = ()
    rows: int = 0
    answers: bool = False

    @property
    def sql(self) -> str:
        """Text with ``$1``, ``$2``... for executors that pass parameters."""
        return _filled(self.template, lambda number: f"${number}")

    def inline(self) -> str:
        """Text with the parameters in it as literals, for executors that pass text only."""

        return _filled(
            self.template, lambda number: quote_literal(array_text(self.parameters[number - 1]))
        )


# A query without rows.
NOTHING = Statement("SELECT NULL WHERE false")


def together(statements: Sequence[Statement]) -> Statement:
    """INSERT, UPDATE, DELETE as one statement, which checks foreign keys at its end.

    They run in no certain order and see the same snapshot.
    """
    if len(statements) == 1:
        return statements[0]
    texts: list[str] = []
    parameters: list[Sequence[Value]] = []
    for statement in statements:
        texts.append(_renumbered(statement.template, len(parameters)))
        parameters.extend(statement.parameters)
    parts = ", ".join(f"s{n} AS ({text} RETURNING 1)" for n, text in enumerate(texts))
    counts = " OPERATOR(pg_catalog.+) ".join(
        f"(SELECT pg_catalog.count(*) FROM s{n})" for n in range(len(texts))
    )
    return Statement(
        f"WITH {parts} SELECT {counts}",
        tuple(parameters),
        sum(one.rows for one in statements),
        answers=True,
    )


def _renumbered(template: str, offset: int) -> str:
    return _filled(template, lambda number: f"{_MARK}{number + offset}{_MARK}")


def columns_of(rows: Sequence[Sequence[Value]], width: int) -> tuple[Sequence[Value], ...]:
    """Rows turned into ``width`` columns."""
    if not rows:
        return ((),) * width
    return tuple(zip(*rows, strict=True))


class Session(Protocol):
    """One transaction in one database, as executors give it.

    Every value comes as the text of its type's output function under ``SETTINGS``.  Rows of a
    query are read while they come; no second query is started before the first was read to
    its end or closed.
    """

    def rows(self, statement: Statement) -> Iterator[Row]:
        """Rows of a query."""

    def execute(self, statement: Statement) -> int:
        """Run a statement that changes data; how many rows it changed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a constraint refused, in the words of the server; ``constraint``: empty for NOT NULL."""

    sqlstate: str
    message: str
    detail: str = ""
    constraint: str = ""
    schema: str = ""
    table: str = ""


class WritingSession(Session, Protocol):
    def attempt(self, statement: Statement) -> int | Refusal:
        """Run a statement that changes data: how many rows it changed, or why it did not.

        One that a constraint refuses (SQLSTATE class 23) has changed nothing, and the session
        can be used further; likewise after a ``RaisedError``.
        """


# Under these the text form of every value can be read back, and is the same in all databases,
# and queries of the catalogs mean what they say.
# standard_conforming_strings: definitions that one database writes are run in another one, where
# the end of a literal must be where it was.
# jit: guesses about arrays and catalogs make it pay never.  row_security: a policy that would
# hide rows raises 42501; hidden rows would look deleted.
SETTINGS: dict[str, str] = {
    "array_nulls": "on",
    "bytea_output": "hex",
    "DateStyle": "ISO, YMD",
    "extra_float_digits": "1",
    "IntervalStyle": "postgres",
    "jit": "off",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "row_security": "off",
    "search_path": "pg_catalog, pg_temp",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "xmloption": "content",
}

# Needed to write values, not to read them back: what triggers see is the database's own again.
ONLY_FOR_READING = (
    "bytea_output",
    "DateStyle",
    "extra_float_digits",
    "IntervalStyle",
    "quote_all_identifiers",
    "search_path",
    "standard_conforming_strings",
    "TimeZone",
)


def settings_statement() -> Statement:
    """A query that brings ``SETTINGS`` into force for the transaction it runs in."""
    calls = (
        f"pg_catalog.set_config({quote_literal(name)}, {quote_literal(value)}, true)"
        for name, value in SETTINGS.items()
    )
    return Statement("SELECT " + ", ".join(calls))


def settings_commands() -> str:
    """The same as commands, to be run together with what follows them."""
    return "; ".join(
        f"SET LOCAL {quote_ident(name)} TO {', '.join(map(quote_literal, value.split(', ')))}"
        for name, value in SETTINGS.items()
    )


def restore_statements() -> list[Statement]:
    """To run before rows are written: the settings that only reading needs, as they were."""
    return [Statement(f"SET LOCAL {quote_ident(name)} TO DEFAULT") for name in ONLY_FOR_READING]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one batch may hold: whichever is reached first."""

    rows: int = 1000
    bytes: int = 4 << 20


def size_of(row: Sequence[Value]) -> int:
    """About how many bytes a row takes in a statement (characters are counted as one)."""
    return sum(8 if value is None else len(value) + 8 for value in row)


def batches(items: Iterable[T], limits: Limits, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in lists that keep to the limits; one item larger than them stands alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        length = size(item)
        if batch and (len(batch) >= limits.rows or total + length > limits.bytes):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += length
    if batch:
        yield batch
