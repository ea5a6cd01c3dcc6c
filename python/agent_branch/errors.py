"""Errors as PostgreSQL reports them, raised by pure logic and passed on by executors."""

from __future__ import annotations

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
