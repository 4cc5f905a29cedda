"""Ctrl-C: the first one ends the command within seconds, whatever its threads are doing.

Threads of a pool cannot be stopped from outside, and the interpreter waits for them. So the first
interrupt unwinds the main thread as usual, and a watchman ends the process when that takes too
long. What is on disk stays whole: every file is written beside its place and then moved there.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 4.0
"""Seconds for the command to end by itself."""
CLEANING = 3.0
"""Seconds after that for exit functions, which remove temporary folders."""
STATUS = 130
"""Exit status of an interrupted command: 128 + SIGINT."""
_NUDGE = 0.2
"""Seconds until a main thread that sleeps through the signal is sent it in person."""


@contextmanager
def interruptible(last_word: Callable[[], None]) -> Iterator[threading.Event]:
    """Take SIGINT over while the command runs; does nothing where somebody else has it.

    Args:
        last_word: says that the command was interrupted; may be called from another thread.

    Yields:
        An event that is set at the first interrupt.
    """
    interrupted = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    ear, mouth = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(mouth, False)
    signal.signal(signal.SIGINT, handler)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ear, interrupted, last_word), daemon=True).start()
    try:
        yield interrupted
    finally:
        if not interrupted.is_set():
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(mouth)


def _watch(ear: int, interrupted: threading.Event, last_word: Callable[[], None]) -> None:
    """Hear signals in whatever thread they arrive, and see to it that SIGINT ends the process."""
    while heard := os.read(ear, 1):
        if heard[0] == signal.SIGINT:
            break
    else:
        os.close(ear)
        return
    if not interrupted.wait(_NUDGE):
        # Polars sets SA_RESTART, and a main thread that waits for a lock then sleeps on.
        signal.siginterrupt(signal.SIGINT, True)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    threading.Event().wait(GRACE)
    last_word()
    cleaning = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    cleaning.start()
    cleaning.join(CLEANING)
    os._exit(STATUS)
