"""The target of a merge: the one transaction in which its rows are read and written."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence

import plpy

from agent_branch.catalog import TABLES, table_from
from agent_branch.errors import RaisedError, ReportedError
from agent_branch.inside import sqlstate_of
from agent_branch.remote import Remote, send_each
from agent_branch.sqltext import (
    Refusal,
    Row,
    Statement,
    qualified,
    quote_ident,
    restore_statements,
    settings_commands,
    settings_statement,
)
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape

LOCK_NOT_AVAILABLE = "55P03"
NO_RIGHT = "42501"
REPLACED = "40001"

# In milliseconds; the view pg_settings takes far longer.
_LOCK_TIMEOUT = "SELECT (1000 * extract(epoch FROM current_setting('lock_timeout')::interval))::int"

# Classes of errors that are about a definition, not about the session.
_REFUSING = ("0A", "22", "23", "2B", "42")

# Classes of errors that are about the session or the server, whatever was run in it.
_OF_SESSION = ("08", "40", "53", "57", "58", "XX")

# One round of locking ends before the server would look for deadlocks (after 1 s): so it is the
# merge that gives way, never a client of the target.
ROUND_MS = 200

# Also asked when the search_path is the database's own again.
_TRIGGERS = """
SELECT n.nspname, c.relname, t.tgname, t.tgenabled
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'::pg_catalog."char"
ORDER BY n.nspname, c.relname, t.tgname"""

_ENABLE = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}

# For the temporary tables of staging.py and carrying.py; taken as far as it is needed.
TEMP_BUFFERS = "32MB"

# Pieces of text that are fetched at once.
LONG_AT_ONCE = 4


def refusal_of(error: plpy.SPIError) -> Refusal | None:
    """What a constraint said; None: it was something else."""
    sqlstate = sqlstate_of(error)
    if not sqlstate.startswith("23"):
        return None
    _, detail, _, _, _, schema, table, _, _, constraint = error.spidata
    return Refusal(sqlstate, str(error), detail or "", constraint or "", schema or "", table or "")


def raised_by(error: plpy.SPIError) -> RaisedError:
    _, detail, hint, _, _, *named = error.spidata
    kinds = ("schema_name", "table_name", "column_name", "datatype_name", "constraint_name")
    about = {kind: name for kind, name in zip(kinds, named, strict=True) if name}
    return RaisedError(sqlstate_of(error), str(error), detail or "", hint or "", about)


class Target:
    """A ``WritingSession`` in the target.  Nothing of it stays unless ``commit`` returns.

    Who was killed while it committed may not be over yet: that is waited for.
    """

    def __init__(self, database: str) -> None:
        self.database = database
        self._remote = Remote.target(database)
        self._disabled: list[tuple[str, str, str]] = []
        commands = [f"SET LOCAL temp_buffers = '{TEMP_BUFFERS}'", settings_commands()]
        # Nothing waits for it here: other sessions begin side by side.
        send_each([self._remote], ["; ".join(commands)])

    @property
    def remote(self) -> Remote:
        return self._remote

    def unsettled(self) -> list[str]:
        """Commands to be run before the next statement: none."""
        return []

    def _one(self, sql: str) -> str | None:
        return next(iter([tuple(row) for row in self._remote.rows(sql)]))[0]

    def rows(self, statement: Statement) -> Iterator[Row]:
        return (tuple(row) for row in self._remote.rows(statement.inline()))

    def texts(self, statement: Statement) -> Iterator[Row]:
        """Rows that are long: few of them are in memory at once."""
        return (tuple(row) for row in self._remote.rows(statement.inline(), LONG_AT_ONCE))

    def execute(self, statement: Statement) -> int:
        try:
            return _count(self._remote.run(statement.inline()))
        except plpy.SPIError as error:
            self._check_lock(error)
            raise

    def attempt(self, statement: Statement) -> int | Refusal:
        try:
            tag = self._remote.run(statement.inline(), savepoint=True)
            if tag is not None:
                return _count(tag)
            return sum(int(row[0] or 0) for row in self._remote.fetch(2))
        except plpy.SPIError as error:
            self._check_lock(error)
            refusal = refusal_of(error)
            if refusal is not None:
                return refusal
            if sqlstate_of(error)[:2] in _OF_SESSION:
                raise
            raise raised_by(error) from error

    def _check_lock(self, error: plpy.SPIError) -> None:
        """Who has locked rows, as for UPDATE, holds no lock on their table that would be waited for
        before."""
        if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
            said, where = str(error), error.spidata[1] or ""
            raise ReportedError(
                LOCK_NOT_AVAILABLE,
                f'could not lock the rows to be merged in database "{self.database}"',
                detail=f"{said[:1].upper()}{said[1:]}. {where}".rstrip(),
                hint="Merge when there are fewer long transactions.",
            ) from error

    def check(self, oid: int) -> None:
        """Raises ``ReportedError`` 40001 if another database had the name when it was opened.  It
        keeps it from now on."""
        found = self._one(
            "SELECT d.oid FROM pg_catalog.pg_database AS d"
            " WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()"
        )
        if found != str(oid):
            raise ReportedError(
                REPLACED,
                f'database "{self.database}" was replaced by another one',
                detail="It was reset, restored or renamed when the merge had begun.",
                hint="Merge again.",
            )

    # ---- locks ----

    def lock(self, tables: Sequence[TableId]) -> None:
        """Hold writers of these tables off; readers go on.

        Raises ``ReportedError`` 55P03 after the session's lock_timeout: what the caller has said,
        else what the role has here, else 10 s.
        """
        wanted = list(tables)
        if not wanted:
            return
        lock_timeout = int(self._one(_LOCK_TIMEOUT) or 0)
        until = time.monotonic() + lock_timeout / 1000
        while not self._lock_round(wanted, lock_timeout):
            plpy.execute("SELECT 1")  # a cancelled query ends here
            if time.monotonic() > until:
                raise ReportedError(
                    LOCK_NOT_AVAILABLE,
                    "could not lock the tables to be merged",
                    detail="Their writers did not leave a moment within"
                    f" {lock_timeout / 1000:g} s (lock_timeout).",
                    hint="Merge when there are fewer long transactions, or raise lock_timeout.",
                )
            from random import shuffle  # few merges wait, and it takes long to import

            shuffle(wanted)

    def _lock_round(self, tables: Sequence[TableId], lock_timeout: int) -> bool:
        names = ", ".join(f"ONLY {qualified(*table)}" for table in tables)
        try:
            self._remote.run(
                f"SET LOCAL lock_timeout = {min(ROUND_MS, lock_timeout)};"
                f" LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE;"
                f" SET LOCAL lock_timeout = {lock_timeout}",
                savepoint=True,
            )
        except plpy.SPIError as error:
            if sqlstate_of(error) != LOCK_NOT_AVAILABLE:
                raise
            return False
        return True

    # ---- definitions ----

    def define(self, statements: Sequence[str]) -> list[tuple[str, str]]:
        """Run statements that define objects; (statement, why) of those that could not be.

        One that needs what a later one makes is tried again after it.
        """
        self.execute(settings_statement())
        self.execute(Statement("SET LOCAL check_function_bodies = off"))
        left = list(statements)
        while True:
            failed = [(one, why) for one in left if (why := self._define(one)) is not None]
            if not failed or len(failed) == len(left):
                return failed
            left = [one for one, _ in failed]

    def shape(self, table: TableId) -> TableShape:
        """Of one of its tables, as it is now.  Rows are being written: the settings are theirs."""
        self.execute(settings_statement())
        shapes = [table_from(row).shape for row in self.rows(TABLES)]
        self._restore_settings()
        return next(shape for shape in shapes if shape.id == table)

    def _define(self, statement: str) -> str | None:
        try:
            self._remote.run(statement, savepoint=True)
        except plpy.SPIError as error:
            sqlstate = sqlstate_of(error)
            if sqlstate == NO_RIGHT or sqlstate[:2] not in _REFUSING:
                raise
            return str(error)
        return None

    # ---- writing ----

    def _restore_settings(self) -> None:
        for statement in restore_statements():
            self.execute(statement)

    def prepare(self, tables: Collection[TableId], *, fire_triggers: bool) -> None:
        """Before rows are written; ``finish`` afterwards."""
        self._restore_settings()
        if fire_triggers:
            return
        found = self._triggers()
        for schema, table, trigger, how in found:
            assert schema is not None
            assert table is not None
            assert trigger is not None
            if (schema, table) not in tables:
                continue
            on = f"ALTER TABLE ONLY {qualified(schema, table)}"
            name = quote_ident(trigger)
            self.execute(Statement(f"{on} DISABLE TRIGGER {name}"))
            self._disabled.append((on, _ENABLE[how or "O"], name))

    def triggered(self, tables: Collection[TableId]) -> set[TableId]:
        """Those of the tables that have triggers."""
        found = {(schema or "", table or "") for schema, table, _, _ in self._triggers()}
        return {table for table in tables if table in found}

    def _triggers(self) -> list[Row]:
        return list(self.rows(Statement(_TRIGGERS)))

    def finish(self) -> None:
        for on, enable, name in self._disabled:
            self.execute(Statement(f"{on} {enable} TRIGGER {name}"))
        self._disabled = []

    def transaction(self) -> str:
        """Its id, which it has from now on."""
        self._remote.run("SET LOCAL synchronous_commit = on")
        return self._one("SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text") or ""

    def commit(self) -> None:
        self._remote.commit()

    def close(self) -> None:
        self._remote.close()


def commit_apart(database: str, statements: Sequence[str]) -> None:
    """Run statements there in a transaction of their own."""
    if not statements:
        return
    with Remote(database, read_only=False) as session:
        session.run(settings_statement().inline())
        for statement in statements:
            session.run(statement)
        session.commit()


def _count(tag: str | None) -> int:
    count = (tag or "").rpartition(" ")[2]
    return int(count) if count.isdigit() else 0
