"""Token counts of a dataset, and what is computed at once: the very parts that training and generation will make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from lori.choices.domains import Example
from lori.config import EvalConfig, TrainConfig
from lori.datasets.tokenise import IGNORED, cut_prompt, encode_prompts, tokenise
from lori.plan.activations import Part
from lori.plan.costs import Work
from lori.training.batches import plan_micro_batches, plan_steps


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each row of a dataset: its prompt's, and those with a label in training (response and EOS)."""

    prompts: tuple[int, ...]
    labels: tuple[int, ...]


def count_tokens(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, config: TrainConfig | EvalConfig
) -> TokenCounts:
    """The tokens of each row as it trains (`data.tokenise`), or of its prompt as it is read (`generation.prepare`)."""
    if isinstance(config, EvalConfig):
        encoded = encode_prompts([example.prompt for example in examples], tokenizer, add_bos=config.add_bos)
        return TokenCounts(tuple(len(cut_prompt(tokens, 0, config)) for tokens in encoded), (0,) * len(encoded))
    rows = [row["labels"] for row in tokenise([example.pair for example in examples], tokenizer, config)]
    prompts = tuple(row.count(IGNORED) for row in rows)
    return TokenCounts(prompts, tuple(len(row) - prompt for row, prompt in zip(rows, prompts, strict=True)))


def training_parts(
    counts: TokenCounts, config: TrainConfig, *, max_tokens: int, num_processes: int
) -> tuple[Work, tuple[Part, ...]]:
    """Sums over all micro-batches of all processes, and the largest of them."""
    # Methods and learning rates share the result: nothing else decides how rows are batched
    batches = replace(config, method="", learning_rate=0.0, rank=1, alpha=1, projections=(), dtype="", variant="")
    return _training_parts(counts, batches, max_tokens, num_processes)


@lru_cache(maxsize=256)
def _training_parts(
    counts: TokenCounts, config: TrainConfig, max_tokens: int, num_processes: int
) -> tuple[Work, tuple[Part, ...]]:
    lengths = [prompt + labels for prompt, labels in zip(counts.prompts, counts.labels, strict=True)]
    parts = [
        _part(rows, lengths, counts.labels)
        for batch in plan_steps(len(lengths), config)
        for rank in range(num_processes)
        for rows in plan_micro_batches(lengths, batch, max_tokens=max_tokens, rank=rank, num_processes=num_processes)
    ]
    work = Work(
        num_tokens=config.num_epochs * sum(lengths),
        num_positions=sum(part.num_positions for part in parts),
        num_pairs=sum(part.num_positions * part.length for part in parts),
        num_logits=sum(part.num_labels for part in parts),
    )
    return work, _largest(parts)


def _part(rows: list[int], lengths: list[int], labels: tuple[int, ...]) -> Part:
    """A process that has no row left computes one of padding."""
    of_rows = [lengths[row] for row in rows] or [1]
    num_labels = sum(labels[row] for row in rows)
    return Part(len(of_rows), max(of_rows), num_labels, is_padded=min(of_rows) < max(of_rows))


def _largest(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Those that no other one exceeds in all that memory depends on."""
    kept: list[Part] = []
    for part in sorted(set(parts), key=lambda part: (part.num_positions, part.num_labels), reverse=True):
        exceeded = any(
            other.num_labels >= part.num_labels and other.is_padded >= part.is_padded and other.length >= part.length
            for other in kept
        )
        if not exceeded:
            kept.append(part)
    return tuple(kept)


def prompt_parts(counts: TokenCounts, config: EvalConfig) -> list[Part]:
    """The batches of `generation.complete`: prompts sorted by length, with room for all samples of each."""
    prompts = sorted(counts.prompts)
    num_prompts = max(1, config.batch_size // config.num_samples)
    batches = [prompts[start : start + num_prompts] for start in range(0, len(prompts), num_prompts)]
    return [Part(len(batch), batch[-1], 0, is_padded=batch[0] < batch[-1]) for batch in batches]
