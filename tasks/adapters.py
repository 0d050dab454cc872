"""Train an adapter, or merge several: fetch, one `lori` call, save, log."""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from lori.config import Handle, MergeConfig, Runtime, TrainConfig, TrainRuntime
from lori.data import load_rows, tokenise
from lori.masks import load_masks
from lori.merging import merge
from lori.methods import attach, attach_trained, method, num_trainable, save_adapter, sparsify
from lori.models import load_base, load_tokenizer
from lori.training import train
from tasks import tracking
from tasks.data import ROWS_FILE


def train_adapter(
    config: TrainConfig,
    *,
    dataset: Handle,
    mask: Handle | None = None,
    start_from: Handle | None = None,
    key: str,
    runtime: Runtime,
) -> Handle:
    """One trained adapter as a logged model, its curve as the run's metrics. `base` trains nothing.

    Raises:
        ValueError: if the method needs a mask and there is none, or the other way round.
    """
    if (method(config.method).mask_from is None) != (mask is None):
        raise ValueError(f"Method {config.method!r} and mask {mask and mask.name} do not go together.")
    name = _train_name(config, start_from)
    params = {**asdict(config), **_origin(mask, start_from)}
    tags = {
        "lori.role": "train",
        "lori.method": config.method,
        "lori.domain": config.domain,
        "lori.seed": str(config.seed),
    }
    with (
        tracking.logged_run(runtime, key, name, tags=tags, params=params) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        curve, metrics = _train(
            config, Path(scratch), dataset=dataset, mask=mask, start_from=start_from, runtime=runtime
        )
        uri, sha256 = tracking.log_model(runtime, run_id, key, Path(scratch), kind="adapter", name=name, params=params)
        tracking.log_curve(runtime, run_id, curve)
        tracking.log_metrics(runtime, run_id, metrics)
        tracking.link_inputs(runtime, run_id, [handle for handle in (mask, start_from) if handle])
    return Handle("adapter", key, name, run_id, uri, sha256, metrics, params)


def _train(
    config: TrainConfig,
    out: Path,
    *,
    dataset: Handle,
    mask: Handle | None,
    start_from: Handle | None,
    runtime: Runtime,
) -> tuple[list[dict[str, int | float]], dict[str, float]]:
    torch.manual_seed(config.seed)
    # What trains itself keeps its weights in fp32 and computes in `dtype`
    dtype = "float32" if method(config.method).kind == "full" else config.dtype
    base = load_base(config.base_model, runtime.device, models_dir=runtime.models_dir, dtype=dtype)
    first_dir = tracking.fetch(runtime, start_from) if start_from else None
    model = attach_trained(base, first_dir, config) if first_dir else attach(base, config)
    if mask:
        sparsify(model, load_masks(tracking.fetch(runtime, mask)))
    started, curve = time.monotonic(), []
    if method(config.method).kind != "none":
        tokenizer = load_tokenizer(config.base_model, runtime.models_dir)
        examples = load_rows(tracking.fetch(runtime, dataset) / ROWS_FILE)
        rows = tokenise([example.pair for example in examples], tokenizer, config)
        place = TrainRuntime(
            micro_batch_tokens=runtime.micro_batch_tokens, gradient_checkpointing=runtime.gradient_checkpointing
        )
        curve = train(model, rows, config, tokenizer=tokenizer, runtime=place)
    metrics = {
        "num_trainable": float(num_trainable(model)),
        "train_seconds": time.monotonic() - started,
        **({"final_loss": curve[-1]["train/loss"]} if curve else {}),
    }
    save_adapter(model, out, config)
    return curve, metrics


def _train_name(config: TrainConfig, start_from: Handle | None) -> str:
    first = f"{start_from.config['domain']}-then-" if start_from else ""
    return f"{config.method}-{first}{config.domain}-seed{config.seed}"


def _origin(mask: Handle | None, start_from: Handle | None) -> dict[str, str | float]:
    """What a run's parameters say of the handles it started from."""
    origin: dict[str, str | float] = {}
    if mask:
        origin |= {"sparsity": mask.config["sparsity"], "scope": mask.config["scope"]}
    if start_from:
        origin |= {"first_domain": start_from.config["domain"]}
    return origin


def merge_adapters(config: MergeConfig, *, adapters: list[Handle], key: str, runtime: Runtime) -> Handle:
    """One adapter of several, with lineage to each of them."""
    methods = sorted({adapter.config["method"] for adapter in adapters})
    name = f"{'+'.join(methods)}-{config.method}-seed{config.seed}"
    domains = ",".join(adapter.config["domain"] for adapter in adapters)
    params = {**asdict(config), "adapter_method": "+".join(methods), "domains": domains}
    tags = {
        "lori.role": "merge",
        "lori.method": "+".join(methods),
        "lori.merge": config.method,
        "lori.seed": str(config.seed),
    }
    with (
        tracking.logged_run(runtime, key, name, tags=tags, params=params) as run_id,
        tempfile.TemporaryDirectory() as scratch,
    ):
        directories = [tracking.fetch(runtime, adapter) for adapter in adapters]
        merge(directories, config, Path(scratch), models_dir=runtime.models_dir)
        uri, sha256 = tracking.log_model(runtime, run_id, key, Path(scratch), kind="adapter", name=name, params=params)
        tracking.link_inputs(runtime, run_id, adapters)
    return Handle("adapter", key, name, run_id, uri, sha256, {}, params)
