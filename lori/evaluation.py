"""Score one model on one benchmark: completions, then the domain's scorer. Every test row is scored."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lori.config import EvalConfig
from lori.domains import Example
from lori.generation import complete
from lori.scoring import SCORERS


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvalConfig
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The domain's metrics in percent, and one record a row: its id, its completions and what they scored."""
    completions = complete(model, tokenizer, [example.prompt for example in examples], config)
    scorer = SCORERS[config.domain]
    scores = scorer.score(examples, completions)
    records = [
        {"id": example.id, "prompt": example.prompt, "completions": texts, **score}
        for example, texts, score in zip(examples, completions, scores, strict=True)
    ]
    return scorer.summarise(examples, scores), records
