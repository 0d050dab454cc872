"""One process of several under torchrun, for `test_distributed`: trains with DDP, then on a sharded base (FSDP2).

torchrun --nproc-per-node 2 tests/orchestration/train_worker.py OUT
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

import lori.training.trainer
from lori.adapters.attach import attach, save_adapter, sparsify
from lori.adapters.attached import b_shapes
from lori.adapters.masks import random_masks
from lori.base_models.loading import load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig, TrainRuntime
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config
from lori.training.trainer import train

SCALE = BASE_MODELS["scale"]

LENGTHS = (14, 9, 12, 10, 14, 11, 9, 13, 12)  # batches of 4, 4 and 1: of the last, one of two processes has nothing
ROWS = [
    {"input_ids": list(range(start, start + length)), "labels": [-100] * 6 + list(range(start + 6, start + length))}
    for start, length in zip(range(10, 100, 10), LENGTHS, strict=True)
]


def fit(out: Path, name: str, *, num_shards: int = 1) -> None:
    """Six steps; the first process writes the adapter and the curve."""
    config = replace(
        train_config(profile("smoke"), name, "nlu", seed=0), batch_size=4, num_epochs=2, learning_rate=1e-3
    )
    model = attach(load_base(SCALE, num_shards=num_shards), config)
    if name == "lori-s":
        sparsify(model, random_masks(b_shapes(model), MaskConfig(0.8, "model"), seed=0))
    runtime = TrainRuntime(micro_batch_tokens=24, checkpoint_dir=str(out / "checkpoints"), checkpoint_every=2)
    curve = train(model, ROWS, config, tokenizer=load_tokenizer(SCALE), runtime=runtime)
    save_adapter(model, out / "adapter", config)
    if not dist.is_initialized() or dist.get_rank() == 0:
        (out / "curve.json").write_text(json.dumps(curve))


class Killed(Exception):
    """Stands for the end of the process."""


def fit_and_die(out: Path, name: str, *, num_shards: int) -> None:
    """The same, ended in the fourth step."""
    clip_each, calls = lori.training.trainer.clip_each, iter(range(3))

    def limited(gradients):
        if next(calls, None) is None:
            raise Killed
        return clip_each(gradients)

    lori.training.trainer.clip_each = limited
    try:
        fit(out, name, num_shards=num_shards)
    except Killed:
        lori.training.trainer.clip_each = clip_each


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for method in ("lora", "lori-s"):
        fit(root / f"{method}-ddp", method)
        fit(root / f"{method}-fsdp", method, num_shards=2)
    fit_and_die(root / "lori-s-resumed", "lori-s", num_shards=2)
    fit(root / "lori-s-resumed", "lori-s", num_shards=2)
    os.chdir(root)
    exec(
        compile((root / "example.py").read_text(), "README.md", "exec")
    )  # every process reads what the first one wrote
    dist.destroy_process_group()
