"""Train an adapter, or merge several: fetch, one `lori` call, save, log."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lori.adapters.attach import attach, attach_trained, num_trainable, reset_b, save_adapter, sparsify
from lori.adapters.masks import load_masks
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import base_model
from lori.choices.methods import method
from lori.config import TrainConfig, TrainRuntime
from lori.datasets.rows import load_rows
from lori.datasets.tokenise import tokenise
from lori.training.trainer import train
from tasks import tracking
from tasks.engine import shutdown
from tasks.machine import IS_FIRST, IS_ONE_OF_SEVERAL, work_dir
from tasks.prepare_dataset import ROWS_FILE
from tasks.publish.catalogue import Entry, enter, suffix, write_card
from tasks.results import Handle, Runtime
from tasks.train_callback import Watch, restore

CHECKPOINTS, OUT = "checkpoints", "adapter"  # in the work directory


def train_adapter(  # noqa: PLR0913 each is another input
    config: TrainConfig,
    *,
    dataset: Handle,
    mask: Handle | None = None,
    start_from: Handle | None = None,
    a_from: Handle | None = None,
    key: str,
    runtime: Runtime,
) -> Handle:
    """One trained adapter as a logged model, its curve as the run's metrics. `base` trains nothing.

    It goes on from the newest checkpoint that an attempt on any machine left. Under torchrun every process calls this;
    the first one alone talks to MLflow, and what the others return is nobody's.

    Raises:
        ValueError: if the method needs a mask and there is none, or the other way round.
    """
    if (method(config.method).mask_from is None) != (mask is None):
        raise ValueError(f"Method {config.method!r} and mask {mask and mask.name} do not go together.")
    name = _train_name(config, start_from)
    training = Training(config, name, key, dataset, mask, start_from, a_from)
    if not IS_FIRST:
        _train(training, None, runtime)
        return Handle("adapter", key, name, "", "", "")
    params = {**asdict(config), **_origin(mask, start_from)}
    tags = {
        "lori.role": "train",
        "lori.method": config.method,
        "lori.domain": config.domain,
        "lori.seed": str(config.seed),
    }
    work = work_dir(key)
    with tracking.logged_run(runtime, key, name, tags=tags, params=params) as run_id:
        tracking.link_dataset(runtime, run_id, dataset, "train")
        restore(runtime, run_id, work / CHECKPOINTS)
        with tracking.system_metrics(runtime, run_id):
            curve, metrics = _train(training, run_id, runtime)
        uri, sha256 = tracking.log_model(runtime, run_id, key, work / OUT, kind="adapter", name=name, params=params)
        tracking.log_curve(runtime, run_id, curve)
        tracking.log_metrics(runtime, run_id, metrics)
        tracking.link_inputs(runtime, run_id, [handle for handle in (mask, start_from, a_from) if handle])
        handle = Handle("adapter", key, name, run_id, uri, sha256, metrics, params)
        enter(handle, _entry(config, start_from), runtime)
        write_card(handle, runtime)
    return handle


def _entry(config: TrainConfig, start_from: Handle | None) -> Entry:
    first = f"{start_from.config['domain']}-then-" if start_from else ""
    return Entry(config.base_model, config.rank, config.method, first + config.domain, config.seed, config.variant)


@dataclass(frozen=True)
class Training:
    """What is trained, and on what."""

    config: TrainConfig
    name: str
    key: str
    dataset: Handle
    mask: Handle | None
    start_from: Handle | None
    a_from: Handle | None


def _train(
    training: Training, run_id: str | None, runtime: Runtime
) -> tuple[list[dict[str, int | float]], dict[str, float]]:
    """Train into `work/adapter`; the curve and the run's metrics."""
    config, mask, start_from = training.config, training.mask, training.start_from
    work = work_dir(training.key)
    torch.manual_seed(config.seed)
    is_full = method(config.method).kind == "full"
    # What trains itself keeps its weights in fp32 and computes in `dtype`; and it is whole on each process
    num_shards = 1 if is_full or not IS_ONE_OF_SEVERAL else runtime.hardware.num_gpus
    dtype = "float32" if is_full else config.dtype
    found = base_model(config.base_model, runtime.models_dir)
    base = load_base(found, runtime.device, num_shards=num_shards, dtype=dtype)
    if start_from:
        model = attach_trained(base, tracking.fetch(runtime, start_from), config)
    elif training.a_from:
        model = reset_b(attach_trained(base, tracking.fetch(runtime, training.a_from), config))
    else:
        model = attach(base, config)
    if mask:
        sparsify(model, load_masks(tracking.fetch(runtime, mask)))
    started, curve = time.monotonic(), []
    if method(config.method).kind != "none":
        tokenizer = load_tokenizer(found)
        examples = load_rows(tracking.fetch(runtime, training.dataset) / ROWS_FILE)
        rows = tokenise([example.pair for example in examples], tokenizer, config)
        watch = Watch(runtime, run_id, work / CHECKPOINTS, f"train {training.name}")
        with shutdown.at_step_end():
            curve = train(
                model, rows, config, tokenizer=tokenizer, runtime=_train_runtime(work, runtime), callbacks=[watch]
            )
    metrics = {
        "num_trainable": float(num_trainable(model)),
        "train_seconds": time.monotonic() - started,
        **({"final_loss": curve[-1]["train/loss"]} if curve else {}),
    }
    (work / OUT).mkdir(parents=True, exist_ok=True)  # `base` has no files
    save_adapter(model, work / OUT, config)
    return curve, metrics


def _train_runtime(work: Path, runtime: Runtime) -> TrainRuntime:
    return TrainRuntime(
        micro_batch_tokens=runtime.hardware.micro_batch_tokens,
        gradient_checkpointing=runtime.hardware.gradient_checkpointing,
        checkpoint_dir=str(work / CHECKPOINTS),
        checkpoint_every=runtime.checkpoint_every,
    )


def _train_name(config: TrainConfig, start_from: Handle | None) -> str:
    first = f"{start_from.config['domain']}-then-" if start_from else ""
    return f"{config.method}-{first}{config.domain}-seed{config.seed}{suffix(config.variant)}"


def _origin(mask: Handle | None, start_from: Handle | None) -> dict[str, str | float]:
    """What a run's parameters say of the handles it started from."""
    origin: dict[str, str | float] = {}
    if mask:
        origin |= {"sparsity": mask.config["sparsity"], "scope": mask.config["scope"]}
    if start_from:
        origin |= {"first_domain": start_from.config["domain"]}
    return origin
