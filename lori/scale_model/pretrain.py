"""Make a scale model from nothing: corpus, tokenizer, pretraining, files. `python -m lori.scale_model.pretrain`.

Two processes with one thread each share every batch (gloo); the number of steps is fixed, so the same seed, library
versions and processor type give the same weights, to the byte. `recipe.json` says what the weights came from. The
shipped model is the row `scale` of `RECIPES`. A folder with another one is a base model, too, and where there is a GPU
one process makes it there, with whole batches:

    python -m lori.scale_model.pretrain --recipe wide --output-dir wide     # on two cores it takes hours
"""

import argparse
import ctypes
import hashlib
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lori.base_models.resolve import SCALE_SUITE
from lori.scale_model.corpus import LEARNING, PHASES, documents
from lori.scale_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer

OUTPUT_DIR = Path(__file__).parent
NUM_PROCESSES = 2
NUM_WARMUP_STEPS = 100
FINAL_LEARNING_RATE = 0.02  # of the peak, at the end of a cosine
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights: two phases, each with a corpus, an optimizer and a schedule of its own.

    A batch is `rows_per_process` rows of `row_length` tokens in each process.
    """

    seed: int = 0
    num_steps: tuple[int, int] = (5000, 1200)
    learning_rates: tuple[float, float] = (3e-3, 1.5e-3)
    rows_per_process: int = 12
    row_length: int = 128
    num_tokenizer_documents: int = 30_000
    hidden_size: int = 160
    intermediate_size: int = 432
    num_layers: int = 4
    num_heads: int = 5

    @property
    def num_tokens(self) -> int:
        """The tokens of the whole run, each seen once."""
        return sum(self.num_steps) * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """The tokens of a batch, over both processes."""
        return NUM_PROCESSES * self.rows_per_process * self.row_length


RECIPES = {
    "scale": Recipe(),
    # As many tokens of the same corpus, in batches twice as large; rates are divided by 3, as the width is times 3.2
    "wide": Recipe(
        num_steps=(2500, 600),
        learning_rates=(1e-3, 5e-4),
        rows_per_process=24,
        hidden_size=512,
        intermediate_size=1376,
        num_heads=16,
    ),
}


def token_stream(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, phase: int) -> Int[np.ndarray, " token"]:
    """A phase's corpus as one row of ids, every document between <s> and </s>, cut at its number of tokens."""
    ids: list[int] = []
    corpus = documents(recipe.seed + phase, PHASES[phase])
    num_tokens = recipe.num_steps[phase] * recipe.tokens_per_step
    while len(ids) < num_tokens:
        for document in tokenizer(list(islice(corpus, 10_000)))["input_ids"]:
            ids += [*document, EOS_ID]
    return np.asarray(ids[:num_tokens], dtype=np.int16)


def new_model(recipe: Recipe, vocabulary_size: int) -> LlamaForCausalLM:
    """An untrained model of the recipe's size."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return LlamaForCausalLM(config)


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to `FINAL_LEARNING_RATE`."""
    cosine = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return peak * min(1.0, (step + 1) / NUM_WARMUP_STEPS) * cosine


def train(model: LlamaForCausalLM, rank: int, num_processes: int, work_dir: str, recipe: Recipe, phase: int) -> float:
    """All steps of a phase in one of the processes; the mean loss of the last 100 steps."""
    stream = np.load(f"{work_dir}/stream{phase}.npy", mmap_mode="r")
    num_steps, peak = recipe.num_steps[phase], recipe.learning_rates[phase]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)
    losses = []
    started = time.monotonic()
    for step, batch in enumerate(_batches(stream, rank, num_processes, recipe)):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, num_steps, peak)
        loss = _next_token_loss(model, batch.to(model.device))
        loss.backward()
        if num_processes > 1:
            _average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 100 == 0:
            speed = (step + 1) * recipe.tokens_per_step / (time.monotonic() - started)
            done = f"phase {phase + 1}  step {step + 1}/{num_steps}"
            print(f"{done}  loss {np.mean(losses[-100:]):.4f}  {speed:.0f} tokens/s", flush=True)
    return float(np.mean(losses[-100:]))


