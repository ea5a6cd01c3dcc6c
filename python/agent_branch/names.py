"""Names of agents' branches: the branch of agent 123 is the database ``agent_123``."""

from __future__ import annotations

from collections.abc import Sequence

from agent_branch.errors import INVALID_PARAMETER_VALUE, NAME_TOO_LONG, ReportedError

PREFIX = "agent_"

# NAMEDATALEN - 1 of PostgreSQL, in bytes of the server's encoding.
MAX_NAME_BYTES = 63


def branch_name(agent_id: str | None) -> str:
    """Name of the database of an agent.

    Any character may be in an id: the server quotes names itself.  The length is counted in
    UTF-8; the server checks again in its own encoding.

    Raises ``ReportedError``: 22023 for an empty or missing id, 42622 if the name would have
    more than 63 bytes.
    """
    if not agent_id:
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            "the id of an agent must not be empty",
            hint="Pass a text that identifies the agent.",
        )
    name = PREFIX + agent_id
    length = len(name.encode("utf-8", errors="surrogatepass"))
    if length > MAX_NAME_BYTES:
        raise ReportedError(
            NAME_TOO_LONG,
            f'the id of agent "{agent_id}" is too long',
            detail=f"Its branch's name would have {length} bytes, and a database name can have"
            f" {MAX_NAME_BYTES}.",
            hint=f"Use ids of at most {MAX_NAME_BYTES - len(PREFIX)} bytes.",
        )
    return name


def list_of_ids(agent_ids: Sequence[str | None] | None) -> list[str | None]:
    """Raises ``ReportedError`` 22023: null, or an array of more than one dimension, whose
    elements PL/Python makes lists.
    """
    if agent_ids is None:
        raise ReportedError(INVALID_PARAMETER_VALUE, 'argument "p_agent_ids" must not be null')
    if any(isinstance(agent_id, list) for agent_id in agent_ids):
        raise ReportedError(
            INVALID_PARAMETER_VALUE, 'argument "p_agent_ids" must be a one-dimensional array'
        )
    return list(agent_ids)
