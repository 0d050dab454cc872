"""Tests wait for events: a file, a line of a log, a state in a database, the end of a process."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 600  # seconds, so that a test that hangs comes to an end; nothing is expected to take as long


def wait_until(condition: Callable[[], T], what: str = "") -> T:
    """What `condition` returns, once it is true. Looking takes a tenth of the time: others need the processor."""
    began = time.monotonic()
    while True:
        looked = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < began + PATIENCE, f"waited {PATIENCE} s in vain {what}"
        time.sleep(min(max(9 * (now - looked), 0.01), 1))
