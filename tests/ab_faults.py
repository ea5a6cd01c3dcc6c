"""Disks that are full and calls that fail, on the files of the tests' choice.

``SmallDisk`` puts a directory of a stopped server on a file system of its own, as small as
wanted, ``FailingDisk`` on one that loses what is not synced (root only).  ``Faults`` is a
library for LD_PRELOAD, made with the C compiler that made the extension, that counts the calls
which write, sync, open or make files under a given directory, in all processes of a server
together, and lets the n-th one fail, or stops the process that is about to make it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from ab_cluster import Cluster, wait_for

# ---- file systems of their own ----------------------------------------------------------------


def call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


def unmount(place: Path) -> None:
    """As soon as nobody has anything open in it."""
    wait_for(lambda: call("umount", str(place)).returncode == 0, what=f"{place} to be unmounted")


def mount_again(place: Path, *mount: str) -> None:
    """Its loop device goes a little after the last mount of it."""
    unmount(place)
    wait_for(lambda: call("mount", *mount, str(place)).returncode == 0, what=f"{place}")


class Disk:
    """A file system over a directory of a server that is not running."""

    def __init__(self, place: Path, *mount: str) -> None:
        """``mount``: options and device of mount(8)."""
        if os.geteuid() != 0:
            pytest.skip("mounting a file system takes root")
        self.place = place
        self.mount = mount
        if not place.exists():
            place.mkdir(mode=0o700)
            Cluster.give(place)
        owner = place.stat()
        kept = place.with_name(place.name + ".kept")
        shutil.copytree(place, kept)
        done = call("mount", *mount, str(place))
        if done.returncode != 0:
            shutil.rmtree(kept)
            pytest.skip(f"cannot mount {mount}: {done.stderr.strip()}")
        for path in place.iterdir():
            path.rmdir()  # lost+found
        shutil.copytree(kept, place, dirs_exist_ok=True)
        shutil.rmtree(kept)
        for path in (place, *place.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        place.chmod(0o700)

    def release(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)


class SmallDisk(Disk):
    """A tmpfs that can be filled."""

    def __init__(self, place: Path, size: int) -> None:
        super().__init__(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
        self.filler = place / "filler"

    def free(self) -> int:
        stat = os.statvfs(self.place)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all but the last bytes."""
        room = self.free() - leave
        with self.filler.open("ab") as file:
            if room > 0:
                os.posix_fallocate(file.fileno(), file.tell(), room)

    def relieve(self) -> None:
        self.filler.unlink(missing_ok=True)


class FailingDisk(Disk):
    """A file system on a loop device whose power can be cut.

    What was neither synced nor written back by itself is lost then, as with a machine whose
    power fails; the device keeps what it was given.
    """

    SIZE = 1 << 30
    SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, of ext4 and XFS
    FLUSH_LOG, DROP_ALL = 1, 2
    OPTIONS: ClassVar[dict[str, list[str]]] = {
        # Without what ext4 does for programs that do not sync their files.
        "ext4": ["-o", "loop,noauto_da_alloc,data=writeback"],
        "xfs": ["-o", "loop"],
    }

    def __init__(self, place: Path, image: Path, kind: str) -> None:
        with image.open("wb") as file:
            file.truncate(self.SIZE)
        made = call(f"mkfs.{kind}", "-q", str(image))
        if made.returncode != 0:
            image.unlink()
            pytest.skip(f"cannot make a file system of kind {kind}: {made.stderr.strip()}")
        self.image = image
        super().__init__(place, "-t", kind, *self.OPTIONS[kind], str(image))
        subprocess.run(["sync", "-f", str(place)], check=True)

    def cut(self, how: int) -> None:
        """From now on every call on it fails.  ``how``: are changes of names and sizes
        (FLUSH_LOG) kept that nobody has synced, without what is in the files?"""
        directory = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, self.SHUTDOWN, struct.pack("=I", how))
        finally:
            os.close(directory)

    def restore(self) -> None:
        """Mount it again; nobody has anything open in it."""
        mount_again(self.place, *self.mount)


@contextmanager
def small_disk(cluster: Cluster, directory: str, size: int) -> Iterator[SmallDisk]:
    """Stops the server, gives it the small directory and starts it again."""
    cluster.stop()
    disk = SmallDisk(cluster.data / directory, size)
    try:
        cluster.start()
        yield disk
    finally:
        cluster.kill()
        disk.release()


