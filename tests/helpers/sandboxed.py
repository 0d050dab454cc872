"""Programs for the sandbox among right ones, and the processes that run them."""

import contextlib
from pathlib import Path

from lori.evaluation.humaneval_sandbox import Limits, Verdict, run_python

SHORT = Limits(cpu_seconds=1, wall_seconds=20)
PASSED = Verdict(True, "passed")
RIGHT = "def add(a, b):\n    return a + b\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n\ncheck(add)"


def reasons(*programs: str, limits: Limits = SHORT) -> list[str]:
    """Why each program failed; right ones before, between and after them pass."""
    mixed = [RIGHT, *(text for number, program in enumerate(programs) for text in (program, f"{RIGHT}\n{number}"))]
    verdicts = run_python(mixed, limits)
    assert verdicts[::2] == [PASSED] * (len(programs) + 1)
    assert not any(verdict.passed for verdict in verdicts[1::2])
    return [verdict.reason for verdict in verdicts[1::2]]


def processes(mark: int) -> dict[Path, str]:
    """The sandboxes' processes, and what they run. Their mark is their processor seconds."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if f"_inside({mark})" in (words := path.read_text()):
                found[path.parent] = words.partition("\0")[0]
    return found
