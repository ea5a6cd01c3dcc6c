"""Agents' branches, inside the server: what the PL/Python functions of the extension call.

Everything runs with the rights of the role that calls, in its transaction.  Only what an
agent needs inside (table agent_data, grants) is made in the parent by a transaction of its
own, once for each parent; an agent's branch then shares its pages like all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_branch.errors import UNDEFINED_DATABASE, ReportedError
from agent_branch.inside import query, report
from agent_branch.names import branch_name, list_of_ids
from agent_branch.uri import Endpoint, connection_string


def _ensure(
    agent_ids: Sequence[str | None],
    names: Sequence[str],
    parent: str | None,
    passwords: Sequence[str | None] | None,
) -> list[str | None]:
    """Have all these branches; the role of its own of each agent, None: it has none.

    One statement, whose text has no values in it: what it is given is not logged with it.
    """
    rows = query(
        "SELECT branch._ensure_agents($1, $2, $3, $4) AS roles",
        ["text[]", "text[]", "text", "text[]"],
        [
            list(agent_ids),
            list(names),
            parent,
            None if passwords is None else list(passwords),
        ],
    )
    roles: list[str | None] = rows[0]["roles"]
    return roles


def _connection_strings(names: Sequence[str], roles: Sequence[str | None]) -> list[str]:
    """Who logs in is the agent's own role; else the caller, or whom its session began as."""
    row = query(
        "SELECT e.socket_directories, e.listen_addresses, e.port,"
        " coalesce(host(inet_server_addr()), '') AS server_address,"
        " CASE WHEN r.rolcanlogin THEN r.rolname ELSE session_user END AS caller,"
        " current_setting('agent_branch.connection_template', true) AS template"
        " FROM branch._endpoint() AS e, pg_roles AS r WHERE r.rolname = current_user",
        [],
        [],
    )[0]
    endpoint = Endpoint(
        row["socket_directories"], row["listen_addresses"], row["port"], row["server_address"]
    )
    template = row["template"] or ""
    return [
        connection_string(name, endpoint, template, role or row["caller"])
        for name, role in zip(names, roles, strict=True)
    ]


def create_agent_branches(
    agent_ids: Sequence[str | None] | None,
    parent: str | None,
    passwords: Sequence[str | None] | None = None,
) -> list[tuple[str, str]]:
    """(name, connection string) of each agent's branch, in the order asked for.

    A branch that is living is returned as it is, whatever its parent, if it is the caller's or
    a superuser's; the others are created from one snapshot of ``parent`` (None:
    agent_branch.default_parent).  With agent_branch.agent_roles each agent logs in as a role
    of its own, with the password given in its place (clear text, at most 1 kB, or a
    SCRAM-SHA-256 verifier; None: unchanged, a new role has none).  More than 1,000 new
    branches give a NOTICE for each 1,000.

    Errors: 22023 no list, empty id, bad passwords; 42622 name too long; 42P04 the branch is
    somebody else's; 42710 the role is; 3D000 unknown parent; 42501 rights; and those of
    branch.create.
    """
    try:
        ids = list_of_ids(agent_ids)
        names = [branch_name(agent_id) for agent_id in ids]
        if not names:
            return []
        roles = _ensure(ids, names, parent, passwords)
        return list(zip(names, _connection_strings(names, roles), strict=True))
    except ReportedError as error:
        report(error)


def delete_agent_branch(agent_id: str | None) -> None:
    """Delete the branch of an agent as branch.delete does by default: recoverably.

    Its role cannot log in until branch.recover brings it back, and goes with the branch.

    Errors: 22023 empty id, 3D000 unknown agent, 55006 somebody is connected to it or it has
    branches, 42501 rights, 55000 it is protected.
    """
    try:
        name = branch_name(agent_id)
        rows = query(
            "SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = $1", ["name"], [name]
        )
        if not rows:
            raise ReportedError(
                UNDEFINED_DATABASE,
                f'agent "{agent_id}" has no branch',
                detail=f'Database "{name}" does not exist.',
                hint="The view branch.branches lists the branches that do, and deleted ones.",
            )
        query("SELECT branch.delete($1)", ["text"], [name])
    except ReportedError as error:
        report(error)
