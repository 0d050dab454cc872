"""A Prefect lock manager on flock(2): the kernel drops the lock when its holder dies, so nobody waits for the dead."""

import asyncio
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Self

from prefect.locking.protocol import LockManager

from tasks.engine.executors import check_wanted
from tasks.machine import state_dir

POLL_SECONDS = 0.1


class FlockLocks(LockManager):
    """One lock file a key in `state_dir()/locks`: single flight over the threads and processes of one machine."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}
        self._guard = threading.Lock()

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Prefect copies cache policies; their locks are one

    def _try(self, key: str) -> int | None:
        path: Path = state_dir() / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def acquire_lock(  # `hold_timeout` is Prefect's: here a lock is held as long as its holder lives
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,  # noqa: ARG002
    ) -> bool:
        """Wait for the lock, unless the run is interrupted; False if `acquire_timeout` seconds were not enough."""
        if self.is_lock_holder(key, holder):
            return True
        started = time.monotonic()
        while (descriptor := self._try(key)) is None:
            if acquire_timeout is not None and time.monotonic() - started > acquire_timeout:
                return False
            check_wanted()
            time.sleep(POLL_SECONDS)
        with self._guard:
            self._held[key] = (holder, descriptor)
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
            if self._held.get(key, ("", -1))[0] != holder:
                raise ValueError(f"{holder} does not hold the lock of {key}.")
            os.close(self._held.pop(key)[1])

    def is_locked(self, key: str) -> bool:
        """Whether anyone holds it."""
        descriptor = self._try(key)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds it."""
        return self._held.get(key, ("", -1))[0] == holder

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
