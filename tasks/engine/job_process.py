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

from tasks.engine import gpus, progress
from tasks.engine.jobs import Computed, Job, JobCrashed, job_to_json, read_answer
from tasks.engine.shutdown import check_wanted
from tasks.machine import COMPUTE_SETTINGS, ROOT

FLOW_RUN = "LORI_FLOW_RUN"  # the id of the flow run that asked for the job, in its environment
POLL_SECONDS = 0.1
DRAIN_SECONDS = 25  # for a last checkpoint; Prefect kills a flow run 30 s after it told it to end
LISTEN_SECONDS = 10  # for the last of its progress to be shown
LAST_LINES = 5  # of its output, in the message about its death


@dataclass(frozen=True)
class Listener:
    """Who is told what a job's process does: `on_line` its output, `on_progress` what `progress.report` was given.

    `check` is called all the time, while the job waits for its GPU and while it runs; what it raises ends the job.
    """

    on_line: Callable[[str], None]
    on_progress: Callable[[Mapping[str, Any]], None]
    check: Callable[[], None]


def run_in_subprocess(job: Job, lock: Sequence[int]) -> Computed:
    """As `run_in_process`, for a study in this process: its output is printed, its progress shown."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def show(point: Mapping[str, Any]) -> None:
        progress.report(**point)

    return run_in_process(job, Listener(on_line=say, on_progress=show, check=check_wanted), lock)


def run_in_process(job: Job, listener: Listener, lock: Sequence[int] = ()) -> Computed:
    """Wait for free GPUs, compute `job` there in a fresh process, and wait for its end.

    The process keeps the open files in `lock` until it is gone, even if this one is killed.

    Raises:
        JobFailed: if the step raised. JobCrashed: if the process died. ValueError: if the GPUs do not exist.
    """
    with (
        gpus.acquire_gpus(job.num_gpus, while_waiting=listener.check) as (ids, descriptors),
        tempfile.TemporaryDirectory(prefix="lori-job-") as scratch,
    ):
        job_path, answer_path = Path(scratch, "job.json"), Path(scratch, "answer.json")
        job_path.write_text(job_to_json(job))
        progress_path = Path(scratch, "progress.jsonl")
        progress_path.touch()
        listener.on_line(f"{job.title} on {', '.join(ids)}")
        lines: deque[str] = deque(maxlen=LAST_LINES)
        own = {progress.PROGRESS_FILE: str(progress_path), "LORI_LAUNCHER": str(os.getpid())}
        with (
            _heard_progress(progress_path, listener),
            _started(
                _command(job, job_path, answer_path), ids, [*descriptors, *lock], listener, lines, own
            ) as process,
        ):
            _wait(process, listener.check)
        if not answer_path.exists():
            raise JobCrashed(f"{job.title}: {cause_of_death(process.returncode)}{_last_words(lines)}")
        return read_answer(answer_path.read_bytes())


def _command(job: Job, *paths: Path) -> list[str]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(job.num_gpus), "-m"]
    # setpriv: if we are killed, the job is told to end. It then writes a checkpoint and holds its GPU until it is gone
    python = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m"]
    return [*python, *(torchrun if job.num_gpus > 1 else []), "tasks.engine.job_main", *map(str, paths)]


@contextmanager
def _started(
    command: Sequence[str],
    ids: Sequence[str],
    descriptors: Sequence[int],
    listener: Listener,
    lines: deque[str],
    own: Mapping[str, str],
) -> Iterator[subprocess.Popen[str]]:
    """The process, its output read by a thread; it and all that it started are gone when this is left."""
    own = {**own, "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        env={**os.environ, **COMPUTE_SETTINGS, **gpus.environment_of(ids), **own},
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for us, and we end the job
    )

    def hear_lines() -> None:
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                lines.append(line.rstrip())
                listener.on_line(line.rstrip())

    thread = threading.Thread(target=hear_lines)
    thread.start()
    try:
        yield process
    finally:
        _end(process)
        thread.join()


@contextmanager
def _heard_progress(path: Path, listener: Listener) -> Iterator[None]:
    """Pass on what is written to `path`, in a thread: whoever listens may be slow."""
    over = threading.Event()

    def hear() -> None:
        with path.open() as file:
            is_last = False
            while not is_last:
                is_last = over.wait(POLL_SECONDS)
                for line in file:
                    listener.on_progress(json.loads(line))

    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LISTEN_SECONDS)


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


def python_path() -> str:
    """What a process that we start has to import this checkout's code, wherever it is started."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def cause_of_death(code: int) -> str:
    """Of a process with that exit code."""
    if code >= 0:
        return f"its process ended with exit code {code}."
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{hint}."


def _last_words(lines: Sequence[str]) -> str:
    return " Its last words:\n" + "\n".join(lines) if lines else ""
