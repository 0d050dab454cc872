"""Tests wait for events: a file, a line of a log, a state in a database, the end of a process."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 600  # seconds, so that a test that hangs comes to an end; nothing is expected to take as long


def wait_until(condition: Callable[[], T], what: str = "") -> T:
    """What `condition` returns, once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain {what}"
        time.sleep(0.05)
    return found
