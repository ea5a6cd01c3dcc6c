"""Turn events of branches into calls of a Python function, each exactly once.

    python3 listener.py --call mymodule:on_event "host=db1 dbname=postgres user=platform"

connects to the control database and calls ``on_event(event, conn)`` for each event of
``branch.events`` that this role may see, in order of ``event.id``.  Without ``--call`` the
events are printed, one JSON object in a line.  ``mymodule`` may be in the current directory.

The role needs a table ``listener_state`` in schema ``--schema`` (``public``) that it may read
and write, or the right to create it there: ``GRANT CREATE ON SCHEMA public TO platform``.

How each is processed once, whatever dies in between:

* A notification on channel ``agent_branch`` only wakes this program; what it works on is the
  table.  It misses nothing while it is not connected.
* ``branch.events_after(id)`` returns events only when no event with a lower id can come any
  more.  Ids are not handed out in the order of commits, so ``WHERE id > last`` would skip some.
* The id of the last event stands in a table, ``listener_state``, one row for each listener's
  name, and is changed in the transaction in which the function is called.  What the function
  does through ``conn`` is committed with it, or neither is.
* Who works locks that row: of two programs with one name the second waits for the first.

What the function does elsewhere (a mail, a request) cannot be rolled back: it may happen
twice, namely when this program or the server dies after it and before the commit.  Hand
``event.id`` over as idempotency key there.

If the function raises, nothing of its transaction stays, and the event is tried again after
a while.  SIGTERM and SIGINT end the program after the event that is being processed.

Needs psycopg 3.1 or later.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import class_row

CHANNEL = "agent_branch"
BATCH = 100
POLL_SECONDS = 60.0  # should a notification get lost
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds before trying again, doubled each time

log = logging.getLogger("listener")


@dataclass(frozen=True)
class Event:
    """A row of ``branch.events``; names are those of then."""

    id: int
    at: datetime
    event: str  # created, deleted, reset, ...
    branch: str
    branch_id: int  # OID of the database
    parent: str | None
    by: str
    detail: dict[str, Any]


class NotReadyError(Exception):
    """Somebody has to do something first; says what."""


Connection: TypeAlias = psycopg.Connection[Any]
Handler: TypeAlias = Callable[[Event, Connection], None]


def print_event(event: Event, conn: Connection) -> None:
    """The function that is called when no other is named."""
    print(json.dumps(asdict(event), default=str), flush=True)


class Listener:
    """Calls ``handler`` for each event until ``stop()``.

    ``conninfo`` leads to the control database, ``name`` tells listeners apart that each get
    all events, ``schema`` is where ``listener_state`` is or is to be made.
    """

    def __init__(self, conninfo: str, name: str, handler: Handler, schema: str = "public") -> None:
        self.conninfo = conninfo
        self.name = name
        self.handler = handler
        self.table = psycopg.sql.Identifier(schema, "listener_state")
        self.stopped = False
        self.notified = False
        # stop() may be called by a signal handler or another thread while run() waits.
        self._wakes, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def stop(self) -> None:
        """Have ``run`` return after the event that is being processed."""
        self.stopped = True
        self._waker.send(b"x")

    def run(self) -> None:
        """Process events until ``stop()``; connects again whenever the server is back."""
        pause = FIRST_PAUSE
        while not self.stopped:
            try:
                with psycopg.connect(self.conninfo, autocommit=True) as conn:
                    self._prepare(conn)
                    while not self.stopped:
                        self.notified = False
                        if not self.process(conn) and not self.notified:
                            self._wait(conn, POLL_SECONDS)
                        pause = FIRST_PAUSE
            except psycopg.OperationalError as error:
                log.warning("not connected: %s", error)
            except NotReadyError as error:
                log.error("%s", error)
            except Exception:
                log.exception("trying again")
            self._wait(None, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def process(self, conn: Connection) -> int:
        """Process what there is, up to a batch; how many events that was."""
        with conn.transaction():
            last = self._lock_state(conn)
            with conn.cursor(row_factory=class_row(Event)) as cursor:
                query = "SELECT * FROM branch.events_after(%s::bigint, %s::int)"
                events = cursor.execute(query, (last, BATCH)).fetchall()
            done = 0
            for event in events:
                if self.stopped:
                    break
                # A failed one does not take back those before it.
                try:
                    with conn.transaction():
                        self.handler(event, conn)
                except psycopg.OperationalError:
                    raise
                except Exception:
                    if done == 0:
                        raise
                    log.exception("event %d: trying again", event.id)
                    break
                last = event.id
                done += 1
            self._set_state(conn, last)
        return done

    def _prepare(self, conn: Connection) -> None:
        found = conn.execute(
            "SELECT to_regprocedure('branch.events_after(bigint, int)') IS NOT NULL,"
            " to_regclass(%s) IS NOT NULL",
            (self.table.as_string(conn),),
        ).fetchone()
        if found is None or not found[0]:
            raise NotReadyError(
                f'database "{conn.info.dbname}" has no extension agent_branch:'
                " connect to the control database"
            )
        if not found[1]:
            self._create_table(conn)
        conn.execute(
            psycopg.sql.SQL("INSERT INTO {} VALUES (%s, 0) ON CONFLICT DO NOTHING").format(
                self.table
            ),
            (self.name,),
        )
        # First listen, then read: what comes in between is not missed.  Those that come
        # together with the answer to a query are the handler's, the others _drain()'s.
        conn.add_notify_handler(self._note)
        conn.execute(f"LISTEN {CHANNEL}")

    def _create_table(self, conn: Connection) -> None:
        create = psycopg.sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (name text PRIMARY KEY, last_id bigint NOT NULL)"
        )
        try:
            conn.execute(create.format(self.table))
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName) as error:
            raise NotReadyError(
                f"{error.diag.message_primary}: create table {self.table.as_string(conn)}"
                " (name text PRIMARY KEY, last_id bigint NOT NULL) for this role"
            ) from error

    def _note(self, notification: psycopg.Notify) -> None:
        self.notified = True

    def _lock_state(self, conn: Connection) -> int:
        query = psycopg.sql.SQL("SELECT last_id FROM {} WHERE name = %s FOR UPDATE")
        row = conn.execute(query.format(self.table), (self.name,)).fetchone()
        if row is None:
            raise RuntimeError(f'the state of listener "{self.name}" is gone')
        return int(row[0])

    def _set_state(self, conn: Connection, last: int) -> None:
        query = psycopg.sql.SQL("UPDATE {} SET last_id = %s WHERE name = %s AND last_id < %s")
        conn.execute(query.format(self.table), (last, self.name, last))

    def _wait(self, conn: Connection | None, seconds: float) -> None:
        """Until a notification comes, ``stop()`` is called, or the time is over."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakes, selectors.EVENT_READ)
            if conn is not None:
                if self._drain(conn):
                    return
                selector.register(conn.fileno(), selectors.EVENT_READ)
            if not self.stopped:
                selector.select(seconds)
        if conn is not None:
            self._drain(conn)

    @staticmethod
    def _drain(conn: Connection) -> bool:
        """Take in what the server has sent; was a notification among it?"""
        conn.pgconn.consume_input()  # OperationalError when the connection is gone
        found = False
        while conn.pgconn.notifies() is not None:
            found = True
        return found


def find_function(text: str) -> Handler:
    """``module:function``; ValueError, ImportError or AttributeError if there is none."""
    module, separator, function = text.partition(":")
    if not separator:
        raise ValueError(f'"{text}" is not of the form module:function')
    found: Handler = getattr(importlib.import_module(module), function)
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Call a function for each event of branches.")
    parser.add_argument("conninfo", nargs="?", default="", help="of the control database")
    parser.add_argument("--call", metavar="MODULE:FUNCTION", help="default: print the events")
    parser.add_argument("--name", default="listener", help="whose state to go on from")
    parser.add_argument("--schema", default="public", help="where the table of states is")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.path.insert(0, str(Path.cwd()))
    try:
        handler = find_function(options.call) if options.call else print_event
    except (ValueError, ImportError, AttributeError) as error:
        parser.error(f"--call: {error}")
    listener = Listener(options.conninfo, options.name, handler, options.schema)

    def end(number: int, frame: FrameType | None) -> None:
        listener.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    listener.run()


if __name__ == "__main__":
    main(sys.argv[1:])
