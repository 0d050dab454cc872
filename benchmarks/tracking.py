"""What MLflow costs, on a server of its own on the loopback: an adapter, a paper's worth of runs, a training's curve.

python -m benchmarks.tracking      # about three minutes on 2 cores
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback

from benchmarks.measure import goal, report
from flows.servers.services import choose_port, start, stop, wait_until_healthy
from lori.adapters.attach import attach, save_adapter
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.choices.profiles import PROFILES
from lori.config import TrainRuntime
from lori.datasets.rows import load_rows
from lori.datasets.tokenise import tokenise
from lori.recipes.configs import data_config, train_config
from lori.training.trainer import train
from tasks import tracking
from tasks.prepare_dataset import ROWS_FILE, prepare_dataset
from tasks.publish.catalogue import Entry, enter, write_card
from tasks.report.mlflow_rows import log_rows
from tasks.report.table import Estimate, Table
from tasks.results import Handle, Runtime
from tasks.train_callback import Watch

SCALE = BASE_MODELS["scale"]

ROOT = Path(__file__).parents[1]
NUM_RUNS, NUM_ROWS, ROUNDS = 42, 20, 3
PROFILE = PROFILES["scale"]
CONFIG = train_config(PROFILE, "lora", "nlu", 0)


@contextmanager
def server(directory: Path) -> Iterator[Runtime]:
    port = choose_port("NO_SUCH_PORT")
    command = ["bash", str(ROOT / "mlflow/start.sh"), str(port), str(directory / "mlflow")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    service = start("mlflow", command, log_dir=directory, cwd=directory, env={**os.environ, "PATH": path})
    try:
        wait_until_healthy(service, f"http://127.0.0.1:{port}/health")
        yield Runtime(f"http://127.0.0.1:{port}", str(directory / "cache"), "benchmark")
    finally:
        stop(service)


def log_one(runtime: Runtime, adapter_dir: Path, number: int) -> tuple[Handle, float, float]:
    """All that a training tells MLflow at its end: the handle, seconds of the adapter alone, seconds of the run."""
    key, params = (
        f"train-v0-{number:032d}",
        {"base_model": CONFIG.base_model, "method": "lora", "domain": "nlu", "seed": number},
    )
    began = time.perf_counter()
    with tracking.logged_run(runtime, key, f"lora-{number}", tags={"lori.role": "train"}, params=params) as run_id:
        before = time.perf_counter()
        uri, sha256 = tracking.log_model(
            runtime, run_id, key, adapter_dir, kind="adapter", name=f"lora-{number}", params=params
        )
        handle = Handle("adapter", key, f"lora-{number}", run_id, uri, sha256, {}, params)
        enter(handle, Entry(CONFIG.base_model, CONFIG.rank, "lora", "nlu", number), runtime)
        adapter_seconds = time.perf_counter() - before
        tracking.log_metrics(runtime, run_id, {"nlu/accuracy": 50.0, "nlu/accuracy_se": 1.0})
        write_card(handle, runtime)
    tracking.save_handle(runtime, handle)
    return handle, adapter_seconds, time.perf_counter() - began


def log_paper(runtime: Runtime, directory: Path) -> tuple[float, float]:
    """Median seconds of an adapter logged and registered, and those of NUM_RUNS runs and NUM_ROWS rows together."""
    model = attach(load_base(SCALE), CONFIG)
    save_adapter(model, directory / "adapter", CONFIG)
    logged = [log_one(runtime, directory / "adapter", number) for number in range(NUM_RUNS)]
    rows = [{"method": f"lora-{number}", "mean": Estimate(50.0, 1.0, 1)} for number in range(NUM_ROWS)]
    table = Table("Rows", {}, rows, [[handle.uri for handle, _, _ in logged[:4]]] * NUM_ROWS)
    about = {"name": "benchmark", "base_model": CONFIG.base_model, "seeds": [0]}
    began = time.perf_counter()
    log_rows({"single": table}, about, runtime)
    rows_seconds = time.perf_counter() - began
    total = sum(seconds for _, _, seconds in logged) + rows_seconds
    return statistics.median(seconds for _, seconds, _ in logged), total


@dataclass
class Timed:
    """Seconds spent in the callback of a training."""

    seconds: float = 0.0


def timed(watch: Watch, spent: Timed) -> TrainerCallback:
    """`watch`, and what each of its calls costs the training."""

    class Stopwatch(TrainerCallback):
        pass

    def wrapped(name: str):
        def call(_, *arguments, **more):
            began = time.perf_counter()
            getattr(watch, name)(*arguments, **more)
            spent.seconds += time.perf_counter() - began

        return call

    for name in ("on_step_end", "on_log", "on_train_end"):
        setattr(Stopwatch, name, wrapped(name))
    return Stopwatch()


def training_share(runtime: Runtime, directory: Path) -> float:
    """The share of a training's time that its thread spends on the curve in MLflow; a look at MLflow each second."""
    tokenizer = load_tokenizer(SCALE)
    dataset = prepare_dataset(data_config(PROFILE, "nlu", "train"), key="dataset-v0-0", runtime=runtime)
    rows = tokenise([e.pair for e in load_rows(tracking.fetch(runtime, dataset) / ROWS_FILE)], tokenizer, CONFIG)
    run_id = tracking.open_run(runtime, "train-v0-curve", "curve", experiment="benchmark", tags={}, params={})
    spent, began = Timed(), time.perf_counter()
    watch = Watch(runtime, run_id, directory / "none", "curve")
    with tracking.system_metrics(runtime, run_id):
        train(
            attach(load_base(SCALE), CONFIG),
            rows,
            CONFIG,
            tokenizer=tokenizer,
            runtime=TrainRuntime(),
            callbacks=[timed(watch, spent)],
        )
    return spent.seconds / (time.perf_counter() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch)) as runtime:
        adapter_seconds, paper_seconds = log_paper(runtime, Path(scratch))
        share = statistics.median(training_share(runtime, Path(scratch)) for _ in range(ROUNDS))
    row = {
        "s an adapter, logged and registered": adapter_seconds,
        f"s {NUM_RUNS} runs and {NUM_ROWS} rows": paper_seconds,
        "share of a training": share,
    }
    goals = [
        goal("s an adapter logged and registered", adapter_seconds, "≤", 1),
        goal(f"s that {NUM_RUNS} runs add to a paper", paper_seconds, "≤", 60),
        goal("share of a training that logging takes", share, "≤", 0.01),
    ]
    report("tracking", [row], goals=goals, rounds=ROUNDS)
    for line in goals:
        print(line)


if __name__ == "__main__":
    main()
