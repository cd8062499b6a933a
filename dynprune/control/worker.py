"""A thread for what no request should wait for."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Callable


class Worker:
    """Runs one method of an object again and again on a thread of its own, when there is something to do.

    Args:
        work: a bound method, to which no reference is kept; called once or more after each :meth:`wake`.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = weakref.WeakMethod(work)
        self._lock = threading.Lock()
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._running: concurrent.futures.Future[None] | None = None

    def wake(self) -> None:
        """Have the work done soon; raises what it raised the last time."""
        with self._lock:
            if self._running is not None:
                if not self._running.done():
                    return
                failed, self._running = self._running, None
                failed.result()
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(1, "dynprune")
            self._running = self._executor.submit(_call, self._work)

    def join(self) -> None:
        """Wait for work under way; raises what it raised."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.result()


def _call(work: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = work()
    if method is not None:
        method()
