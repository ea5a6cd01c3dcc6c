"""Connection strings for agents (libpq: PostgreSQL documentation, section 34.1.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError

ANY_ADDRESS = {"", "*", "0.0.0.0", "::"}
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*:)+//", re.IGNORECASE)  # jdbc:postgresql://, too
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens: its settings as they are, lists included.

    ``server_address`` is the address at which the calling client has reached the server;
    empty if it came through a socket directory.
    """

    socket_directories: str
    listen_addresses: str
    port: int
    server_address: str = ""


def split_list(setting: str) -> list[str]:
    """Items of a comma-separated setting, without blanks and quotes; empty ones left out."""
    items = (item.strip().strip('"').strip() for item in setting.split(","))
    return [item for item in items if item]


def host_of(endpoint: Endpoint) -> str:
    """What to connect to: as the calling client did, else the first address of the server.

    A client of the network is given the address it has reached, a local one the first
    socket directory.  A server that listens on all addresses, or on none, is reached as
    ``localhost``.
    """
    if endpoint.server_address:
        return endpoint.server_address
    directories = split_list(endpoint.socket_directories)
    if directories:
        return directories[0]
    addresses = split_list(endpoint.listen_addresses)
    address = addresses[0] if addresses else ""
    return "localhost" if address in ANY_ADDRESS else address


def is_socket(host: str) -> bool:
    """Does libpq take this host for a directory (or an abstract socket)?"""
    return host.startswith(("/", "@"))


def authority_host(host: str) -> str:
    """A host as it stands before port and path of a URI."""
    if ":" in host and not is_socket(host):
        return f"[{host}]"
    return quote(host, safe="")


def default_uri(database: str, endpoint: Endpoint, role: str) -> str:
    """A libpq URI for a database of this server; without a role libpq chooses one."""
    host = host_of(endpoint)
    name = quote(database, safe="")
    user = f"{quote(role, safe='')}@" if role else ""
    if is_socket(host):
        return f"postgresql://{user}/{name}?host={quote(host, safe='')}&port={endpoint.port}"
    return f"postgresql://{user}{authority_host(host)}:{endpoint.port}/{name}"


def escape_value(value: str) -> str:
    """A value for a keyword/value string; good between quotes and without them."""
    return re.sub(r"([\s'\\])", r"\\\1", value)


def fill_template(template: str, values: dict[str, str]) -> str:
    """Put values into ``{name}`` of a template, escaped for a URI or a keyword/value string.

    Raises ``ReportedError`` 22023 for a name that ``values`` has not.
    """
    is_uri = SCHEME.match(template) is not None

    def value_of(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in values:
            known = ", ".join(f"{{{key}}}" for key in values)
            raise ReportedError(
                INVALID_PARAMETER_VALUE,
                f'unknown "{{{name}}}" in agent_branch.connection_template',
                hint=f"It can have {known}.",
            )
        if not is_uri:
            return escape_value(values[name])
        if name == "host" and "?" not in template[: found.start()]:
            return authority_host(values[name])
        return quote(values[name], safe="")

    return PLACEHOLDER.sub(value_of, template)


def connection_string(database: str, endpoint: Endpoint, template: str, role: str) -> str:
    """How a role connects to a database: by the template; ``default_uri`` if that is empty.

    Raises ``ReportedError`` 22023 for a bad template.
    """
    if not template.strip():
        return default_uri(database, endpoint, role)
    values = {
        "database": database,
        "host": host_of(endpoint),
        "port": str(endpoint.port),
        "role": role,
    }
    return fill_template(template, values)
