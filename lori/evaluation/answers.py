"""Score one model on one benchmark: completions, then the domain's scorer. Every test row is scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori.choices.domains import Example
from lori.config import EvalConfig
from lori.evaluation.generation import complete, prepare
from lori.evaluation.humaneval_sandbox import check_bubblewrap
from lori.evaluation.scoring import SCORERS, needs_sandbox

Scored = tuple[dict[str, float], list[dict[str, Any]]]


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvalConfig
) -> Scored:
    """The domain's metrics in percent, and one record a row: its prompt, its completions and what they scored.

    `num_cut_prompts` counts the rows whose prompt was too long, and lost its end. A completion stops where nothing
    that follows can change its score.

    Raises:
        ValueError: as `generation.prepare`.
        RuntimeError: if the rows' programs can't be contained.
    """
    return rescore(examples, generate(model, tokenizer, examples, config), config.domain)


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvalConfig
) -> list[dict[str, Any]]:
    """The records of `evaluate` before they are scored: what takes the time, to be kept before anything goes wrong.

    Raises:
        ValueError, RuntimeError: as `evaluate`.
    """
    prompts = prepare(model, tokenizer, examples, config)
    if any(map(needs_sandbox, examples)):
        check_bubblewrap()  # now, and not after hours of generation
    completions = complete(model, tokenizer, prompts, config, SCORERS[config.domain].is_settled)
    return [
        {"id": example.id, "prompt": example.prompt, "prompt_is_cut": prompt.is_cut, "completions": texts}
        for example, prompt, texts in zip(examples, prompts, completions, strict=True)
    ]


def rescore(examples: Sequence[Example], records: Sequence[Mapping[str, Any]], domain: str) -> Scored:
    """What `evaluate` gives, from its records or those of `generate`, and without the model.

    Raises:
        ValueError: if the records are of other rows than `examples`.
    """
    rows = [(example.id, example.prompt) for example in examples]
    if rows != [(record["id"], record["prompt"]) for record in records]:
        raise ValueError("The records are of other rows, or in another order: give the rows that they were made from.")
    completions = [record["completions"] for record in records]
    return _scored(domain, examples, completions, [record["prompt_is_cut"] for record in records])


def _scored(
    domain: str, examples: Sequence[Example], completions: Sequence[Sequence[str]], are_cut: Sequence[bool]
) -> Scored:
    scores = SCORERS[domain].score(examples, completions)
    records = [
        {"id": example.id, "prompt": example.prompt, "prompt_is_cut": is_cut, "completions": texts, **score}
        for example, is_cut, texts, score in zip(examples, are_cut, completions, scores, strict=True)
    ]
    metrics = SCORERS[domain].summarise(examples, scores)
    return {**metrics, f"{domain}/num_cut_prompts": float(sum(are_cut))}, records
