"""Completions of prompts, greedy or sampled, in batches of prompts of similar length.

The samples of a prompt form a tree. Those that have drawn the same tokens so far are one row of the batch, with a
count, and split only where they draw differently: the same distribution as sampling each by itself, and at the
paper's T = 0.2 a fraction of the work. A row leaves the batch as soon as it ends.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori.config import EvalConfig
from lori.models import pad_and_eos


@dataclass(frozen=True)
class _Branch:
    """`count` samples of one prompt that have all drawn `tokens` so far."""

    prompt: int
    tokens: tuple[int, ...]
    count: int


@torch.inference_mode()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], config: EvalConfig
) -> list[list[str]]:
    """`num_samples` completions of every prompt, in the prompts' order, cut before EOS; the prompt is not in them."""
    token_ids = tokenizer(list(prompts))["input_ids"]
    order = sorted(range(len(prompts)), key=lambda index: len(token_ids[index]))
    completions: list[list[str]] = [[] for _ in prompts]
    _, eos = pad_and_eos(tokenizer)
    generator = torch.Generator(model.device).manual_seed(config.seed)
    for start in range(0, len(order), config.batch_size):
        indices = order[start : start + config.batch_size]
        batch = tokenizer.pad({"input_ids": [token_ids[index] for index in indices]}, return_tensors="pt")
        branches = _grow(model, batch.to(model.device), eos, config, generator)
        texts = tokenizer.batch_decode([list(branch.tokens) for branch in branches], skip_special_tokens=True)
        for branch, text in zip(branches, texts, strict=True):
            completions[indices[branch.prompt]] += [text] * branch.count
    return completions


def _grow(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    eos_token_id: int,
    config: EvalConfig,
    generator: torch.Generator,
) -> list[_Branch]:
    """The finished branches of every prompt of a left-padded batch; the counts of a prompt add up to `num_samples`."""
    tokens, attention = batch["input_ids"], batch["attention_mask"]
    alive = [_Branch(prompt, (), config.num_samples) for prompt in range(len(tokens))]
    finished: list[_Branch] = []
    cache = None
    for step in range(config.max_new_tokens):
        positions = (attention.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        outputs = model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        children = [
            (row, _Branch(branch.prompt, (*branch.tokens, token), count))
            for row, (branch, draws) in enumerate(
                zip(alive, _draw(outputs.logits[:, -1], alive, config, generator), strict=True)
            )
            for token, count in draws.items()
        ]
        is_last = step == config.max_new_tokens - 1
        ended = [is_last or child.tokens[-1] == eos_token_id for _, child in children]
        finished += [child for (_, child), end in zip(children, ended, strict=True) if end]
        going_on = [pair for pair, end in zip(children, ended, strict=True) if not end]
        if not going_on:
            break
        alive = [child for _, child in going_on]
        parents = torch.tensor([row for row, _ in going_on], device=tokens.device)
        cache = outputs.past_key_values
        cache.batch_select_indices(parents)
        tokens = torch.tensor([[child.tokens[-1]] for child in alive], device=tokens.device)
        attention = torch.cat([attention[parents], torch.ones_like(tokens)], dim=1)
    return finished


def _draw(
    logits: Float[Tensor, "rows vocabulary"], alive: Sequence[_Branch], config: EvalConfig, generator: torch.Generator
) -> list[dict[int, int]]:
    """The next tokens of every row, with how many of its samples take each."""
    if config.temperature == 0:
        return [{token: branch.count} for token, branch in zip(logits.argmax(-1).tolist(), alive, strict=True)]
    probabilities = nucleus(logits.float() / config.temperature, config.top_p)
    most = max(branch.count for branch in alive)
    draws = torch.multinomial(probabilities, most, replacement=True, generator=generator).tolist()
    return [dict(Counter(row[: branch.count])) for row, branch in zip(draws, alive, strict=True)]


def nucleus(logits: Float[Tensor, "rows vocabulary"], top_p: float) -> Float[Tensor, "rows vocabulary"]:
    """Probabilities with all but the fewest tokens that make up `top_p` set to 0; not normalised again."""
    probabilities, order = logits.softmax(-1).sort(-1, descending=True)
    is_beyond = probabilities.cumsum(-1) - probabilities >= top_p
    return torch.zeros_like(logits).scatter(-1, order, probabilities.masked_fill(is_beyond, 0.0))
