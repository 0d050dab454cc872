"""Checkpoints of a training: when one is written, and whose they are."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lori.adapters.checked_files import digest, is_first_process, wait_for_all
from lori.adapters.layer import SparseB
from lori.adapters.peft_files import LORA_A
from lori.config import TrainConfig
from lori.datasets.tokenise import Rows

IDENTITY_FILE = "training.json"  # beside the checkpoints: whose they are


class CheckpointEvery(TrainerCallback):
    """Asks for a checkpoint every so many steps: Trainer's own option refuses models that were sharded when loaded."""

    def __init__(self, every: int):
        self.every = every

    def on_step_end(self, args, state, control, **_):  # noqa: ARG002
        """Trainer's, after each step."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            control.should_save = True


def newest_checkpoint(place: Path, model: nn.Module, rows: Rows, config: TrainConfig) -> str | None:
    """Where to go on from, if these are checkpoints of this training.

    Raises:
        ValueError: if they are of another, or if the processes do not start from the same model and rows.
    """
    text = json.dumps([[row["input_ids"], row["labels"]] for row in rows])
    rows_sha256 = hashlib.sha256(text.encode()).hexdigest()
    settings = json.loads(json.dumps(asdict(config)))  # as it is read back: a tuple is a list
    mine = {"config": settings, "rows_sha256": rows_sha256, "start_sha256": _start_digest(model)}
    if dist.is_initialized():
        all_of_them: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(all_of_them, mine)
        if any(other != mine for other in all_of_them):
            raise ValueError("The processes have different rows, adapters or masks: give each the same.")
    path = place / IDENTITY_FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else mine
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete {place}, or name another checkpoint_dir.") from error
    if found != mine:
        raise ValueError(f"{place} holds checkpoints of another training: delete it, or name another checkpoint_dir.")
    if is_first_process() and not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(mine))
        os.replace(path.with_suffix(".partial"), path)
    wait_for_all()
    return get_last_checkpoint(str(place))


def _start_digest(model: nn.Module) -> str:
    """Of what trains, of the frozen A's and of the masks, before the first step."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for name, parameter in model.named_parameters() if LORA_A in name]
    indices = [module.index for module in model.modules() if isinstance(module, SparseB)]
    rests = [module.rest for module in model.modules() if isinstance(module, SparseB) and module.rest is not None]
    return digest([*trainable, *frozen, *indices, *rests])
