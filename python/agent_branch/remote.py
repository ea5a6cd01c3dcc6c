"""Sessions in other databases, inside the server, with the rights of the role that calls.

A background worker of the server connects there as the current role; see branch._remote_open.
One session is one transaction there, or some in a row (``save``).  It ends with the transaction or
savepoint here that opened it, so an error that nobody catches leaves nothing behind.
"""

from __future__ import annotations

import plpy

from agent_branch.hints import Any, Iterator, Sequence, TracebackType

Row = Sequence[str | None]


class Remote:
    """A session in the database ``db``; close it, or use it in a ``with`` statement.

    ``read_only``: None leaves it to the settings of the role in that database.  ``isolation``:
    'read committed', 'repeatable read', 'serializable', or None, likewise.  search_path is
    pg_catalog, pg_temp.

    Errors: 3D000 unknown database, 42501 no privilege CONNECT, 55000 it takes no connections,
    53400 no free worker; those of the statements as they are (plpy.SPIError), 57P01 and 08006 if
    the worker is ended.  After an error only ``close`` is of use, unless it came from
    ``run(..., savepoint=True)``.
    """

    def __init__(
        self, db: str, *, read_only: bool | None = None, isolation: str | None = None
    ) -> None:
        self._number: int = _value(
            "SELECT branch._remote_open($1, $2, $3)",
            ["text", "bool", "text"],
            [db, read_only, isolation],
        )

    @classmethod
    def book(cls, isolation: str) -> Remote:
        """One in the control database that may write merges down.

        This one and the next are for functions of the extension: 42501 for others, who cannot use
        them either.
        """
        return cls._of("SELECT branch._remote_open_book($1)", isolation)

    @classmethod
    def target(cls, db: str) -> Remote:
        """One that writes what is merged, in ``db``, when no other one does (55P03)."""
        return cls._of("SELECT branch._remote_open_target($1)", db)

    @classmethod
    def _of(cls, opening: str, argument: str) -> Remote:
        session = cls.__new__(cls)
        session._number = _value(opening, ["text"], [argument])
        return session

    @property
    def number(self) -> int:
        return self._number

    def run(self, statements: str, *, savepoint: bool = False) -> str | None:
        """Run statements; the command tag of the last, or None if there are rows to fetch.

        ``savepoint``: an error undoes only these, and the session can be used further.
        """
        tag: str | None = _value(
            "SELECT branch._remote_run($1, $2, $3)",
            ["int4", "text", "bool"],
            [self._number, statements, savepoint],
        )
        return tag

    def fetch(self, max_rows: int) -> list[Row]:
        """The next rows of what was run, values as text; fewer than asked for: the last."""
        rows = plpy.execute(
            plpy.prepare("SELECT r FROM branch._remote_fetch($1, $2) AS r", ["int4", "int4"]),
            [self._number, max_rows],
        )
        return [row["r"] for row in rows]

    def rows(self, query: str, batch: int = 1000) -> Iterator[Row]:
        """All rows of a query, of which no more than ``batch`` are in memory at once."""
        if self.run(query) is not None:
            return
        while True:
            got = self.fetch(batch)
            yield from got
            if len(got) < batch:
                return

    def commit(self) -> None:
        """Commit there, and close the session."""
        plpy.execute(f"SELECT branch._remote_commit({self._number})")
        self._number = 0

    def save(self) -> None:
        """Commit there, and go on in another transaction."""
        plpy.execute(f"SELECT branch._remote_save({self._number})")

    def close(self) -> None:
        """Close the session; what it has not committed is rolled back."""
        close_each([self])

    def forget(self) -> None:
        """It is closed."""
        self._number = 0

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def close_each(sessions: Sequence[Remote]) -> None:
    """Close sessions side by side; those that are closed stay so."""
    numbers = [str(session.number) for session in sessions if session.number]
    if numbers:
        plpy.execute(f"SELECT branch._remote_close({', '.join(numbers)})")
    for session in sessions:
        session.forget()


def send_each(sessions: Sequence[Remote], queries: Sequence[str]) -> None:
    """Have one run in each session, side by side; ``rows_each`` waits for them."""
    plpy.execute(
        plpy.prepare("SELECT branch._remote_send_each($1, $2)", ["int4[]", "text[]"]),
        [[session.number for session in sessions], list(queries)],
    )


def rows_each(sessions: Sequence[Remote]) -> list[list[Row]]:
    """All rows of what was sent to each session."""
    found: list[list[Row]] = [[] for _ in sessions]
    lines = plpy.execute(
        plpy.prepare("SELECT * FROM branch._remote_rows_each($1)", ["int4[]"]),
        [[session.number for session in sessions]],
    )
    for line in lines:
        found[line["n"] - 1].append(line["r"])
    return found


def _value(sql: str, types: Sequence[str], values: Sequence[object]) -> Any:
    row = plpy.execute(plpy.prepare(f"{sql} AS v", list(types)), list(values))[0]
    return row["v"]
