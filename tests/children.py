"""Child processes that end badly: killed, out of disk, or refused by the kernel.

A child is forked, so that it starts in a millisecond, and never returns into pytest.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from common.errors import ConfedError

FSYNC, FTRUNCATE, FLOCK = 74, 77, 73
"""System calls of x86-64."""
KILLED = -signal.SIGKILL


def fork(body: Callable[[], object]) -> int:
    """Run `body` in a child; the answer is its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(body: Callable[[], Any]) -> dict[str, Any]:
    """Run `body` in a child: `value` that it returned, or `error`, `text` and `exit_code`."""
    reading, writing = os.pipe()

    def told() -> None:
        try:
            said = {"value": body()}
        except ConfedError as error:
            kind = type(error).__name__
            said = {"error": kind, "text": str(error), "exit_code": error.exit_code}
        os.write(writing, json.dumps(said).encode())

    child = fork(told)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert ended(child) == 0
    return dict(json.loads(data))


def kill_me() -> NoReturn:
    """End this process as `kill -9` does: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


def largest_file(size: int) -> None:
    """From here on no file of this process grows beyond `size` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def deny(call: int, error: int = errno.EIO) -> None:
    """From here on the kernel refuses a system call to this process (seccomp, for good)."""
    filters = [
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, call),  # the one that is meant?
        (0x06, 0, 0, 0x00050000 | error),  # then answer with the error
        (0x06, 0, 0, 0x7FFF0000),  # else allow it
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
    described = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, ctypes.create_string_buffer(described), 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp")


def _can_deny() -> bool:
    if platform.machine() != "x86_64":
        return False
    child = fork(lambda: deny(FLOCK))
    return ended(child) == 0


needs_seccomp = pytest.mark.skipif(not _can_deny(), reason="the kernel lets no filter be set")
