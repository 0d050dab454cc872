"""Completions of prompts, greedy or sampled, in batches of prompts of similar length.

The samples of a prompt form a tree. Those that have drawn the same tokens so far are one row of the batch, and split
only where they draw differently: at the paper's T = 0.2 a fraction of the work of sampling each by itself. Every
sample draws from a stream of random numbers of its own, so that it is the same whatever else is in the batch.

A row leaves the batch as soon as it ends, or is settled: as soon as nothing that may follow can change its score.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori.base_models.loading import pad_and_eos
from lori.base_models.meta_model import context_of
from lori.choices.domains import Example
from lori.config import EvalConfig
from lori.datasets.tokenise import cut_prompt, encode_prompts

CHECK_EVERY = 4  # tokens; to stop a few tokens late changes no score
CHECK_GROWTH = 8  # and later every 8th of the length, so that all decoding of a text costs as much as a few of it
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # of sentencepiece, for what is not in its vocabulary
INCOMPLETE = "\ufffd"  # what a decoder shows of bytes that are no character, or not one yet


@dataclass(frozen=True)
class Prompt:
    """A row as the model reads it. `is_cut`: it was too long, and lost its end."""

    example: Example
    tokens: list[int]
    is_cut: bool


@dataclass(frozen=True)
class _Branch:
    """The samples of one prompt, by their numbers, that have all drawn `tokens` so far."""

    prompt: int
    tokens: tuple[int, ...]
    samples: tuple[int, ...]


@dataclass(frozen=True)
class _Decoder:
    """`anchor` decodes to one word; the text of `open_ids` can change with what follows them."""

    tokenizer: PreTrainedTokenizerBase
    anchor: list[int]
    open_ids: frozenset[int]


@dataclass(frozen=True)
class _End:
    """What ends a completion: EOS, `max_new_tokens`, or being settled when its length is in `checks`."""

    eos_token_id: int
    max_new_tokens: int
    checks: frozenset[int]
    decoder: _Decoder
    is_settled: Callable[[Example, str], bool]


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvalConfig
) -> list[Prompt]:
    """The prompts of `examples` in tokens, those beyond `max_length` cut as in training.

    Raises:
        ValueError: if a prompt and what is generated after it do not fit into the model's context.
    """
    encoded = encode_prompts([example.prompt for example in examples], tokenizer, add_bos=config.add_bos)
    prompts = []
    for example, tokens in zip(examples, encoded, strict=True):
        kept = cut_prompt(tokens, 0, config)
        prompts.append(Prompt(example, kept, is_cut=len(kept) < len(tokens)))
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    context = context_of(model.config)
    if context is not None and len(longest.tokens) + config.max_new_tokens > context:
        raise ValueError(
            f"Row {longest.example.id} has a prompt of {len(longest.tokens)} tokens: with max_new_tokens ="
            f" {config.max_new_tokens} that is beyond the model's context of {context}. Lower max_new_tokens or"
            " max_length, or take a base model with a longer context."
        )
    return prompts


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    is_settled: Callable[[Example, str], bool],
) -> list[list[str]]:
    """`num_samples` completions of every prompt, in the prompts' order, cut before EOS; the prompt is not in them.

    A completion also ends a few tokens after `is_settled` holds for its example and what there is of it.
    """
    pad, eos = pad_and_eos(tokenizer)
    decoder = _decoder(tokenizer)
    end = _End(eos, config.max_new_tokens, check_lengths(config.max_new_tokens), decoder, is_settled)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
    completions = [[""] * config.num_samples for _ in prompts]
    num_prompts = max(1, config.batch_size // config.num_samples)
    for start in range(0, len(order), num_prompts):
        indices = order[start : start + num_prompts]
        branches = _grow(model, [prompts[index] for index in indices], pad, config, end)
        texts = _decode(decoder, [branch.tokens for branch in branches])
        for branch, text in zip(branches, texts, strict=True):
            for sample in branch.samples:
                completions[indices[branch.prompt]][sample] = text
    return completions


def check_lengths(max_new_tokens: int) -> frozenset[int]:
    """The lengths in tokens at which a completion is asked whether it is settled."""
    lengths, length = [], CHECK_EVERY
    while length < max_new_tokens:
        lengths.append(length)
        length += max(CHECK_EVERY, length // CHECK_GROWTH)
    return frozenset(lengths)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> _Decoder:
    bytes_ = (index for token, index in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token))
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    return _Decoder(tokenizer, anchor, frozenset([*bytes_, *tokenizer.added_tokens_decoder]))


def _decode(decoder: _Decoder, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Texts as they follow a word: at the start of a text, sentencepiece would take a space away."""

    def decode(sequences: list[list[int]]) -> list[str]:
        return decoder.tokenizer.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    (word,) = decode([decoder.anchor])
    return [text[len(word) :] for text in decode([[*decoder.anchor, *tokens] for tokens in sequences])]


def _closed(tokens: Sequence[int], decoder: _Decoder) -> Sequence[int]:
    """`tokens` up to the last one whose text stands, whatever follows.

    A run of sentencepiece's byte tokens is read as one: with another byte, its characters may be none. Added tokens
    can be left out of the text, between two bytes too.
    """
    length = len(tokens)
    while length and tokens[length - 1] in decoder.open_ids:
        length -= 1
    return tokens[:length]


