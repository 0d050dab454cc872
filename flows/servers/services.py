"""Server processes that live and die with this one: free ports, logs, health, and nothing left behind."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOCALHOST = "127.0.0.1"
START_SECONDS = 180
STOP_SECONDS = 15
LOG_LINES = 15
MARK = "LORI_STACK"  # in the environment of everything that a stack starts, and of what that starts


class StackError(RuntimeError):
    """Something outside this program is in the way; the message says what to do."""


@dataclass(frozen=True)
class Service:
    """A process in a session of its own, and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def choose_port(variable: str = "", preferred: Sequence[int] = ()) -> int:
    """The port in the environment variable, else the first of `preferred` that is free, else any that is; 0 is any.

    Raises:
        StackError: if the variable's port is taken, or no port.
    """
    if asked := os.environ.get(variable):
        try:
            return _free_port(int(asked))
        except (OSError, ValueError, OverflowError) as error:
            raise StackError(f"{variable}={asked} cannot be used ({error}): free it or unset {variable}.") from error
    for port in preferred:
        with suppress(OSError):
            return _free_port(port)
    return _free_port(0)


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOCALHOST, port))
        return probe.getsockname()[1]


def start(
    name: str,
    command: Sequence[str],
    *,
    log_dir: Path,
    cwd: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> Service:
    """Start `command`, its output in `log_dir/<name>.log`, with the open files `pass_fds`."""
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            # A parent that ignores SIGINT (a job in the background of a script) would have its children ignore it,
            # and Prefect's worker turns SIGTERM into SIGINT
            ["env", "--default-signal=INT", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    return Service(name, process, log)


def wait_until_healthy(service: Service, url: str) -> None:
    """Wait until `url` answers.

    Raises:
        StackError: if the process ends, or START_SECONDS pass.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        check_alive([service])
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise StackError(f"{service.name} did not answer at {url} within {START_SECONDS} s.{_log_end(service)}")


def check_alive(services: Sequence[Service]) -> None:
    """Raises:
    StackError: if one of `services` has ended.
    """
    for service in services:
        if (code := service.process.poll()) is not None:
            raise StackError(f"{service.name} ended with exit code {code}.{_log_end(service)}")


def _log_end(service: Service) -> str:
    lines = service.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([f" The end of {service.log}:", *lines])


def stop(service: Service, *, seconds: float = STOP_SECONDS) -> None:
    """End a service and its process group: politely, and after `seconds` not."""
    _signal_group(service, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        service.process.wait(seconds)
    _signal_group(service, signal.SIGKILL)
    service.process.wait()


def sweep(mark: str) -> None:
    """Kill whatever still runs with `mark` as its LORI_STACK, whoever its parent is.

    A flow run has a session of its own, so that it outlives a worker that was killed; everything outlives a stack
    that was.
    """
    left = [process for process in psutil.process_iter() if _mark_of(process) == mark]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None  # somebody else's, or gone


def _signal_group(service: Service, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it is gone with all of its group
        os.killpg(service.process.pid, number)
