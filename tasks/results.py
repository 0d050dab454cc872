"""What points at a result (`Handle`), where it is computed (`Runtime`), and its key."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lori.choices.hardware import Hardware

KEY_LENGTH = 32  # hex digits: 128 bits, and still readable in a table


@dataclass(frozen=True)
class Handle:
    """A result that lies in MLflow: small enough for a cache record, with what is needed to fetch and check the bytes.

    `kind` is dataset, adapter, mask, scores, intervals, interference or report; `uri` is an MLflow URI (`models:/…` or
    `runs:/…`); `sha256` is the digest of the files under it; `metrics` are the headline numbers; `config` the
    flattened config that made it.
    """

    kind: str
    key: str
    name: str
    run_id: str
    uri: str
    sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """Where and how a result is computed. Never part of a key.

    A study says some of it, and its jobs carry that to whoever computes them. What is left empty, that process's
    environment says: see `machine.local_runtime`. `data_dir` holds the real datasets in their upstream formats (None:
    the hub), `models_dir` base models in folders, `adapters_dir` published adapters (None: the hub). `device` `auto`
    is the GPU where there is one. `checkpoint_every` counts a training's steps. With `refresh` a result is computed
    although MLflow has it. `flow_run` is the page or the id of the flow run that asks for it, for its provenance.
    """

    tracking_uri: str = ""
    cache_dir: str = ""
    experiment: str = ""
    device: str = ""
    data_dir: str | None = None
    models_dir: str | None = None
    adapters_dir: str | None = None
    hardware: Hardware = field(default_factory=Hardware)
    checkpoint_every: int = 0
    refresh: bool = False
    flow_run: str = ""


def canonical(value: Any) -> Any:
    """Plain JSON data for `value`: a `Handle` is its key, a dataclass its fields.

    Raises:
        TypeError: for anything else that has no stable text, such as a set or a path.
    """
    if isinstance(value, Handle):
        return value.key
    if hasattr(value, "__dataclass_fields__"):
        return canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): canonical(item) for name, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no stable key: pass names, numbers, configs or handles.")


def step_key(step: str, version: int, config: Any, inputs: Mapping[str, Any]) -> str:
    """The one identity of a result: Prefect's cache key, MLflow's `lori.key` and the cache's file name.

    `version` is the step's results version, raised when its numbers change; `inputs` are the handles it reads.
    """
    document = {"step": step, "version": version, "config": canonical(config), "inputs": canonical(inputs)}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return f"{step}-v{version}-{digest[:KEY_LENGTH]}"
