"""The one lock of a key on this machine, on flock(2): the kernel drops it when its last holder dies.

Who computes a key holds its lock: the study's process, by Prefect's protocol for lock managers, and whatever process
it has the key computed in, which inherits the open file. If the study is killed, nobody starts the key again before
that process is gone.
"""

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from prefect.locking.protocol import LockManager

from tasks.engine.shutdown import check_wanted
from tasks.machine import state_dir

POLL_SECONDS = 0.1
GENERATION = "-g"  # between a key and the number of its record in Prefect's results


def record_name(key: str, generation: int) -> str:
    """What Prefect calls the record of a key: another one each time that its artifact is gone and made again."""
    return f"{key}{GENERATION}{generation}" if generation else key


def key_of(record: str) -> str:
    """The key of the record that `record_name` named."""
    key, separator, number = record.rpartition(GENERATION)
    return key if separator and number.isdecimal() else record


class FlockLocks(LockManager):
    """A lock file a key in `state_dir()/locks`; what Prefect calls a key is the name of a record."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}
        self._guard = threading.Lock()

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Prefect copies cache policies; their locks are one

    def _try(self, key: str) -> int | None:
        path = state_dir() / "locks" / f"{key_of(key)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def descriptors(self, key: str) -> list[int]:
        """The open file that holds the lock of `key`, for a process that computes it; none where nobody locked it."""
        return [self._held[key][1]] if key in self._held else []

    @contextmanager
    def held(self, key: str, holder: str) -> Iterator[None]:
        """Hold the lock of `key`; it waits for it as `acquire_lock` does."""
        self.acquire_lock(key, holder)
        try:
            yield
        finally:
            self.release_lock(key, holder)

    def acquire_lock(  # `hold_timeout` is Prefect's: here a lock is held as long as its holder lives
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,  # noqa: ARG002
    ) -> bool:
        """Wait for the lock, unless the study is interrupted; False if `acquire_timeout` seconds were not enough."""
        if self.is_lock_holder(key, holder):
            return True
        started = time.monotonic()
        while (descriptor := self._try(key)) is None:
            if acquire_timeout is not None and time.monotonic() - started > acquire_timeout:
                return False
            check_wanted()
            time.sleep(POLL_SECONDS)
        with self._guard:
            self._held[key_of(key)] = (holder, descriptor)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """As `acquire_lock`."""
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        """Let go of a lock.

        Raises:
            ValueError: if `holder` does not hold it.
        """
        with self._guard:
            if not self.is_lock_holder(key, holder):
                raise ValueError(f"{holder} does not hold the lock of {key}.")
            os.close(self._held.pop(key_of(key))[1])

    def is_locked(self, key: str) -> bool:
        """Whether anyone holds it."""
        descriptor = self._try(key)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds it."""
        return self._held.get(key_of(key), ("", -1))[0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds it; False if `timeout` seconds were not enough."""
        started = time.monotonic()
        while self.is_locked(key):
            if timeout is not None and time.monotonic() - started > timeout:
                return False
            time.sleep(POLL_SECONDS)
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """As `wait_for_lock`."""
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)


LOCKS = FlockLocks()  # this process's
