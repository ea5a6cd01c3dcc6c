"""What the PL/Python functions share: statements with arguments, errors, read-only transactions."""

from __future__ import annotations

import plpy

from agent_branch.errors import READ_ONLY_TRANSACTION, ReportedError
from agent_branch.hints import Any, NoReturn, Sequence

# What the language of these functions puts the two apart by (ab_sql_python.c).
_DETAIL_FOLLOWS = "\x1f"


def report(error: ReportedError) -> NoReturn:
    """Raise it in the server, with all its parts.

    PL/Python would forget the DETAIL of a function that returns a set: it comes with the message.
    """
    fields = error.fields()
    detail = fields.pop("detail", None)
    text = error.message if detail is None else f"{error.message}{_DETAIL_FOLLOWS}{detail}"
    plpy.error(text, **fields)
    raise error  # plpy.error has raised already


def sqlstate_of(error: plpy.SPIError) -> str:
    """Its ``sqlstate``, which it has not got where PL/Python does not know the code."""
    packed: int = error.spidata[0]
    return "".join(chr((packed >> 6 * i & 0x3F) + ord("0")) for i in range(5))


def query(sql: str, types: Sequence[str], values: Sequence[object]) -> list[dict[str, Any]]:
    """Rows of a statement with arguments $1, $2, ... of these types."""
    return [dict(row) for row in plpy.execute(plpy.prepare(sql, list(types)), list(values))]


def prevent_read_only(what: str) -> None:
    """Raises ReportedError (25006) as PostgreSQL does for statements that write."""
    setting = query("SELECT pg_catalog.current_setting('transaction_read_only') AS it", [], [])
    if setting[0]["it"] == "on":
        raise ReportedError(
            READ_ONLY_TRANSACTION, f"cannot execute {what} in a read-only transaction"
        )
