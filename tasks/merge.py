"""Merge adapters: fetch, one `lori` call, save, log."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from lori.adapters.merge_inputs import update_norm
from lori.adapters.merging import merge
from lori.adapters.peft_settings import SETTINGS_FILE
from lori.config import MergeConfig
from tasks import tracking
from tasks.publish.catalogue import Entry, register_model, suffix, write_card
from tasks.results import Handle, Runtime


def merge_adapters(config: MergeConfig, *, adapters: list[Handle], key: str, runtime: Runtime) -> Handle:
    """One adapter of several, with lineage to each of them."""
    methods = sorted({adapter.config["method"] for adapter in adapters})
    name = f"{'+'.join(methods)}-{config.method}-seed{config.seed}{suffix(config.variant)}"
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
        is_factors = (Path(scratch) / SETTINGS_FILE).exists()  # else it is a whole model
        metrics = {"update_norm": update_norm(Path(scratch))} if is_factors else {}
        tracking.log_metrics(runtime, run_id, metrics)
        handle = Handle("adapter", key, name, run_id, uri, sha256, metrics, params)
        merged, parent = f"{'+'.join(methods)}-{config.method}", adapters[0].config
        all_domains = "+".join(adapter.config["domain"] for adapter in adapters)
        entry = Entry(config.base_model, parent["rank"], merged, all_domains, config.seed, config.variant)
        register_model(handle, entry, runtime)
        write_card(handle, runtime)
    return handle
