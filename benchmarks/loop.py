"""The whole training loop beside one as the authors wrote theirs: time and peak memory.

    python -m benchmarks.loop      # 6 minutes; writes benchmarks/loop.json

Authors-style: random batches of 32, fp32 logits of every position, log-probabilities twice (for the loss and a
perplexity metric), dense gradients that are masked, each matrix clipped and stepped by an optimizer of its own.
Ours is `lori.train`. The same rows, steps, adapter and mask; a Llama of 35 million parameters with a vocabulary of
32,000.
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import goal, interleave, peak_bytes, ratio, report
from lori.adapters.attach import attach, sparsify
from lori.adapters.attached import b_shapes, lora_layers
from lori.adapters.masks import random_masks
from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig, TrainRuntime
from lori.datasets.tokenise import IGNORED
from lori.recipes.paper_numbers import paper_config
from lori.training.batches import collate, plan_micro_batches, plan_steps
from lori.training.trainer import train

ROUNDS, NUM_STEPS, BATCH_SIZE = 3, 2, 32
MICRO_BATCH_TOKENS = 1024
# Quantiles, in steps of 5 %, of prompt lengths in 800 rows of commonsense_170k; a response there has 5 tokens
PROMPT_LENGTHS = (73, 73, 74, 75, 75, 83, 89, 92, 94, 96, 100, 104, 107, 111, 114, 119, 125, 132, 142, 154, 229)
RESPONSE_LENGTH = 5
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "use_cache": False,
}
CONFIG = paper_config("lori-s", "nlu", "llama-35m", rank=16, alpha=32, batch_size=BATCH_SIZE)


def nlu_like_rows(num_rows: int) -> list[dict[str, list[int]]]:
    """Random tokens with the lengths of NLU rows."""
    draw, rows = random.Random(0), []
    for _ in range(num_rows):
        position = draw.random() * (len(PROMPT_LENGTHS) - 1)
        low, high = PROMPT_LENGTHS[int(position) : int(position) + 2]
        prompt = round(low + (position % 1) * (high - low))
        tokens = draw.choices(range(SHAPE["vocab_size"]), k=prompt + RESPONSE_LENGTH)
        rows.append({"input_ids": tokens, "labels": [IGNORED] * prompt + tokens[prompt:]})
    return rows


def adapted_base() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = attach(LlamaForCausalLM(LlamaConfig(**SHAPE)).requires_grad_(False), CONFIG)
    return model, random_masks(b_shapes(model), MaskConfig(0.9, "model"), seed=0)


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """The authors' `_get_batch_logps`: of every position, summed where there are labels."""
    targets, scored = labels[:, 1:].clamp(min=0), labels[:, 1:] != IGNORED
    picked = logits[:, :-1].float().log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    return (picked * scored).sum(-1)


class AuthorsLoop:
    """Masked dense B's, an optimizer a matrix."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]):
        bs = {module: layer.lora_B["default"].weight for module, layer in lora_layers(model).items()}
        self.model, self.masked = model.train(), [(b, masks[module]) for module, b in bs.items()]
        self.optimizers = [torch.optim.AdamW([b], lr=CONFIG.learning_rate, weight_decay=0.0) for b, _ in self.masked]

    def run(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        return [self.step(collate([rows[i] for i in step], pad_token_id=0)) for step in plan_steps(len(rows), CONFIG)]

    def step(self, batch: dict[str, Tensor]) -> float:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = self.model(**inputs).logits
        loss = -log_probabilities(logits, batch["labels"]).mean()
        perplexity = log_probabilities(logits, batch["labels"])  # kept until the step's end, as in their code
        loss.backward()
        for (b, mask), optimizer in zip(self.masked, self.optimizers, strict=True):
            assert b.grad is not None
            b.grad *= mask
            torch.nn.utils.clip_grad_norm_([b], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        del perplexity
        return loss.item()


def main() -> None:
    torch.set_num_threads(1)
    rows, tokenizer = (
        nlu_like_rows(NUM_STEPS * BATCH_SIZE),
        load_tokenizer(BASE_MODELS["scale"]),
    )  # of it only the padding's id
    model, masks = adapted_base()
    sparse = sparsify(adapted_base()[0], masks)
    authors = AuthorsLoop(model, masks)
    runtime = TrainRuntime(micro_batch_tokens=MICRO_BATCH_TOKENS)
    ours = partial(train, sparse, rows, CONFIG, tokenizer=tokenizer, runtime=runtime)
    check_same_losses(authors.run(rows), [point["train/loss"] for point in ours()])
    seconds = interleave({"authors-style": lambda: authors.run(rows), "lori": ours}, ROUNDS)
    peaks = {"authors-style": peak_bytes(lambda: authors.run(rows)), "lori": peak_bytes(ours)}
    speedup = 1 / ratio(seconds, "lori", "authors-style")
    goals = [
        goal("authors' time / ours", speedup, "≥", 5.0),
        goal("our peak memory / theirs", peaks["lori"] / peaks["authors-style"], "≤", 0.1),
    ]
    table = [
        {"loop": name, "peak MiB": peak / 2**20, "padded / real tokens": padding(rows)[name]}
        for name, peak in peaks.items()
    ]
    report("loop", table, goals=goals, rounds=ROUNDS, shape=SHAPE, micro_batch_tokens=MICRO_BATCH_TOKENS)
    for line in goals:
        print(line)


def check_same_losses(theirs: Sequence[float], ours: Sequence[float]) -> None:
    """Both did the same work."""
    assert all(abs(a - b) < 1e-3 * abs(a) for a, b in zip(theirs, ours, strict=True)), (theirs, ours)


def padding(rows: Sequence[dict[str, list[int]]]) -> dict[str, float]:
    lengths = [len(row["input_ids"]) for row in rows]
    steps = plan_steps(len(rows), CONFIG)
    parts = [
        part
        for step in steps
        for part in plan_micro_batches(lengths, step, max_tokens=MICRO_BATCH_TOKENS, rank=0, num_processes=1)
    ]
    return {
        name: sum(len(batch) * max(lengths[row] for row in batch) for batch in batches) / sum(lengths)
        for name, batches in (("authors-style", steps), ("lori", parts))
    }


if __name__ == "__main__":
    main()
