"""Rows of a domain, examples to tokens, and tokens to batches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lori.config import DataConfig, TrainConfig
from lori.domains import Example
from lori.models import pad_and_eos
from lori.scale_model import rows as miniature_rows

IGNORED = -100  # torch's cross_entropy skips this label
SUITES: dict[str, Callable[[str, str, int], list[Example]]] = {"miniature": miniature_rows}


def make_rows(config: DataConfig) -> list[Example]:
    """The rows that `config` names."""
    return SUITES[config.suite](config.domain, config.split, config.num_rows)


def save_rows(examples: Sequence[Example], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(example), sort_keys=True) + "\n" for example in examples))


def load_rows(path: Path) -> list[Example]:
    """What `save_rows` wrote."""
    return [Example(**json.loads(line)) for line in path.read_text().splitlines()]


def tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, config: TrainConfig
) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each example: prompt, response, EOS; only response and EOS have labels.

    Prompt and whole are cut at `max_prompt_length` and `max_length` tokens and keep their start (paper: 256 and 512).
    """
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    responses = tokenizer([example.response for example in examples], add_special_tokens=False)["input_ids"]
    _, eos = pad_and_eos(tokenizer)
    rows = []
    for full_prompt, response in zip(prompts, responses, strict=True):
        prompt = full_prompt[: config.max_prompt_length]
        answer = [*response, eos]
        rows.append(
            {
                "input_ids": (prompt + answer)[: config.max_length],
                "labels": ([IGNORED] * len(prompt) + answer)[: config.max_length],
            }
        )
    return rows


def collate(rows: Sequence[dict[str, list[int]]], *, pad_token_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right; padding is neither attended to nor scored."""
    length = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (length - len(row[name])) for row in rows])

    attention = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    return {
        "input_ids": padded("input_ids", pad_token_id),
        "labels": padded("labels", IGNORED),
        "attention_mask": attention,
    }
