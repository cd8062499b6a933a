"""Where forwards leave what they saw, until somebody takes it in."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from dynprune.control.seen import Seen
from dynprune.control.worker import Worker

# Behind so many waiting reports another one only counts: many threads can serve faster than one learns, and
# what is learned late is learned of traffic that has gone.
_LONGEST = 64


class Inbox:
    """Reports are taken in one at a time, in their order, by whichever thread holds the lock.

    Args:
        take: what takes one in, under the lock.
        lock: of everything that it changes.
        background: whether a thread of its own takes them in.
        on_gpu: whether what forwards measure may be on a GPU.
    """

    def __init__(
        self, take: Callable[[Seen], None], lock: threading.RLock, *, background: bool, on_gpu: bool
    ) -> None:
        self._take = take
        self._lock = lock
        self._on_gpu = on_gpu
        self.waiting: collections.deque[Seen] = collections.deque()
        self._worker = Worker(self._empty) if background else None

    def put(self, seen: Seen) -> None:
        """Add a report, and take in what has arrived unless another thread is at it: this never waits.

        In the background, what an earlier report failed with is raised here.
        """
        if len(self.waiting) >= _LONGEST:
            seen.forget()
        elif self._on_gpu:  # looking for what would have to be sent takes a tiny model's time
            seen.send()
        if self._worker is not None:
            self.waiting.append(seen)
            self._worker.wake()
            return
        if self._on_gpu or self.waiting or not self._lock.acquire(blocking=False):
            self.waiting.append(seen)
        else:  # nobody is at it, and nothing has to arrive
            try:
                self._take(seen)
            finally:
                self._lock.release()
        self._empty()

    def drain(self) -> None:
        """Wait until everything that was reported is taken in."""
        if self._worker is not None:
            self._worker.join()
        self._empty(wait=True)

    def _empty(self, *, wait: bool = False) -> None:
        # A report that arrives while the lock is held is taken by its holder, or by the next forward; so is
        # one whose measurements are on their way from a GPU.
        while self._can_take(wait) and self._lock.acquire(blocking=wait):
            try:
                while self._can_take(wait):
                    seen = self.waiting.popleft()
                    seen.receive()
                    self._take(seen)
            finally:
                self._lock.release()

    def _can_take(self, wait: bool) -> bool:
        """Whether there is a report, and it is on the host or worth waiting for."""
        try:
            return self.waiting[0].here or wait
        except IndexError:
            return False
