"""A job in a process of its own on GPUs that it holds: started, listened to, and ended when nobody wants it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import progress, slots
from tasks.answers import Computed, read_answer
from tasks.steps import COMPUTE_SETTINGS, Job, JobCrashed, job_to_json

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
DRAIN_SECONDS = 25  # for a last checkpoint; Prefect kills a flow run 30 s after it told it to end
LAST_LINES = 5  # of its output, in the message about its death


@dataclass(frozen=True)
class Listener:
    """Who is told what a job's process does: `on_line` its output, `on_progress` what `progress.report` was given.

    `check` is called all the time, while the job waits for its GPU and while it runs; what it raises ends the job.
    """

    on_line: Callable[[str], None]
    on_progress: Callable[[Mapping[str, Any]], None]
    check: Callable[[], None]


def run_in_process(job: Job, listener: Listener) -> Computed:
    """Wait for free GPUs, compute `job` there in a fresh process, and wait for its end.

    Raises:
        JobFailed: if the step raised. JobCrashed: if the process died. ValueError: if the GPUs do not exist.
    """
    with (
        slots.held(job.num_gpus, while_waiting=listener.check) as (ids, descriptors),
        tempfile.TemporaryDirectory(prefix="lori-job-") as scratch,
    ):
        job_path, answer_path = Path(scratch, "job.json"), Path(scratch, "answer.json")
        job_path.write_text(job_to_json(job))
        listener.on_line(f"{job.title} on {', '.join(ids)}")
        lines: deque[str] = deque(maxlen=LAST_LINES)
        with _started(_command(job, job_path, answer_path), ids, descriptors, listener, lines) as process:
            _wait(process, listener.check)
        if not answer_path.exists():
            raise JobCrashed(f"{job.title}: {_cause_of_death(process.returncode)}{_last_words(lines)}")
        return read_answer(answer_path.read_bytes())


def _command(job: Job, *paths: Path) -> list[str]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(job.num_gpus), "-m"]
    # setpriv: if we are killed, the job is told to end. It then writes a checkpoint and holds its GPU until it is gone
    python = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m"]
    return [*python, *(torchrun if job.num_gpus > 1 else []), "tasks.job", *map(str, paths)]


@contextmanager
def _started(
    command: Sequence[str], ids: Sequence[str], descriptors: Sequence[int], listener: Listener, lines: deque[str]
) -> Iterator[subprocess.Popen[str]]:
    """The process, its two pipes read by threads; it and all that it started are gone when this is left."""
    reading, writing = os.pipe()
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": python_path, progress.PROGRESS_FD: str(writing), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        env={**os.environ, **COMPUTE_SETTINGS, **slots.environment_of(ids), **own},
        pass_fds=[writing, *descriptors],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for us, and we end the job
    )
    os.close(writing)

    def hear_lines() -> None:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip())
            listener.on_line(line.rstrip())

    def hear_progress() -> None:
        with os.fdopen(reading) as pipe:
            for line in pipe:
                listener.on_progress(json.loads(line))

    threads = [threading.Thread(target=hear) for hear in (hear_lines, hear_progress)]
    for thread in threads:
        thread.start()
    try:
        yield process
    finally:
        _end(process)
        for thread in threads:
            thread.join()


def _wait(process: subprocess.Popen[str], check: Callable[[], None]) -> None:
    while True:
        try:
            process.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            check()


def _end(process: subprocess.Popen[str]) -> None:
    """Let it write a checkpoint, then end it and whatever it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(DRAIN_SECONDS)
    with suppress(ProcessLookupError):  # it is gone with all of its group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}."
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{hint}."


def _last_words(lines: Sequence[str]) -> str:
    return " Its last words:\n" + "\n".join(lines) if lines else ""
