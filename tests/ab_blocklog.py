"""A disk whose writes are logged, so that any power cut of it can be made afterwards.

The disk is a file that this program, started as a process of its own, offers through the
kernel's FUSE protocol (one regular file mounted over another); a loop device and a file
system are put on it.  Each write and each flush is appended to a log.  A disk may lose or
reorder what was not flushed: ``image_at`` makes a disk from the one at the beginning, all
writes up to the last flush before the cut, and of those after it some sectors of some.

    ab_blocklog.py IMAGE LOG MOUNTPOINT     (root)
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# Of a log: kind, offset, length; what was written follows.
RECORD = struct.Struct("=BQI")
WRITE, FLUSH = 1, 2
SECTOR = 512
PIECE = 4096  # what most disks write whole; a torn one is cut at a sector

# ---- the disk: a file system of one file, over the kernel's protocol -------------------------

IN = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
ATTR_OUT = struct.Struct("=QIIQQQQQQIIIIIIIIII")
READ_IN = struct.Struct("=QQI")
MOST = 1 << 20  # bytes of a write
ASYNC_READ, BIG_WRITES, MAX_PAGES = 1, 1 << 5, 1 << 22
FORGET, INTERRUPT, BATCH_FORGET, DESTROY = 2, 36, 42, 38


class Server:
    def __init__(self, image: Path, log: Path, mountpoint: Path) -> None:
        self.image = os.open(image, os.O_RDWR)
        self.size = os.fstat(self.image).st_size
        self.log = log.open("ab", buffering=0)
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.fuse},rootmode=100000,user_id=0,group_id=0,max_read={MOST}"
        if libc.mount(b"blocklog", bytes(mountpoint), b"fuse", 6, options.encode()) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
        self.answers: dict[int, Callable[[memoryview], bytes]] = {
            3: self.getattr,
            4: self.getattr,
            14: lambda _: struct.pack("=QII", 1, 0, 0),
            15: self.read,
            16: self.write,
            17: lambda _: struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, PIECE, 255, PIECE, 0),
            18: lambda _: b"",
            20: self.sync,
            25: lambda _: b"",
            26: self.init,
            34: lambda _: b"",
        }

    def run(self) -> None:
        while True:
            try:
                request = os.read(self.fuse, MOST + 65536)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            _, code, unique, *_ = IN.unpack_from(request)
            if code in (FORGET, INTERRUPT, BATCH_FORGET):
                continue
            body, problem = b"", errno.ENOSYS
            if code in self.answers:
                try:
                    body, problem = self.answers[code](memoryview(request)[IN.size :]), 0
                except OSError as error:
                    problem = error.errno or errno.EIO
            if code == DESTROY:
                return
            os.write(self.fuse, OUT.pack(OUT.size + len(body), -problem, unique) + body)

    def init(self, body: memoryview) -> bytes:
        ahead = struct.unpack_from("=I", body, 8)[0]
        flags = ASYNC_READ | BIG_WRITES | MAX_PAGES
        return INIT_OUT.pack(7, 31, ahead, flags, 12, 9, MOST, 1, MOST // 4096, 0, 0)

    def getattr(self, _: memoryview) -> bytes:
        mode = stat.S_IFREG | 0o600
        return ATTR_OUT.pack(
            *(3600, 0, 0, 1, self.size, self.size // SECTOR),
            *(0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, PIECE, 0),
        )

    def read(self, body: memoryview) -> bytes:
        _, offset, length = READ_IN.unpack_from(body)
        return os.pread(self.image, length, offset)

    def write(self, body: memoryview) -> bytes:
        _, offset, length = READ_IN.unpack_from(body)
        data = body[40 : 40 + length]
        os.pwrite(self.image, data, offset)
        os.writev(self.log.fileno(), [RECORD.pack(WRITE, offset, length), data])
        return struct.pack("=II", length, 0)

    def sync(self, _: memoryview) -> bytes:
        self.log.write(RECORD.pack(FLUSH, 0, 0))
        return b""


class LoggedDisk:
    """``image`` as a device of its own while the context lasts; what is written is in ``log``."""

    def __init__(self, image: Path, log: Path, mountpoint: Path) -> None:
        mountpoint.touch()
        log.touch()
        self.log = log
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(image), str(log), str(mountpoint)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            assert self.process.stderr is not None
            raise OSError(f"no logged disk: {self.process.stderr.read().strip()[-200:]}")

    def position(self) -> int:
        """How long the log is."""
        return self.log.stat().st_size

    def close(self) -> None:
        subprocess.run(["umount", str(self.mountpoint)], check=True)
        self.process.wait(300)


# ---- power cuts of it ---------------------------------------------------------------------------


def records(log: BinaryIO, upto: int) -> Iterator[tuple[int, int, int, int]]:
    """Kind, offset on the disk, length, position of the data; of those that end by ``upto``."""
    at = 0
    while at + RECORD.size <= upto:
        log.seek(at)
        kind, offset, length = RECORD.unpack(log.read(RECORD.size))
        if at + RECORD.size + length > upto:
            return
        yield kind, offset, length, at + RECORD.size
        at += RECORD.size + length


def image_at(base: Path, log: Path, upto: int, image: Path, rng: random.Random) -> int:
    """Make the disk as a power cut at that position of the log may leave it; returns how many
    pieces were lost.  Two writes of one place are never swapped."""
    subprocess.run(["cp", "--sparse=always", str(base), str(image)], check=True)
    lost = 0
    with log.open("rb") as source, image.open("r+b") as disk:
        known = list(records(source, upto))
        flushed = max((n for n, record in enumerate(known) if record[0] == FLUSH), default=0)
        share = rng.choice((0.0, 0.5, 0.5, 0.5, 0.9))  # of what was not flushed stays
        for number, (kind, offset, length, at) in enumerate(known):
            if kind != WRITE:
                continue
            source.seek(at)
            data = source.read(length)
            if number < flushed:
                disk.seek(offset)
                disk.write(data)
                continue
            for start in range(0, length, PIECE):
                piece = data[start : start + PIECE]
                fate = rng.random()
                if fate >= share:
                    lost += 1
                    continue
                if rng.random() < 0.1:  # torn
                    piece = piece[: rng.randrange(0, len(piece), SECTOR)]
                    lost += 1
                disk.seek(offset + start)
                disk.write(piece)
    return lost


if __name__ == "__main__":
    served = Server(*map(Path, sys.argv[1:4]))
    print("ready", flush=True)
    served.run()
