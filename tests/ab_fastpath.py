"""Calling functions without a statement: the function call messages of the protocol.

libpq has PQfn for it, psycopg has nothing; so they are sent beside it, over its socket, while
it waits for nothing.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import psycopg


def call(conn: psycopg.Connection[Any], function: int, *arguments: str) -> str | None:
    """The result as text, or the error's SQLSTATE after ``!``; arguments are text, too."""
    body = struct.pack("!IHH", function, 0, len(arguments))
    for argument in arguments:
        value = argument.encode()
        body += struct.pack("!i", len(value)) + value
    body += struct.pack("!H", 0)
    found = None
    with socket.socket(fileno=os.dup(conn.fileno())) as wire:
        wire.settimeout(120)
        wire.sendall(b"F" + struct.pack("!i", len(body) + 4) + body)
        while True:
            kind, content = message(wire)
            if kind == b"V" and content[:4] != b"\xff" * 4:
                found = content[4:].decode()
            elif kind == b"E":
                fields = content.split(b"\0")
                found = "!" + next(f[1:].decode() for f in fields if f[:1] == b"C")
            elif kind == b"Z":
                return found


def message(wire: socket.socket) -> tuple[bytes, bytes]:
    def read(n: int) -> bytes:
        got = b""
        while len(got) < n:
            part = wire.recv(n - len(got))
            assert part, "the server has closed the connection"
            got += part
        return got

    kind = read(1)
    return kind, read(struct.unpack("!i", read(4))[0] - 4)
