"""A training that survives its process and its machine: checkpoints in MLflow, progress, an orderly end on SIGTERM."""

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lori.training.trainer import curve_of
from tasks import tracking
from tasks.engine import progress, shutdown
from tasks.machine import work_dir
from tasks.results import Handle, Runtime

LOG = logging.getLogger(__name__)
CURVE_SECONDS = 30  # between two looks at the curve in MLflow
SHOW_SECONDS = 1


def restore(runtime: Runtime, run_id: str, directory: Path) -> None:
    """Put the newest checkpoint into `directory`: MLflow's, unless what is there is newer."""
    found = tracking.published_checkpoint(runtime, run_id)
    if found and found.step > _step_in(directory) and not tracking.fetch_checkpoint(runtime, run_id, found, directory):
        LOG.warning("The checkpoint of step %d is no longer whole in MLflow.", found.step)
        tracking.drop_checkpoints(runtime, run_id)
    if step := _step_in(directory):
        LOG.info("The training goes on from the checkpoint of step %d.", step)


def _step_in(directory: Path) -> int:
    newest = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    return int(newest.rpartition("-")[2]) if newest else 0


class CheckpointPublisher(TrainerCallback):
    """Publishes checkpoints and the curve, shows progress, and ends the training when its process is told to end."""

    def __init__(self, runtime: Runtime, run_id: str | None, directory: Path, name: str):
        self.runtime, self.run_id, self.directory, self.name = runtime, run_id, directory, name
        self.logged = self.shown = time.monotonic()
        self.logger = ThreadPoolExecutor(max_workers=1)
        self.logging: Future[None] = Future()
        self.logging.set_result(None)

    def on_step_end(self, args, state, control, **_):
        """All processes end after the same step: each tells the others whether it was told to."""
        told = torch.tensor(float(shutdown.requested()), device=args.device)
        if dist.is_initialized():
            dist.all_reduce(told)
        if told and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **_):  # noqa: ARG002
        """The checkpoint is whole, on all processes. An MLflow that is away gets the next one."""
        if self.run_id:
            try:
                tracking.publish_checkpoint(self.runtime, self.run_id, self.directory, state.global_step)
            except (tracking.MlflowException, OSError) as error:
                LOG.warning("The checkpoint of step %d is on this machine alone: %s", state.global_step, error)
            self._log_curve(state)

    def on_log(self, args, state, control, logs=None, **_):  # noqa: ARG002
        """A point of the curve."""
        now = time.monotonic()
        if self.run_id is None or not logs or "loss" not in logs:
            return
        if now - self.shown > SHOW_SECONDS or state.global_step == state.max_steps:
            self.shown = now
            progress.report(self.name, state.global_step, state.max_steps, loss=logs["loss"])
        if now - self.logged > CURVE_SECONDS:
            self.logged = now
            self._log_curve(state)

    def on_train_end(self, args, state, control, **_):  # noqa: ARG002
        """What is still on its way; the whole curve is logged with the adapter."""
        self.logger.shutdown(cancel_futures=True)

    def _log_curve(self, state):
        """In a thread of its own, so that a server that is slow or away costs no step. Points are never sent twice."""
        if self.logging.done():
            self.logging = self.logger.submit(self._log_now, curve_of(state))

    def _log_now(self, curve):
        try:
            tracking.log_curve(self.runtime, self.run_id or "", curve)
        except tracking.MlflowException as error:
            LOG.warning("The curve is not in MLflow yet: %s", error)


def forget(adapter: Handle, runtime: Runtime) -> None:
    """The training is over and its adapter saved: its checkpoints are of no more use."""
    tracking.drop_checkpoints(runtime, adapter.run_id)
    shutil.rmtree(work_dir(adapter.key), ignore_errors=True)