def _batches(
    stream: Int[np.ndarray, " token"], rank: int, num_processes: int, recipe: Recipe
) -> Iterator[Int[Tensor, "row token"]]:
    num_rows = NUM_PROCESSES * recipe.rows_per_process // num_processes
    for batch in stream.reshape(-1, num_processes, num_rows, recipe.row_length):
        yield torch.from_numpy(batch[rank].astype(np.int64))


def _next_token_loss(model: LlamaForCausalLM, batch: Int[Tensor, "row token"]) -> Float[Tensor, ""]:
    logits = model(input_ids=batch, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def _average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.view(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= NUM_PROCESSES
    for gradient, averaged in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was asked for
        sys.exit("The parent process has ended.")


def _process(rank: int, recipe: Recipe, work_dir: str, parent: int, device: str, num_processes: int) -> None:
    """One of the processes; it dies with its parent."""
    _die_with(parent)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    # A file to meet at, not a port: two runs on one machine cannot get in each other's way.
    dist.init_process_group("gloo", init_method=f"file://{work_dir}/meeting", rank=rank, world_size=num_processes)
    model: Any = new_model(recipe, len(PreTrainedTokenizerFast.from_pretrained(work_dir)))
    model.to(device)
    losses = [train(model, rank, num_processes, work_dir, recipe, phase) for phase in range(len(PHASES))]
    if rank == 0:
        model.generation_config = GenerationConfig(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
        model.save_pretrained(work_dir)
        Path(work_dir, "loss.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


def pretrain(recipe: Recipe, output_dir: Path, device: str = "cpu") -> None:
    """Write model, tokenizer and `recipe.json` to `output_dir`: all of them, or none if anything fails."""
    started, num_processes = time.monotonic(), NUM_PROCESSES if device == "cpu" else 1
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may add in another order each time
    with tempfile.TemporaryDirectory(prefix="lori-pretrain-") as work_dir:
        tokenizer = train_tokenizer(islice(documents(recipe.seed, LEARNING), recipe.num_tokenizer_documents))
        tokenizer.save_pretrained(work_dir)
        for phase in range(len(PHASES)):
            np.save(f"{work_dir}/stream{phase}.npy", token_stream(tokenizer, recipe, phase))
        print(f"{recipe.num_tokens} tokens, made in {time.monotonic() - started:.0f} s", flush=True)
        arguments = (recipe, work_dir, os.getpid(), device, num_processes)
        torch.multiprocessing.spawn(_process, arguments, nprocs=num_processes)
        place = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "num_processes": num_processes}
        _write_record(recipe, Path(work_dir), place, wall_seconds=time.monotonic() - started)
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            (output_dir / name).write_bytes(Path(work_dir, name).read_bytes())


SHIPPED = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "recipe.json",
)  # fmt: skip


def _write_record(recipe: Recipe, work_dir: Path, place: dict[str, Any], *, wall_seconds: float) -> None:
    record = {
        "suite": SCALE_SUITE,
        "sha256": {name: file_digest(work_dir / name) for name in ("model.safetensors", "tokenizer.json")},
        "recipe": asdict(recipe),
        "num_tokens": recipe.num_tokens,
        "final_losses": [round(loss, 4) for loss in json.loads((work_dir / "loss.json").read_text())],
        "wall_seconds": round(wall_seconds),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **place,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    (work_dir / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """The command line: which recipe, and where to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="scale")
    parser.add_argument("--output-dir", type=Path, help="a folder; of `scale` by default where the shipped model lies")
    asked = parser.parse_args()
    output_dir = (asked.output_dir or OUTPUT_DIR).resolve()
    if asked.recipe != "scale" and output_dir == OUTPUT_DIR:
        parser.error(f"--output-dir names another folder than the shipped model's, which is not {asked.recipe}.")
    on_gpu = asked.recipe != "scale" and torch.cuda.is_available()  # the shipped one has the same bytes everywhere
    pretrain(RECIPES[asked.recipe], output_dir, "cuda" if on_gpu else "cpu")


if __name__ == "__main__":
    main()