# ---- calls that fail ------------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct plan
{
	long		count;			/* calls so far */
	long		fail_at;		/* the one that fails; 0: none */
	long		sticky;			/* and all after it */
	long		error;			/* errno; 0: it stops before the call; -1: dies; -2: half */
	long		fired;			/* how many failed */
	long		pid;			/* of the process that was stopped */
	char		last[64];		/* name of the call that failed first */
	char		needle[256];	/* only paths that contain it */
	char		only[32];		/* only calls whose names begin so */
};

static struct plan *plan;

__attribute__((constructor)) static void
attach(void)
{
	const char *path = getenv("AB_FAULT_PLAN");
	int			fd = path ? (int) syscall(SYS_openat, AT_FDCWD, path, O_RDWR) : -1;

	if (fd < 0)
		return;
	plan = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (plan == MAP_FAILED)
		plan = NULL;
	close(fd);
}

static int
strike(const char *path, const char *call)
{
	long		n;

	if (plan == NULL || plan->needle[0] == 0 || strstr(path, plan->needle) == NULL ||
		strncmp(call, plan->only, strlen(plan->only)) != 0)
		return 0;
	n = __atomic_add_fetch(&plan->count, 1, __ATOMIC_SEQ_CST);
	if (plan->fail_at == 0 || !(n == plan->fail_at || (plan->sticky && n > plan->fail_at)))
		return 0;
	if (__atomic_add_fetch(&plan->fired, 1, __ATOMIC_SEQ_CST) == 1)
		strncpy(plan->last, call, sizeof(plan->last) - 1);
	if (plan->error == 0)
	{
		int			saved = errno;

		plan->pid = getpid();
		raise(SIGSTOP);
		errno = saved;
		return 0;
	}
	if (plan->error == -1)
		kill(getpid(), SIGKILL);
	errno = (int) plan->error;
	return 1;
}

static int
strike_fd(int fd, const char *call)
{
	char		link[64];
	char		path[4096];
	ssize_t		len;
	int			saved = errno;

	if (plan == NULL || plan->needle[0] == 0)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	errno = saved;
	if (len <= 0)
		return 0;
	path[len] = 0;
	return strike(path, call);
}

#define REAL(name) \
	static __typeof__(&name) real; \
	if (real == NULL) \
		real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

