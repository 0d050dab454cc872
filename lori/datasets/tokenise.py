"""Rows of a domain, examples to tokens, and tokens to batches."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lori.base_models.loading import pad_and_eos
from lori.config import EvalConfig, TrainConfig

Rows = Sequence[dict[str, list[int]]]  # tokenised: `input_ids` and `labels` of each
IGNORED = -100  # torch's cross_entropy skips this label


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
