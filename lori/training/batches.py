"""Which rows make a step, and how a step is cut into padded micro-batches."""

import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lori.config import TrainConfig
from lori.datasets.tokenise import IGNORED


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