def _grow(
    model: PreTrainedModel, batch: Sequence[Prompt], pad_token_id: int, config: EvalConfig, end: _End
) -> list[_Branch]:
    """The finished branches of every prompt; each of its samples is in one of them."""
    tokens, attention = _pad([prompt.tokens for prompt in batch], pad_token_id, model.device)
    streams = np.stack([random_numbers(config, prompt.example.id) for prompt in batch])
    alive = [_Branch(prompt, (), tuple(range(config.num_samples))) for prompt in range(len(batch))]
    finished: list[_Branch] = []
    cache = None
    while True:
        outputs = model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=(attention.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        draws = _draw(outputs.logits[:, -1], alive, config, streams[:, :, len(alive[0].tokens)])
        children = [
            (row, _Branch(branch.prompt, (*branch.tokens, token), tuple(samples)))
            for row, (branch, drawn) in enumerate(zip(alive, draws, strict=True))
            for token, samples in drawn.items()
        ]
        ended = _have_ended([child for _, child in children], batch, end)
        finished += [child for (_, child), has_ended in zip(children, ended, strict=True) if has_ended]
        going_on = [pair for pair, has_ended in zip(children, ended, strict=True) if not has_ended]
        if not going_on:
            return finished
        cache, rows = outputs.past_key_values, [row for row, _ in going_on]
        if rows != list(range(len(alive))):  # else the whole cache would be copied for nothing
            cache.batch_select_indices(torch.tensor(rows, device=tokens.device))
            attention = attention[rows]
        alive = [child for _, child in going_on]
        tokens = torch.tensor([[child.tokens[-1]] for child in alive], device=attention.device)
        attention = torch.cat([attention, torch.ones_like(tokens)], dim=1)


def _pad(
    prompts: Sequence[list[int]], pad_token_id: int, device: torch.device
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    """Tokens and attention mask, padded on the left: what is generated goes to the right."""
    missing = [max(map(len, prompts)) - len(tokens) for tokens in prompts]
    padded = [[pad_token_id] * more + tokens for more, tokens in zip(missing, prompts, strict=True)]
    mask = [[0] * more + [1] * len(tokens) for more, tokens in zip(missing, prompts, strict=True)]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _have_ended(branches: Sequence[_Branch], batch: Sequence[Prompt], end: _End) -> list[bool]:
    """Which of the branches, all of one length, are complete."""
    length = len(branches[0].tokens)
    ended = [length == end.max_new_tokens or branch.tokens[-1] == end.eos_token_id for branch in branches]
    if length not in end.checks:
        return ended
    texts = _decode(end.decoder, [_closed(branch.tokens, end.decoder) for branch in branches])
    return [
        has_ended or end.is_settled(batch[branch.prompt].example, text.rstrip(INCOMPLETE))
        for has_ended, branch, text in zip(ended, branches, texts, strict=True)
    ]


def random_numbers(config: EvalConfig, example_id: str) -> Float64[np.ndarray, "samples steps"]:
    """What each sample of a row draws with at each step: between 0 and 1, 32 bits of a SHAKE-256 stream of its own.

    A function of seed, row and sample alone, with the same bits on every machine.
    """
    stream = b"".join(
        hashlib.shake_256(f"{config.seed}/{example_id}/{sample}".encode()).digest(4 * config.max_new_tokens)
        for sample in range(config.num_samples)
    )
    words = np.frombuffer(stream, dtype="<u4").reshape(config.num_samples, config.max_new_tokens)
    return (words + 0.5) / 2**32


def _draw(
    logits: Float[Tensor, "rows vocabulary"],
    alive: Sequence[_Branch],
    config: EvalConfig,
    numbers: Float64[np.ndarray, "prompts samples"],
) -> list[dict[int, list[int]]]:
    """The next tokens of every row, with the samples that take each: the first whose share of all reaches the number.

    The sums are over the vocabulary in its own order: sorted by probability, the last bits of two could swap them.
    """
    if config.temperature == 0:
        return [{token: list(row.samples)} for token, row in zip(logits.argmax(-1).tolist(), alive, strict=True)]
    shares = nucleus(logits.float() / config.temperature, config.top_p).cumsum(-1, dtype=torch.float64)
    points = torch.from_numpy(numbers[[row.prompt for row in alive]]).to(logits.device) * shares[:, -1:]
    tokens = torch.searchsorted(shares, points, right=True).tolist()
    draws: list[dict[int, list[int]]] = [{} for _ in alive]
    for row, branch in enumerate(alive):
        for sample in branch.samples:
            draws[row].setdefault(tokens[row][sample], []).append(sample)
    return draws


def nucleus(logits: Float[Tensor, "rows vocabulary"], top_p: float) -> Float[Tensor, "rows vocabulary"]:
    """Probabilities with all but the fewest tokens that make up `top_p` set to 0; not normalised again."""
    probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    is_beyond = probabilities.cumsum(-1) - probabilities >= top_p
    return torch.zeros_like(logits).scatter(-1, order, probabilities.masked_fill(is_beyond, 0.0))
