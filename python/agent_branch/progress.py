"""How far a comparison is, told to the client; in the server."""

from __future__ import annotations

import plpy

# A NOTICE for so many rows read; ab_sql_rowcounts.c has the same.
ROWS_BETWEEN_NOTICES = 100_000


class Progress:
    """Tells the client how far it is, as long as it takes."""

    def __init__(self) -> None:
        self.rows = 0
        self._table = ""

    def turn_to(self, table: tuple[str, str]) -> None:
        """A table begins."""
        self._table = name_of(table)

    @property
    def where(self) -> str:
        """What follows the number of rows."""
        return f", now in table {self._table}" if self._table else ""

    def row(self) -> None:
        """A row was read."""
        self.rows_more(1)

    def rows_more(self, number: int) -> None:
        told = self.rows // ROWS_BETWEEN_NOTICES
        self.rows += number
        if self.rows // ROWS_BETWEEN_NOTICES > told:
            plpy.notice(f"{self.rows} rows read{self.where}")


def name_of(table: tuple[str, str]) -> str:
    return ".".join(plpy.quote_ident(part) for part in table)
