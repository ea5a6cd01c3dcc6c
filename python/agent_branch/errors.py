"""Errors as PostgreSQL reports them, raised by pure logic and passed on by executors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

INVALID_PARAMETER_VALUE = "22023"
NAME_TOO_LONG = "42622"
UNDEFINED_DATABASE = "3D000"
READ_ONLY_TRANSACTION = "25006"


class ReportedError(Exception):
    """What is wrong, in the parts of a PostgreSQL error.

    ``message`` is lower case and names the object, ``detail`` has the facts, ``hint`` the next
    step; ``sqlstate`` is one of PostgreSQL's codes (its documentation, appendix A).
    """

    def __init__(self, sqlstate: str, message: str, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint

    def fields(self) -> dict[str, str]:
        """The fields that have something to say, but the message."""
        given = {"sqlstate": self.sqlstate, "detail": self.detail, "hint": self.hint}
        return {name: value for name, value in given.items() if value}


def table_text(tables: Iterable[Sequence[str]]) -> str:
    """Tables, schema and name, in a message."""
    return " or ".join(f'table "{".".join(table)}"' for table in tables)


class RaisedError(ReportedError):
    """What a statement in another database has raised, a trigger of it mostly, where that is not
    what is asked for; ``about``: names of what it is about (``schema_name`` and so on)."""

    def __init__(
        self,
        sqlstate: str,
        message: str,
        detail: str = "",
        hint: str = "",
        about: dict[str, str] | None = None,
    ) -> None:
        super().__init__(sqlstate, message, detail, hint)
        self.about = about or {}

    def with_detail(self, more: str) -> RaisedError:
        """The same with a line more."""
        detail = f"{self.detail}\n{more}" if self.detail else more
        return RaisedError(self.sqlstate, self.message, detail, self.hint, self.about)

    def fields(self) -> dict[str, str]:
        return super().fields() | self.about
