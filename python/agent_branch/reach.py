"""What is looked up in other databases, inside the server, for the functions of the extension."""

from __future__ import annotations

import plpy

from agent_branch import effects
from agent_branch.errors import INVALID_PARAMETER_VALUE
from agent_branch.remote import Remote

NO_RIGHT = "42501"
NO_CONNECTION = {NO_RIGHT, "55000", "3D000"}


def _cron_database() -> str | None:
    """Where pg_cron has its jobs; None if it is not loaded.  42501: not everybody may know."""
    row = plpy.execute("SELECT current_setting('cron.database_name', true) AS v")[0]
    name: str | None = row["v"]
    return name


def _jobs_in(session: Remote, stored_in: str, asked: str, cron: str | None) -> list[effects.Effect]:
    there, readable = next(iter(session.rows(effects.CRON_TABLE)))
    if there != "t":
        return []
    if readable != "t":
        return [effects.unreadable_jobs(stored_in)]
    rows = session.rows(effects.CRON_JOBS)
    return effects.jobs(rows, asked=asked, stored_in=stored_in, cron_database=cron)


def _jobs(here: Remote, asked: str) -> list[effects.Effect]:
    """Jobs that pg_cron runs in a database, and those whose table it has."""
    try:
        cron = _cron_database()
    except plpy.SPIError as error:
        if error.sqlstate != NO_RIGHT:
            raise
        return [effects.unreadable_jobs(None)]
    found = _jobs_in(here, asked, asked, cron)
    if cron is None or cron == asked:
        return found
    try:
        with Remote(cron, read_only=True, isolation="repeatable read") as there:
            return found + _jobs_in(there, cron, asked, cron)
    except plpy.SPIError as error:
        if error.sqlstate not in NO_CONNECTION:
            raise
        return [*found, effects.unreadable_jobs(cron)]


def side_effects(name: str | None) -> list[tuple[str, str, str, bool | None]]:
    """(kind, object, detail, active) of what in a database could act on the world outside it.

    Errors: 22023 no name; those of reaching the database (3D000, 42501, 55000, 53400).
    """
    if name is None:
        plpy.error('argument "name" must not be null', sqlstate=INVALID_PARAMETER_VALUE)
    asked = str(name)
    with Remote(asked, read_only=True, isolation="repeatable read") as session:
        found = effects.effects(session.rows(effects.CATALOGS)) + _jobs(session, asked)
    return [(e.kind, e.object, e.detail, e.active) for e in sorted(found, key=_order)]


def _order(effect: effects.Effect) -> tuple[bool, str, str, str]:
    return (not effect.active, effect.kind, effect.object, effect.detail)
