"""One job in a process of its own: `python -m tasks.engine.job_main JOB ANSWER`, under torchrun for several GPUs."""

import logging
import os
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil

from tasks.engine import shutdown
from tasks.engine.job_process import FLOW_RUN
from tasks.engine.jobs import answer, end_with_parent, is_error, job_from_json
from tasks.engine.progress import log_at_info
from tasks.machine import IS_FIRST, IS_ONE_OF_SEVERAL

# Until a process of several tells what it failed on. Torchrun looks for dead ones ten times a second; an error that
# all have is the first one's to tell
FIRST_FAILS_SECONDS, OTHERS_FAIL_SECONDS = 2, 10


def main() -> None:
    """Read the job, compute it, and write what there is to answer, whole or not at all."""
    job_path, answer_path = map(Path, sys.argv[1:])
    if IS_ONE_OF_SEVERAL:  # torchrun ends its processes when it is told to, and they end when it is killed
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    shutdown.install()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    log_at_info()
    warnings.simplefilter("ignore", FutureWarning)  # transformers' to PEFT, nothing that we could mend
    try:
        text = answer(job_from_json(job_path.read_text()))
        failed = is_error(text)
        if failed and IS_ONE_OF_SEVERAL:
            # If another process died, torchrun ends this one meanwhile: a crash, and no failure of the step
            time.sleep(FIRST_FAILS_SECONDS if IS_FIRST else OTHERS_FAIL_SECONDS)
    except SystemExit:
        if IS_FIRST and not psutil.pid_exists(int(os.environ["LORI_LAUNCHER"])):
            say_crashed()
        raise
    if IS_FIRST or failed:
        _write(text, answer_path)
    if failed and IS_ONE_OF_SEVERAL:
        os._exit(1)  # torchrun then ends the others, which wait for this process


def _write(text: bytes, path: Path) -> None:
    """Whole or not at all; of several answers the first one counts."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(text)
    with suppress(FileExistsError):
        os.link(partial, path)


def say_crashed() -> None:
    """Tell Prefect for the flow run that started this process and is gone.

    A worker that is told to end kills its flow runs, which then stay `Running` until somebody misses their heartbeat.
    """
    if flow_run_id := os.environ.get(FLOW_RUN):
        from prefect.client.orchestration import get_client
        from prefect.states import Crashed

        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run_id), Crashed(message="Its worker ended; the job was told to end."))


if __name__ == "__main__":
    main()
