"""What a continuous sync is made of: names, tables, connection; no server here."""

from __future__ import annotations

from collections.abc import Sequence

from agent_branch.errors import ReportedError
from agent_branch.records import dataclass
from agent_branch.uri import Endpoint

PREFIX = "agent_branch_sync_"
UNDEFINED_TABLE = "42P01"
WRONG_STATE = "55000"


@dataclass(frozen=True, slots=True)
class Published:
    """A table of the source; ``told_apart``: its replica identity finds a row again."""

    schema: str
    name: str
    told_apart: bool


def slot_name(source: int, target: int) -> str:
    """Of publication, slot and subscription: OIDs stay when databases are renamed."""
    return f"{PREFIX}{source}_{target}"


def choose_tables(
    known: Sequence[Published], asked: Sequence[Sequence[str]] | None, source: str
) -> list[Published]:
    """The tables that were asked for, by name with or without schema; None: all that can be.

    Raises ``ReportedError``: 42P01 there is no such table (or several), 55000 changes of one
    could not be applied, or there is none.
    """
    if asked is None:
        chosen = [table for table in known if table.told_apart]
    else:
        chosen = [_find(known, parts, source) for parts in asked]
    for table in chosen:
        if not table.told_apart:
            raise ReportedError(
                WRONG_STATE,
                f'rows of table "{table.name}" cannot be told apart',
                detail="It has neither a primary key nor another replica identity.",
                hint="Give it a primary key, or ALTER TABLE ... REPLICA IDENTITY.",
            )
    if not chosen:
        raise ReportedError(WRONG_STATE, f'database "{source}" has no table to be synced')
    return list(dict.fromkeys(chosen))


def _find(known: Sequence[Published], parts: Sequence[str], source: str) -> Published:
    found = [
        table
        for table in known
        if parts[-1] == table.name and list(parts[:-1]) in ([], [table.schema])
    ]
    if len(found) != 1:
        several = "is in several schemas of" if found else "does not exist in"
        raise ReportedError(
            UNDEFINED_TABLE,
            f'table "{".".join(parts)}" {several} database "{source}"',
            hint="Name ordinary tables; of a partitioned one name the partitions.",
        )
    return found[0]


def conninfo(source: str, endpoint: Endpoint, role: str, given: str | None) -> str:
    """For libpq, from this very server; ``given`` replaces all but the database."""
    if given is not None:
        return f"{given} dbname={_value(source)}".strip()
    directory = endpoint.socket_directories.split(",")[0].strip()
    words = {
        "host": directory or "localhost",
        "port": str(endpoint.port),
        "user": role,
        "dbname": source,
    }
    return " ".join(f"{word}={_value(value)}" for word, value in words.items())


def _value(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
