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


@contextmanager
def interruptible(last_word: Callable[[], None]) -> Iterator[threading.Event]:
    """Take SIGINT over while the command runs.

    Args:
        last_word: says that the command was interrupted; called by the watchman alone.

    Yields:
        An event that is set at the first interrupt.
    """
    interrupted = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            os._exit(STATUS)  # asked for twice: at once
        interrupted.set()
        threading.Thread(target=_watch, args=(last_word,), daemon=True).start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    try:
        yield interrupted
    finally:
        if not interrupted.is_set():
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _watch(last_word: Callable[[], None]) -> None:
    """Wait, clean up what registered for it, and end the process."""
    threading.Event().wait(GRACE)
    last_word()
    cleaning = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    cleaning.start()
    cleaning.join(CLEANING)
    os._exit(STATUS)
