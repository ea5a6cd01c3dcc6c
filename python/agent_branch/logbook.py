"""Transactions in the control database in which merges write down what becomes of them, inside
the server.

They are not the caller's: what the target does cannot be rolled back by that, so neither can they.
They have the caller's rights, but nobody else can write what they write: their sessions can only be
opened and used while a function of the extension runs.  So nothing is run in them that the caller
could have put together.
"""

from __future__ import annotations

import plpy

from agent_branch.hints import Iterator
from agent_branch.remote import Remote, send_each
from agent_branch.sqltext import Row, quote_literal

COMMITTED = "read committed"


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return quote_literal(str(value))


def control_database() -> str:
    name: str = plpy.execute("SELECT current_database() AS d")[0]["d"]
    return name


def _open(isolation: str) -> Remote:
    """A session in the control database; nothing waits for it to be there."""
    remote = Remote.book(isolation)
    # Somebody's setting would make policies errors.
    send_each([remote], ["SET row_security = on; SET synchronous_commit = on"])
    return remote


class Book:
    """What a merge writes in the control database: transactions, one after the other in one
    session, as long as none is rolled back.  Close it in the end."""

    def __init__(self) -> None:
        self._idle: Remote | None = _open(COMMITTED)

    def log(self) -> Log:
        """The next transaction."""
        idle, self._idle = self._idle, None
        return Log(remote=idle, book=self)

    def take_back(self, remote: Remote) -> None:
        """A session, once its transaction was committed."""
        if self._idle is None:
            remote.save()
            self._idle = remote
        else:
            remote.commit()

    def close(self) -> None:
        if self._idle is not None:
            self._idle.close()
            self._idle = None


class Log:
    """A transaction in the control database that is committed at the end of ``with``."""

    def __init__(
        self, isolation: str = COMMITTED, remote: Remote | None = None, book: Book | None = None
    ) -> None:
        """``remote``: a session that is there already; ``book``: gets it when that is done."""
        self._remote = remote or _open(isolation)
        self._book = book

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._remote.close()
        elif self._book is not None:
            self._book.take_back(self._remote)
        else:
            self._remote.commit()

    @property
    def number(self) -> int:
        return self._remote.number

    def close(self) -> None:
        """Without a commit."""
        self._remote.close()

    def rows(self, sql: str) -> list[Row]:
        return [tuple(row) for row in self._remote.rows(sql)]

    def stream(self, sql: str, batch: int) -> Iterator[Row]:
        """Rows of a query, no more than ``batch`` of them in memory."""
        return (tuple(row) for row in self._remote.rows(sql, batch))

    def run(self, sql: str) -> None:
        self._remote.run(sql)

    def wait_for_no_disk(self) -> None:
        """At its commit: one that comes later, in whatever database, makes it durable as well.

        Not where somebody may act on what it says before that.
        """
        self.run("SET LOCAL synchronous_commit = off")

    def update(self, number: int, **values: object) -> None:
        assigned = ", ".join(f"{name} = {literal(value)}" for name, value in values.items())
        self.run(f"UPDATE branch.merge_log SET {assigned} WHERE id = {number}")
