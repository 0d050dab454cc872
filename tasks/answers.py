"""What a process that computes a job answers to the one that asked for it, as JSON."""

import json
import os
import time
from dataclasses import asdict, dataclass

from lori.config import Handle
from tasks.steps import Job, JobFailed, run_step

WATCH_SECONDS = 0.5  # a process looks this often whether its parent is still there


@dataclass(frozen=True)
class Computed:
    """A result and the seconds that it took; those of a flow run of its own count its wait for a GPU, too."""

    handle: Handle
    seconds: float


def compute(job: Job) -> Computed:
    """The result of `job`, here and now.

    Raises:
        JobFailed: if the step raised.
    """
    started = time.perf_counter()
    return Computed(run_step(job), time.perf_counter() - started)


def answer(job: Job) -> bytes:
    """Compute `job`: its result, or what went wrong, for `read_answer`."""
    try:
        return json.dumps(asdict(compute(job))).encode()
    except JobFailed as failure:
        return json.dumps({"error": str(failure), "notes": failure.__notes__}).encode()


def is_error(text: bytes) -> bool:
    """Whether an answer says what went wrong."""
    return "error" in json.loads(text)


def read_answer(text: bytes) -> Computed:
    """What `answer` wrote.

    Raises:
        JobFailed: if the step raised.
    """
    record = json.loads(text)
    if "error" in record:
        failure = JobFailed(record["error"])
        for note in record["notes"]:
            failure.add_note(note)
        raise failure
    return Computed(Handle(**record["handle"]), record["seconds"])


def end_with_parent(parent: int) -> None:
    """End this process as soon as `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
