"""Rows of a domain, examples to tokens, and tokens to batches."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lori.config import DataConfig, EvalConfig, TrainConfig
from lori.domains import Example
from lori.loading import pad_and_eos
from lori.paper.rows import paper_rows
from lori.scale_model import rows as miniature_rows

Rows = Sequence[dict[str, list[int]]]  # tokenised: `input_ids` and `labels` of each
IGNORED = -100  # torch's cross_entropy skips this label


def _miniature(config: DataConfig, _data_dir: Path | None) -> list[Example]:
    if config.num_rows is None:
        raise ValueError("The scale model's rows are drawn, without an end: say how many (num_rows).")
    return miniature_rows(config.domain, config.split, config.num_rows)


SUITES: dict[str, Callable[[DataConfig, Path | None], list[Example]]] = {
    "miniature": _miniature,
    "paper": paper_rows,
}


def make_rows(config: DataConfig, data_dir: Path | None = None) -> list[Example]:
    """The rows that `config` names. Real ones lie in `data_dir`, or are fetched where it is None.

    Raises:
        ValueError, DataUnavailable: as the suite's function says.
    """
    return SUITES[config.suite](config, data_dir)


def save_rows(examples: Sequence[Example], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(example), sort_keys=True) + "\n" for example in examples))


def load_rows(path: Path) -> list[Example]:
    """What `save_rows` wrote."""
    return [Example(**json.loads(line)) for line in path.read_text().splitlines()]


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, add_bos: bool) -> list[list[int]]:
    """The tokens of each prompt, after a begin token if `add_bos` and the tokenizer itself would put one there.

    An end token that some tokenizers add behind every text is left out: the response is still to come.
    """
    begin = tokenizer("a")["input_ids"][:1] if add_bos else []
    bos = begin if begin == [tokenizer.bos_token_id] else []
    return [[*bos, *tokens] for tokens in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]


def cut_prompt(prompt: list[int], num_response: int, config: TrainConfig | EvalConfig) -> list[int]:
    """`prompt`, or its first `max_prompt_length` tokens if it has no room beside `num_response` others."""
    return prompt if len(prompt) + num_response <= config.max_length else prompt[: config.max_prompt_length]


def tokenise(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, config: TrainConfig
) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each prompt and response: both, then EOS; only response and EOS have labels.

    Where both are longer than `max_length`, the prompt keeps its first `max_prompt_length` tokens and the response
    what then has room (paper: 512 and 256). The authors (tokenize_batch_element, keep_start) leave such a response 256
    tokens, also where its prompt is short.
    """
    prompts = encode_prompts([prompt for prompt, _ in pairs], tokenizer, add_bos=config.add_bos)
    responses = tokenizer([response for _, response in pairs], add_special_tokens=False)["input_ids"]
    _, eos = pad_and_eos(tokenizer)
    rows = []
    for full_prompt, response in zip(prompts, responses, strict=True):
        answer = [*response, eos]
        prompt = cut_prompt(full_prompt, len(answer), config)
        rows.append(
            {
                "input_ids": (prompt + answer)[: config.max_length],
                "labels": ([IGNORED] * len(prompt) + answer)[: config.max_length],
            }
        )
    return rows


def plan_steps(num_rows: int, config: TrainConfig) -> list[list[int]]:
    """The rows of every step of all epochs: an epoch is shuffled and cut into batches, the last of which may be small.

    A function of its arguments alone, on every machine and for any number of processes.
    """
    steps = []
    for epoch in range(config.num_epochs):
        order = list(range(num_rows))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        steps += [order[start : start + config.batch_size] for start in range(0, num_rows, config.batch_size)]
    return steps


def plan_micro_batches(
    lengths: Sequence[int], batch: Sequence[int], *, max_tokens: int, rank: int, num_processes: int
) -> list[list[int]]:
    """The share of `batch` that one process computes, in parts of rows of like length.

    Which rows make a batch stays random, as in the paper: only what is padded together is grouped by length, so the
    batch's gradient is the same. A part holds at most `max_tokens` with its padding, or a single row. Every process
    has as many parts (collectives need that); the last may be empty.
    """
    order = sorted(batch, key=lambda row: (-lengths[row], row))
    longest = order[::num_processes]  # position by position at least as long as any other process's share
    cuts = [0]
    for position in range(1, len(longest)):
        if (position + 1 - cuts[-1]) * lengths[longest[cuts[-1]]] > max_tokens:
            cuts.append(position)
    share = order[rank::num_processes]
    return [share[start:end] for start, end in pairwise([*cuts, len(longest)])]


def collate(rows: Sequence[dict[str, list[int]]], *, pad_token_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right; padding is neither attended to nor scored. No rows are one row of padding."""
    rows = rows or [{"input_ids": [pad_token_id], "labels": [IGNORED]}]
    length = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (length - len(row[name])) for row in rows])

    attention = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    return {
        "input_ids": padded("input_ids", pad_token_id),
        "labels": padded("labels", IGNORED),
        "attention_mask": attention,
    }
