"""One statement in each of many sessions, all sent at one moment, by one thread: the
clients' own work must not be what the sessions wait for."""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import pq


def at_once(sessions: Sequence[psycopg.Connection[Any]], statements: Sequence[str]) -> list[float]:
    """Send statement n in session n; milliseconds from the first's sending to each answer."""
    waits = []
    with selectors.DefaultSelector() as selector:
        for session in sessions:
            selector.register(session.pgconn.socket, selectors.EVENT_READ, session.pgconn)
        began = time.perf_counter()
        for session, statement in zip(sessions, statements, strict=True):
            session.pgconn.send_query(statement.encode())
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.data
                connection.consume_input()
                if connection.is_busy():
                    continue
                waits.append((time.perf_counter() - began) * 1000)
                selector.unregister(key.fd)
                result = connection.get_result()
                if result.status != pq.ExecStatus.COMMAND_OK:
                    raise RuntimeError(result.error_message.decode())
    for session in sessions:
        while session.pgconn.get_result() is not None:
            pass
    return waits
