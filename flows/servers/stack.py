"""The whole paper on one machine: an MLflow server, a Prefect server and workers, started and stopped together.

`python -m flows.servers.stack paper` runs the deployment `lori/full-paper`. In a terminal it then keeps the servers
until Ctrl-C, so that its links can be opened; elsewhere, or with `--exit`, it stops them.
`python -m flows.servers.stack serve` keeps everything running until Ctrl-C, and `paper` then uses that.
All state is in `.lori/` (`LORI_DIR`). `LORI_EXECUTOR` is `pool` if it is not set; with `deployment` there is also a
worker for the jobs.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from flows.servers.bootstrap import DRIVER_POOL, GPU_POOL
from flows.servers.services import (
    LOCALHOST,
    MARK,
    Service,
    StackError,
    check_alive,
    choose_port,
    start,
    stop,
    sweep,
    wait_until_healthy,
)
from tasks import tracking
from tasks.engine import gpus
from tasks.engine.executors import check_executor
from tasks.machine import ROOT, local_runtime, state_dir, try_lock
from tasks.results import Runtime

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
MIN_FREE_GB = 2
USUAL_PORTS = (4200, 5000)  # Prefect's and MLflow's own
HEARTBEAT_SECONDS = 30  # the least that Prefect takes
LOG_PREFIX = re.compile(r"^▪ +[\d:.]+ +\S{12} ")
NOISE = re.compile(
    r"● |└── (Parameters|Job Variables|Scheduled)|Finished in state (Completed|Cached)\(|Worker '.*' submitting"
    r"|Flow run '.*' submitted|(Running|Executing|Deployment|All) .*deployment .*steps?|Deployment step"
)
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_CLIENT_MAX_RETRIES": "7",  # waits of 2, 4, … 128 s: the server may be away for some minutes
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "lori,tasks",
    "PREFECT_LOGGING_LOG_PRINTS": "true",  # the lines that a flow prints are its progress
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",  # without these two `--watch` shows no line that a flow prints
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}


@dataclass(frozen=True)
class Addresses:
    """Where a stack answers."""

    prefect: str
    mlflow: str


def environment(addresses: Addresses) -> dict[str, str]:
    """What the services and everything that talks to them run with; nothing of the user's own Prefect is touched."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    bin_dir = str(Path(sys.executable).parent)
    return {
        **inherited,
        **SETTINGS,
        "PATH": os.pathsep.join([bin_dir, os.environ["PATH"]]),
        MARK: str(state_dir()),
        "LORI_DIR": str(state_dir()),
        "LORI_HOME": str(ROOT),
        "MLFLOW_TRACKING_URI": addresses.mlflow,
        "PREFECT_API_URL": f"{addresses.prefect}/api",
        "PREFECT_HOME": str(state_dir() / "prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(state_dir() / "results"),
    }


@contextmanager
def the_only_one() -> Iterator[IO[str]]:
    """Hold `.lori/stack.json` as long as this stack runs; the kernel lets go of it when the process ends.

    Raises:
        StackError: if another stack holds it.
    """
    with _open_state() as file:
        if not try_lock(file):
            raise StackError(f"Another `paper` or `serve` is running with {state_dir()}: wait for it, or stop it.")
        file.truncate(0)
        yield file


def running_stack() -> Addresses | None:
    """Where a `serve` with this state directory answers, None if there is none."""
    with _open_state() as file:
        text = file.read()
        return Addresses(**json.loads(text)) if not try_lock(file) and text else None


def _open_state() -> IO[str]:
    state_dir().mkdir(parents=True, exist_ok=True)
    file = (state_dir() / "stack.json").open("a+")
    file.seek(0)
    return file


@contextmanager
def started() -> Iterator[tuple[Addresses, list[Service]]]:
    """Both servers and the workers, with the deployments of prefect.yaml; all ended again, however this is left.

    Raises:
        StackError: if there is no room on the disk, a port is taken, or a service does not start.
        ValueError: if `LORI_EXECUTOR`, `LORI_WORKERS` or `LORI_GPUS` can't be used.
    """
    executor = check_executor()
    _check_disk()
    ports = _choose_ports()
    addresses = Addresses(*(f"http://{LOCALHOST}:{port}" for port in ports))
    env, running = environment(addresses), []
    (state_dir() / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect would not make its parent
    sweep(str(state_dir()))  # what an earlier stack left that was killed
    with ExitStack() as cleanup:
        cleanup.callback(sweep, str(state_dir()))

        def begin(name: str, *command: str) -> Service:
            service = start(name, command, log_dir=state_dir() / "logs", cwd=state_dir(), env=env)
            cleanup.callback(stop, service)
            running.append(service)
            return service

        say("Starting an MLflow server and a Prefect server …")
        mlflow = begin("mlflow", "bash", str(ROOT / "mlflow/start.sh"), str(ports[1]), str(state_dir() / "mlflow"))
        server = [sys.executable, "-m", "flows.servers.sqlite_server", "--host", LOCALHOST, "--port", str(ports[0])]
        prefect = begin("prefect", *server)
        wait_until_healthy(prefect, f"{addresses.prefect}/api/health")
        _bootstrap(env)
        for name, options in workers(executor).items():
            begin(name, *PREFECT, "worker", "start", "--name", name, *options)
        wait_until_healthy(mlflow, f"{addresses.mlflow}/health")
        yield addresses, running
        say("Stopping the servers and the workers …")


def _choose_ports() -> tuple[int, int]:
    """Prefect's and MLflow's: the usual ones where they are free, else those of last time, so that links stay good."""
    path = state_dir() / "ports.json"
    last = json.loads(path.read_text()) if path.exists() else USUAL_PORTS
    variables = ("LORI_PREFECT_PORT", "LORI_MLFLOW_PORT")
    prefect, mlflow = map(choose_port, variables, zip(USUAL_PORTS, last, strict=True))
    if not any(map(os.environ.get, variables)):
        path.write_text(json.dumps([prefect, mlflow]))
    return prefect, mlflow


def _check_disk() -> None:
    state_dir().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(state_dir()).free / 1e9
    if free < MIN_FREE_GB:
        raise StackError(
            f"{free:.1f} GB are free at {state_dir()}, {MIN_FREE_GB} are needed: make room or set LORI_DIR."
        )


def _bootstrap(env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "flows.servers.bootstrap", "--zombie-seconds", str(3 * HEARTBEAT_SECONDS)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"The Prefect server could not be made ready.\n{done.stdout}{done.stderr}")


def workers(executor: str) -> dict[str, list[str]]:
    """Each worker's name and options: one for flows and, if jobs are flow runs of their own, one for these."""
    options = {"worker": ["--pool", DRIVER_POOL]}
    if executor == "deployment":
        num_jobs = len(gpus.gpu_ids()) or gpus.num_workers()
        options["gpu-worker"] = ["--pool", GPU_POOL, "--limit", str(num_jobs)]
    return options


def paper(params: Sequence[str], *, stay: bool) -> int:
    """Run `lori/full-paper` and watch it; the exit code is 0 if it completed. With `stay` its servers stay then."""
    if addresses := running_stack():
        say(f"Using the running servers (state in {state_dir()}).")
        try:
            return watch(addresses, [], params)
        except KeyboardInterrupt:
            sys.exit("No longer watching: the flow run goes on, on the running servers.")
    with the_only_one() as state, started() as (addresses, services):
        code = watch(addresses, services, params)
        if stay and code == 0:
            say("The servers of these links stay until Ctrl-C.")
            _stay(state, addresses, services)
        else:
            say("`make serve` starts the servers of these links again.")
        return code


def watch(addresses: Addresses, services: Sequence[Service], params: Sequence[str]) -> int:
    """`prefect deployment run --watch` without its events, as long as all `services` live."""
    arguments = [argument for param in params for argument in ("-p", param)]
    command = [*PREFECT, "deployment", "run", "lori/full-paper", "--watch", *arguments]
    env = {**environment(addresses), "COLUMNS": "1000"}  # no line is broken
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    printer = threading.Thread(target=_print_log, args=(process.stdout,))
    printer.start()
    try:
        while process.poll() is None:
            check_alive(services)
            time.sleep(0.5)
        return process.returncode
    finally:
        process.kill()
        process.wait()
        printer.join()


def _print_log(lines: IO[str]) -> None:
    """What the flow printed, without Prefect's times and ids; events, such as a task's states, are left out."""
    with lines:
        for line in lines:
            text = LOG_PREFIX.sub("", line.rstrip())
            if not NOISE.match(text):
                say(text)


def serve() -> int:
    """Keep everything running until Ctrl-C."""
    with the_only_one() as state, started() as (addresses, services):
        say_links(addresses)
        runtime = local_runtime(Runtime(tracking_uri=addresses.mlflow))
        tracking.provision_views(runtime)
        for name, link in tracking.view_links(runtime).items():
            say(f"         {name}: {link}")
        say("Run the paper, in another terminal:  make paper")
        say(f"Any deployment:  PREFECT_API_URL={addresses.prefect}/api prefect deployment run lori/full-paper --watch")
        say("Ctrl-C stops the servers, the workers and what they run. Results stay.")
        _stay(state, addresses, services)
    return 0


def _stay(state: IO[str], addresses: Addresses, services: Sequence[Service]) -> None:
    """Let others use the servers until Ctrl-C."""
    state.write(json.dumps(asdict(addresses)))
    state.flush()
    with suppress(KeyboardInterrupt):
        while True:
            check_alive(services)
            time.sleep(1)


def say(line: str) -> None:
    """A line for the user, at once."""
    print(line, flush=True)


def say_links(addresses: Addresses) -> None:
    """Where to look."""
    say(f"Prefect: {addresses.prefect}/runs")
    say(f"MLflow:  {addresses.mlflow}/#/experiments?workflowType=machine_learning")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="LoRI's experiments with servers of their own.")
    parser.add_argument("command", choices=("paper", "serve"))
    parser.add_argument("--profile", default="scale", help="smoke or scale (default)")
    parser.add_argument("-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="as in `prefect`")
    parser.add_argument("--exit", action="store_true", help="stop the servers after the paper, in a terminal, too")
    options = parser.parse_args()
    stay = sys.stdin.isatty() and sys.stdout.isatty() and not options.exit
    os.environ.setdefault("LORI_EXECUTOR", "pool")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        params = [f"profile={options.profile}", *options.param]
        sys.exit(serve() if options.command == "serve" else paper(params, stay=stay))
    except (StackError, ValueError) as error:
        sys.exit(f"lori: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted: the servers and the workers are stopped. Results stay, and the next run goes on there.")


if __name__ == "__main__":
    main()
