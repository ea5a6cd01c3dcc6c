"""Definitions as ``schemaobjects.OBJECTS`` writes them, taken apart, and statements that make the
same of an object elsewhere; no server here.
"""

from __future__ import annotations

import re

from agent_branch.schemadiff import SchemaObject
from agent_branch.sqltext import quote_ident, quote_literal

_OWNER = "\nOWNER TO "
# Objects whose definitions end with their owner.
OWNED = {
    "schema": "SCHEMA",
    "type": "TYPE",
    "sequence": "SEQUENCE",
    "table": "TABLE",
    "view": "VIEW",
    "materialized view": "MATERIALIZED VIEW",
    "function": "FUNCTION",
    "procedure": "PROCEDURE",
    "aggregate": "AGGREGATE",
}
_GRANTED = {"table": "TABLE", "sequence": "SEQUENCE", "schema": "SCHEMA", "type": "TYPE"}
_PRIVILEGES = {
    "r": "SELECT",
    "a": "INSERT",
    "w": "UPDATE",
    "d": "DELETE",
    "D": "TRUNCATE",
    "x": "REFERENCES",
    "t": "TRIGGER",
    "U": "USAGE",
    "C": "CREATE",
    "X": "EXECUTE",
}

_ENUM = re.compile(r"CREATE TYPE (.*) AS ENUM \((.*)\)", re.DOTALL)
_LABEL = re.compile(r"E?'(?:[^']|'')*'")
_IN_TABLE = re.compile(r'((?:"(?:[^"]|"")*"|[^".]+)\.(?:"(?:[^"]|"")*"|[^".]+))\.(.+)', re.DOTALL)
_ACL = re.compile(r"((?:\"(?:[^\"]|\"\")*\"|[^=\"])*)=([a-zA-Z*]*)/(.*)", re.DOTALL)


class RefusedError(Exception):
    """Why an object is not carried over."""


def labels(one: SchemaObject) -> list[str]:
    """Of an enum, quoted; empty if it is none."""
    found = _ENUM.fullmatch(without_owner(one.definition)[0]) if one.kind == "type" else None
    return _LABEL.findall(found.group(2)) if found else []


def without_owner(definition: str) -> tuple[str, str | None]:
    """The rest, and the owner if it is named."""
    text, mark, owner = definition.rpartition(_OWNER)
    return (text, owner) if mark else (definition, None)


def owned_by(definition: str) -> str:
    """The column a sequence belongs to, or nothing."""
    return without_owner(definition)[0].partition("\nOWNED BY ")[2]


def owner_statement(one: SchemaObject, owner: str) -> str:
    return f"ALTER {OWNED[one.kind]} {one.name} OWNER TO {owner}"


def table_and_part(name: str) -> tuple[str, str]:
    """A name that is part of a table's, and the table's."""
    found = _IN_TABLE.fullmatch(name)
    if found is None:
        raise RefusedError("its name is not understood")
    return found.group(1), found.group(2)


def grants(one: SchemaObject) -> list[str]:
    """From the text of an ACL: what is granted to others than the owner."""
    kind, _, name = one.name.partition(" ")
    made = []
    if kind == "column":
        raise RefusedError("grants on columns are not carried over")
    on = f"FUNCTION {name}" if kind == "function" else f"{_GRANTED[kind]} {name}"
    if kind == "function":
        made.append(f"REVOKE ALL ON {on} FROM PUBLIC")
    for item in one.definition.split("\n"):
        found = _ACL.fullmatch(item)
        if found is None:
            raise RefusedError("its grants are not understood")
        grantee, privileges, grantor = found.groups()
        if grantee == grantor:
            continue
        for letter, option in re.findall(r"([a-zA-Z])(\*?)", privileges):
            to = _role(grantee) if grantee else "PUBLIC"
            more = " WITH GRANT OPTION" if option else ""
            made.append(f"GRANT {_PRIVILEGES[letter]} ON {on} TO {to}{more}")
    return made


def _role(name: str) -> str:
    """A role as it stands in an ACL, where one of letters, digits and _ has no quotes: "Bob" and
    "PUBLIC" would be others."""
    return name if name.startswith('"') else quote_ident(name)


def comment(one: SchemaObject) -> str:
    kind, _, name = one.name.partition(" ")
    for words in ("materialized view", "statistics object", "table column", "table constraint"):
        if one.name.startswith(f"{words} "):
            kind, name = words, one.name.removeprefix(f"{words} ")
    match kind:
        case "table" | "view" | "materialized view" | "index" | "sequence" | "type" | "schema":
            on = f"{kind.upper()} {name}"
        case "function" | "procedure" | "extension" | "trigger" | "policy" | "rule":
            on = f"{kind.upper()} {name}"  # of the last three "<name> on <table>"
        case "table column":
            on = f"COLUMN {name}"
        case "table constraint":
            on = f"CONSTRAINT {name}"
        case "statistics object":
            on = f"STATISTICS {name}"
        case _:
            raise RefusedError("a comment on it is not carried over")
    return f"COMMENT ON {on} IS {quote_literal(one.definition)}"
