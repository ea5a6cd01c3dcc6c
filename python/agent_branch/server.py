"""Agents' branches, inside the server: what the PL/Python functions of the extension call.

Everything runs with the rights of the role that calls, in its transaction.  Only the agents'
table is made in the parent by a transaction of its own, once for each parent; an agent's
branch then shares its pages like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import plpy

from agent_branch.errors import UNDEFINED_DATABASE, ReportedError
from agent_branch.names import branch_name
from agent_branch.uri import Endpoint, connection_string


def _query(sql: str, types: Sequence[str], values: Sequence[object]) -> list[dict[str, Any]]:
    return [dict(row) for row in plpy.execute(plpy.prepare(sql, list(types)), list(values))]


def _report(error: ReportedError) -> NoReturn:
    plpy.error(error.message, **error.fields())
    raise error  # plpy.error has raised already


def _living(names: Sequence[str]) -> set[str]:
    """Those of the names that are branches now."""
    rows = _query(
        "SELECT b.name FROM branch.branches AS b"
        " WHERE b.name = ANY ($1) AND b.current_state <> 'deleted'",
        ["name[]"],
        [list(names)],
    )
    return {row["name"] for row in rows}


def _ensure(names: Sequence[str], parent: str | None) -> None:
    """Have all these branches, with the agents' table in their parent before the first is made.

    branch.ensure also looks whose the living ones are.
    """
    if not _living(names).issuperset(names):
        _query("SELECT branch._ensure_agent_table($1)", ["text"], [parent])
    for name in dict.fromkeys(names):
        _query("SELECT b.id FROM branch.ensure($1, $2) AS b", ["text", "text"], [name, parent])


def _connection_strings(names: Sequence[str]) -> list[str]:
    """Who logs in is the caller, if that role can, else the one the session began as."""
    row = _query(
        "SELECT e.socket_directories, e.listen_addresses, e.port,"
        " coalesce(host(inet_server_addr()), '') AS server_address,"
        " CASE WHEN r.rolcanlogin THEN r.rolname ELSE session_user END AS role,"
        " current_setting('agent_branch.connection_template', true) AS template"
        " FROM branch._endpoint() AS e, pg_roles AS r WHERE r.rolname = current_user",
        [],
        [],
    )[0]
    endpoint = Endpoint(
        row["socket_directories"], row["listen_addresses"], row["port"], row["server_address"]
    )
    template = row["template"] or ""
    return [connection_string(name, endpoint, template, row["role"]) for name in names]


def create_agent_branches(
    agent_ids: Sequence[str | None] | None, parent: str | None
) -> list[tuple[str, str]]:
    """(name, connection string) of each agent's branch, in the order asked for.

    A branch that is living is returned as it is, whatever its parent, if it is the caller's or
    a superuser's; the others are created from ``parent`` (None: agent_branch.default_parent).

    Errors: 22023 empty id, 42622 name too long, 42P04 it is somebody else's, 3D000 unknown
    parent, 42501 rights, and those of branch.create.
    """
    try:
        names = [branch_name(agent_id) for agent_id in agent_ids or []]
        if not names:
            return []
        _ensure(names, parent)
        return list(zip(names, _connection_strings(names), strict=True))
    except ReportedError as error:
        _report(error)


def delete_agent_branch(agent_id: str | None) -> None:
    """Delete the branch of an agent for good.

    Errors: 22023 empty id, 3D000 unknown agent, 55006 somebody is connected to it or it has
    branches, 42501 rights.
    """
    try:
        name = branch_name(agent_id)
        rows = _query(
            "SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = $1", ["name"], [name]
        )
        if not rows:
            raise ReportedError(
                UNDEFINED_DATABASE,
                f'agent "{agent_id}" has no branch',
                detail=f'Database "{name}" does not exist.',
                hint="The view branch.branches lists the branches that do.",
            )
        _query("SELECT branch.delete($1, hard => true)", ["text"], [name])
    except ReportedError as error:
        _report(error)
