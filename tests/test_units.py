"""The Python package's pure logic, without a server: names and connection strings."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from agent_branch import names, uri
from agent_branch.errors import ReportedError
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

# What a server can have in an identifier: anything but NUL, in valid UTF-8.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
IDENTIFIERS = st.text(CHARACTERS, min_size=1, max_size=63)
AWKWARD = 'it\'s "me"\n%s%41 ../\\{role}@host:1/?a=b&c#d é\t\x01'


# ---- names --------------------------------------------------------------------


def test_branch_name() -> None:
    assert names.branch_name("123") == "agent_123"
    assert names.branch_name(AWKWARD) == "agent_" + AWKWARD


@pytest.mark.parametrize("agent_id", [None, ""])
def test_an_agent_has_an_id(agent_id: str | None) -> None:
    with pytest.raises(ReportedError) as refused:
        names.branch_name(agent_id)
    assert refused.value.sqlstate == "22023"
    assert refused.value.hint


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀"])
def test_length_counts_bytes(character: str) -> None:
    """57 bytes of id are the most; nothing is ever cut."""
    width = len(character.encode())
    most = character * (57 // width)
    assert names.branch_name(most) == "agent_" + most
    with pytest.raises(ReportedError) as refused:
        names.branch_name(most + character)
    assert refused.value.sqlstate == "42622"
    assert str(6 + len((most + character).encode())) in refused.value.detail


@given(st.text(CHARACTERS, max_size=70))
def test_names_are_told_apart(agent_id: str) -> None:
    """A name gives back its id; there is one or an error, and no other outcome."""
    if 0 < len(agent_id.encode()) <= 57:
        name = names.branch_name(agent_id)
        assert name.removeprefix(names.PREFIX) == agent_id
        assert len(name.encode()) <= names.MAX_NAME_BYTES
        return
    with pytest.raises(ReportedError) as refused:
        names.branch_name(agent_id)
    assert refused.value.sqlstate == ("42622" if agent_id else "22023")


def test_fields_of_an_error() -> None:
    """What PL/Python is handed has no empty fields."""
    assert ReportedError("22023", "m").fields() == {"sqlstate": "22023"}
    assert ReportedError("22023", "m", "d", "h").fields() == {
        "sqlstate": "22023",
        "detail": "d",
        "hint": "h",
    }


# ---- where to connect ------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        (uri.Endpoint("/run/postgresql, /tmp", "*", 5432), "/run/postgresql"),
        (uri.Endpoint('"/run/my dir"', "", 5432), "/run/my dir"),
        (uri.Endpoint(" , @abstract", "", 5432), "@abstract"),
        (uri.Endpoint("", "db.example, 10.0.0.1", 5432), "db.example"),
        (uri.Endpoint("", "*", 5432), "localhost"),
        (uri.Endpoint("", "0.0.0.0", 5432), "localhost"),
        (uri.Endpoint("", "::", 5432), "localhost"),
        (uri.Endpoint("", "", 5432), "localhost"),
        (uri.Endpoint("/tmp", "*", 5432, "10.1.2.3"), "10.1.2.3"),
        (uri.Endpoint("/tmp", "*", 5432, "fe80::1"), "fe80::1"),
    ],
)
def test_host(endpoint: uri.Endpoint, host: str) -> None:
    """A client connects as the caller did: through the network or a socket."""
    assert uri.host_of(endpoint) == host
    known = conninfo_to_dict(uri.default_uri("d", endpoint, "r"))
    assert known["host"] == host


@given(
    IDENTIFIERS,
    st.one_of(st.just(""), IDENTIFIERS),
    st.sampled_from(["", "10.0.0.1", "::1"]),
    st.integers(1, 65535),
)
@example(AWKWARD, AWKWARD, "", 5432)
@example("x?dbname=template1", "postgres:pw@evil.example", "", 5432)
def test_default_uri_says_what_it_was_given(
    database: str, role: str, address: str, port: int
) -> None:
    """libpq reads the very names again, and nothing else out of them."""
    text = uri.default_uri(database, uri.Endpoint("/tmp", "", port, address), role)
    expected = {"dbname": database, "host": address or "/tmp", "port": str(port)}
    assert conninfo_to_dict(text) == expected | ({"user": role} if role else {})


# ---- templates -------------------------------------------------------------------

TEMPLATES = (
    "postgresql://{role}@{host}:6432/{database}?sslmode=require",
    "postgres://{role}@pool.example/{database}",
    "host=pool.example user={role} dbname={database}",
    "host='pool.example' user='{role}' dbname='{database}' port={port}",
)


@given(IDENTIFIERS, IDENTIFIERS, st.sampled_from(TEMPLATES))
@example(AWKWARD, AWKWARD, TEMPLATES[0])
@example(AWKWARD, AWKWARD, TEMPLATES[2])
@example("x' host='evil.example", "\\' host=evil.example", TEMPLATES[3])
def test_templates_hold_names_apart(database: str, role: str, template: str) -> None:
    """In a URI and in a keyword/value string, quoted or not, a name stays one name."""
    endpoint = uri.Endpoint("", "10.0.0.1", 5432)
    known = conninfo_to_dict(uri.connection_string(database, endpoint, template, role))
    assert known["dbname"] == database
    assert known["user"] == role
    assert known["host"] == ("10.0.0.1" if "{host}" in template else "pool.example")


@pytest.mark.parametrize("driver", ["postgresql", "jdbc:postgresql", "postgresql+psycopg"])
@pytest.mark.parametrize("address", ["::1", "10.0.0.1"])
def test_templates_of_other_drivers(driver: str, address: str) -> None:
    """Theirs are URIs as well, and want an address with colons in brackets."""
    template = driver + "://{role}@{host}:{port}/{database}?from={host}"
    endpoint = uri.Endpoint("", "", 5432, address)
    text = uri.connection_string(AWKWARD, endpoint, template, AWKWARD)
    parts = urlsplit(text.removeprefix("jdbc:"))
    assert (parts.hostname, parts.port) == (address, 5432)
    assert unquote(parts.path) == f"/{AWKWARD}"
    assert unquote(parts.username or "") == AWKWARD
    assert parse_qs(parts.query) == {"from": [address]}


def test_unknown_placeholder() -> None:
    with pytest.raises(ReportedError) as refused:
        uri.connection_string("d", uri.Endpoint("", "", 1), "host={hots}", "r")
    assert refused.value.sqlstate == "22023"
    assert "{hots}" in refused.value.message
    assert "{host}" in refused.value.hint


@given(st.text(CHARACTERS, max_size=40))
def test_any_template_is_filled_or_refused(template: str) -> None:
    """Nothing but a ReportedError comes out of a template, whatever it is."""
    endpoint = uri.Endpoint("/tmp", "", 5432)
    placeholders = set(uri.PLACEHOLDER.findall(template)) if template.strip() else set()
    if placeholders <= {"database", "host", "port", "role"}:
        assert uri.connection_string("d", endpoint, template, "r")
        return
    with pytest.raises(ReportedError) as refused:
        uri.connection_string("d", endpoint, template, "r")
    assert refused.value.sqlstate == "22023"


def test_no_password_is_put_in() -> None:
    """A password never goes into a connection string: nothing can name one."""
    with pytest.raises(ReportedError):
        uri.connection_string("d", uri.Endpoint("", "", 1), "password={password}", "r")