#define ON_FD(type, name, params, args) \
type name params \
{ \
	REAL(name); \
	return strike_fd(fd, #name) ? -1 : real args; \
}

/* Reads count only for who asks for them by name. */
#define PREAD(name, offset) \
ssize_t name(int fd, void *b, size_t n, offset o) \
{ \
	REAL(name); \
	if (plan == NULL || strncmp(plan->only, "pread", 5) != 0) \
		return real(fd, b, n, o); \
	return strike_fd(fd, #name) ? -1 : real(fd, b, n, o); \
}

PREAD(pread, off_t)
PREAD(pread64, off64_t)

#define ON_PATH(type, name, params, args) \
type name params \
{ \
	REAL(name); \
	return strike(path, #name) ? -1 : real args; \
}

ON_FD(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
#define PWRITE(name, offset) \
ssize_t name(int fd, const void *b, size_t n, offset o) \
{ \
	REAL(name); \
	if (!strike_fd(fd, #name)) \
		return real(fd, b, n, o); \
	return plan->error == -2 ? real(fd, b, n / 2, o) : -1; \
}

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ON_FD(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o))
ON_FD(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t o), (fd, v, n, o))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t n), (fd, n))
ON_FD(int, ftruncate64, (int fd, off64_t n), (fd, n))
ON_FD(int, fallocate, (int fd, int m, off_t o, off_t n), (fd, m, o, n))
ON_FD(int, fallocate64, (int fd, int m, off64_t o, off64_t n), (fd, m, o, n))
ON_PATH(int, rename, (const char *path, const char *to), (path, to))

int
mkdir(const char *path, mode_t m)
{
	REAL(mkdir);
	/* what is there already is found without the disk */
	return access(path, F_OK) != 0 && strike(path, "mkdir") ? -1 : real(path, m);
}

int
posix_fallocate(int fd, off_t o, off_t n)
{
	REAL(posix_fallocate);
	return strike_fd(fd, "posix_fallocate") ? errno : real(fd, o, n);
}

int
posix_fallocate64(int fd, off64_t o, off64_t n)
{
	REAL(posix_fallocate64);
	return strike_fd(fd, "posix_fallocate64") ? errno : real(fd, o, n);
}

static int
real_open(const char *path, int flags, mode_t mode, int wide)
{
	static int	(*narrow_call) (const char *, int, ...);
	static int	(*wide_call) (const char *, int, ...);

	if (narrow_call == NULL)
		narrow_call = (int (*) (const char *, int, ...)) dlsym(RTLD_NEXT, "open");
	if (wide_call == NULL)
		wide_call = (int (*) (const char *, int, ...)) dlsym(RTLD_NEXT, "open64");
	/* what is read-only can be read */
	if (!(plan != NULL && plan->error == EROFS && (flags & O_ACCMODE) == O_RDONLY) &&
		strike(path, "open"))
		return -1;
	return wide ? wide_call(path, flags, mode) : narrow_call(path, flags, mode);
}

#define OPEN(name, wide) \
int name(const char *path, int flags, ...) \
{ \
	va_list		ap; \
	mode_t		mode = 0; \
	va_start(ap, flags); \
	if (flags & (O_CREAT | O_TMPFILE)) \
		mode = va_arg(ap, mode_t); \
	va_end(ap); \
	return real_open(path, flags, mode, wide); \
}

OPEN(open, 0)
OPEN(open64, 1)
"""

PLAN = struct.Struct("=qqqqqq64s256s32s")

# In place of an error: the process that makes the call is killed, with signal 9.
KILL = -1
# Of a pwrite: the disk is full when half of it is written.
HALF = -2


class Faults:
    """The library, and the plan it follows; ``environment`` makes a server use it."""

    def __init__(self, place: Path) -> None:
        source = place / "faults.c"
        library = place / "faults.so"
        source.write_text(SHIM)
        done = subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"cannot make the library: {done.stderr.strip()}")
        plan = place / "plan"
        plan.write_bytes(bytes(PLAN.size))
        for path, mode in ((place, 0o755), (library, 0o755), (plan, 0o666)):
            path.chmod(mode)
        self.file = plan.open("r+b")
        self.memory = mmap.mmap(self.file.fileno(), PLAN.size)
        self.environment = {"LD_PRELOAD": str(library), "AB_FAULT_PLAN": str(plan)}

    def restart(self, cluster: Cluster, how: str) -> None:
        """Stop the server, or ``kill`` it, and start it with the library."""
        cluster.kill() if how == "kill" else cluster.stop(how)
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.environment.items():
                patch.setenv(key, value)
            cluster.start()

    def arm(
        self, needle: str, at: int, error: int, *, sticky: bool = False, only: str = ""
    ) -> None:
        """From now on count calls on paths with this text; the ``at``-th fails (0: none) with
        this errno, or is its process's last (``KILL``), or writes a part (``HALF``).

        ``sticky``: and all after it.  ``only``: count calls whose names begin with that; reads
        ("pread") are counted only so.
        """
        self.memory[:] = PLAN.pack(0, at, sticky, error, 0, 0, b"", needle.encode(), only.encode())

    def arm_stop(self, needle: str, at: int = 1, *, only: str = "") -> None:
        """The same, but the process stops before the ``at``-th call (see ``stopped``)."""
        self.arm(needle, at, 0, only=only)

    def stopped(self) -> int | None:
        """Pid of the process that was stopped, once it is."""
        pid: int = PLAN.unpack(self.memory[:])[5]
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return pid if stat.rsplit(") ", 1)[1][0] in "tT" else None

    def disarm(self) -> tuple[int, int, str]:
        """Stop counting; (calls, calls that failed, the first of those by name)."""
        count, _, _, _, fired, _, last, _, _ = PLAN.unpack(self.memory[:])
        self.memory[:] = bytes(PLAN.size)
        return count, fired, last.rstrip(b"\0").decode()

    def close(self) -> None:
        self.memory.close()
        self.file.close()


class Holding:
    """Processes that are held up, until they are let go or the test ends."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.pids: list[int] = []

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self.pids):
            self.let_go(pid)

    def wait(self, work: Future[None]) -> int:
        """Wait until a process stops; its pid."""
        pid = wait_for(
            lambda: self.faults.stopped() or (work.done() and -1), what="a process to stop"
        )
        assert pid > 0, f"nobody stopped: {work.exception()}"
        self.faults.disarm()
        self.pids.append(pid)
        return pid

    def let_go(self, pid: int) -> None:
        self.pids.remove(pid)
        os.kill(pid, signal.SIGCONT)
