"""What the kernel keeps for a server that was killed: segments of shared memory.

A server finds what it left when it starts again.  One that never does leaves it for good,
and a machine on which hundreds of servers are killed has no memory for anything else.

The server's System V segment, by which another server on its directory would find it, has
its PGShmemHeader; this names the control segment of dynamic shared memory (dsm.c), which
lists the others.  POSIX segments are files.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

PLACE = Path("/dev/shm")
IPC_RMID = 0
READ_ONLY = 0o10000
HEADER = struct.Struct("=iiQQI")  # magic, creator, size, free from, control segment
CONTROL = struct.Struct("=III4x")  # magic, items, room for items
ITEM = struct.Struct("=II8x8x8x8x")  # handle, references
CONTROL_MAGIC = 0x9A503D32


def remove_segments(shmid: int) -> None:
    """All of the server with this System V segment.  It and its children must have ended."""
    for handle in _listed(_control_of(shmid)):
        _file(handle).unlink(missing_ok=True)
    ctypes.CDLL(None).shmctl(shmid, IPC_RMID, None)


def _file(handle: int) -> Path:
    return PLACE / f"PostgreSQL.{handle}"


def _control_of(shmid: int) -> int:
    """The handle of the control segment; 0: there is none."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    at = libc.shmat(shmid, None, READ_ONLY)
    if at is None or at == ctypes.c_void_p(-1).value:
        return 0
    try:
        handle: int = HEADER.unpack(ctypes.string_at(at, HEADER.size))[-1]
        return handle
    finally:
        libc.shmdt(at)


def _listed(control: int) -> list[int]:
    """The control segment and those that it lists; [] if it is another kind of file, or none."""
    try:
        data = _file(control).read_bytes()
    except OSError:
        return []
    if len(data) < CONTROL.size or CONTROL.unpack_from(data)[0] != CONTROL_MAGIC:
        return []
    count = min(CONTROL.unpack_from(data)[1], (len(data) - CONTROL.size) // ITEM.size)
    used = (ITEM.unpack_from(data, CONTROL.size + i * ITEM.size) for i in range(count))
    return [handle for handle, references in used if references > 0] + [control]
