"""Adapters in MLflow's registry: a name, an alias for the seed, and a model card that knows the newest scores."""

import re
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from lori.base_models.hub_files import SECONDS_TO_ANSWER
from lori.base_models.records import BaseModel
from lori.base_models.resolve import base_model
from lori.choices.methods import method
from tasks import tracking
from tasks.publish.model_card import Card, to_markdown
from tasks.results import Handle, Runtime

CRITERION = "v2"  # of `validation_score`: raised with what is measured, as other scores are no rivals


@dataclass(frozen=True)
class Entry:
    """Where a model is in the registry: `lori-<base>-r<rank>.<method>.<domain>`, by the alias `seed-<n>`.

    A `variant` of the method has a name of its own, `<method>-<variant>`, so that no alias of the usual one moves.
    """

    base_model: str
    rank: int
    method: str
    domain: str
    seed: int
    variant: str = ""


def enter(handle: Handle, entry: Entry, runtime: Runtime) -> None:
    """Register an adapter or a mask. What has no files, `base`, is none."""
    if entry.method == "base":
        return
    method_name = entry.method + suffix(entry.variant)
    name = tracking.registered_name(entry.base_model, entry.rank, method_name, entry.domain)
    tags = {"lori.key": handle.key, "lori.sha256": handle.sha256, "lori.base_model": entry.base_model}
    tracking.register(runtime, handle.uri, name, alias=f"seed-{entry.seed}", tags=tags)


def suffix(variant: str) -> str:
    """What a variant adds to a name: MLflow takes no dot, colon or slash in one."""
    return f"-{re.sub('[^a-z0-9]+', '_', variant)}" if variant else ""


def nominate(adapter: Handle, score: float, rows: Handle, runtime: Runtime) -> None:
    """Give the alias `best` to the registered adapter that scores highest on these validation rows."""
    if tracking.address_of(runtime, adapter.uri):
        tracking.nominate(runtime, adapter.uri, score=score, rows=f"{CRITERION}/{rows.key}")


def write_card(adapter: Handle, runtime: Runtime) -> None:
    """The model card of a registered adapter, with the scores that its run has by now."""
    if address := tracking.address_of(runtime, adapter.uri):
        with tracking.card_lock(runtime, adapter.key):  # of two that score it, the later one knows both scores
            tracking.write_beside(runtime, adapter.uri, tracking.CARD, card_of(adapter, address, runtime))


def card_of(adapter: Handle, address: str, runtime: Runtime) -> str:
    """Its model card, from what MLflow has of it now; `address` is its `models:/NAME@ALIAS`."""
    base, scores = adapter.config["base_model"], tracking.run_metrics(runtime, adapter.run_id)
    licence = licence_of(base_model(base, runtime.models_dir))
    return to_markdown(Card(_kind(adapter), adapter.name, address, base, licence, adapter.config, scores))


def _kind(adapter: Handle) -> str:
    if "adapter_method" in adapter.config:
        return "merge"
    return "full" if method(adapter.config["method"]).kind == "full" else "adapter"


def licence_of(base: BaseModel) -> str | None:
    """The hub's name of a base model's licence; None for a folder, or if the hub can't be asked."""
    if base.revision is None:
        return None
    try:
        info = HfApi().model_info(base.source, revision=base.revision, timeout=SECONDS_TO_ANSWER)
    except (OSError, HTTPError):
        return None
    return info.card_data.license if info.card_data else None
