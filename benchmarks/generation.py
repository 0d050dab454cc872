"""Completions that stop once their score cannot change, beside ones that go on to their end: time, and tokens.

    python -m benchmarks.generation      # 2 minutes; writes benchmarks/generation.json

The scale model on its own domains, up to 256 tokens a response. As it is, it ends most responses itself: there the
looking must cost nothing. With a line break wherever it would end, it goes on with another text, as base models and
badly merged ones do. Both ways the scores are the same, or this fails.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measure import goal, interleave, ratio, report
from lori.base_models.loading import load_base, load_tokenizer, pad_and_eos
from lori.base_models.resolve import BASE_MODELS
from lori.choices.domains import DOMAINS, Example
from lori.config import EvalConfig
from lori.evaluation.generation import Prompt, complete, prepare
from lori.evaluation.scoring import SCORERS
from lori.scale_model import rows

SCALE = BASE_MODELS["scale"]

ROUNDS, NUM_ROWS, NUM_SAMPLES, MAX_NEW_TOKENS = 3, 16, 3, 256
FORBIDDEN = -1e9  # of a logit
ENDS, NEVER_ENDS = "ends its responses", "never ends"


def models(tokenizer: PreTrainedTokenizerBase) -> dict[str, PreTrainedModel]:
    (line_break,), (_, end) = tokenizer("\n", add_special_tokens=False)["input_ids"], pad_and_eos(tokenizer)

    def go_on(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        changed = logits.clone()
        changed[..., line_break] = logits[..., [line_break, end]].logsumexp(-1)
        changed[..., end] = FORBIDDEN
        return changed

    as_it_is, endless = load_base(SCALE), load_base(SCALE)
    endless.lm_head.register_forward_hook(go_on)
    return {ENDS: as_it_is, NEVER_ENDS: endless}


def eval_config(domain: str) -> EvalConfig:
    row = DOMAINS[domain]
    return EvalConfig(
        domain=domain,
        num_samples=NUM_SAMPLES if row.temperature else 1,
        temperature=row.temperature,
        top_p=row.top_p,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=NUM_ROWS * NUM_SAMPLES,
        max_length=160,
        max_prompt_length=112,
        seed=0,
    )


def never(_example: Example, _text: str) -> bool:
    return False


def compare(domain: str, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One row of the table."""
    config, scorer = eval_config(domain), SCORERS[domain]
    examples = rows(domain, "test", NUM_ROWS)
    prompts: list[Prompt] = prepare(model, tokenizer, examples, config)
    works = {
        kind: partial(complete, model, tokenizer, prompts, config, is_settled)
        for kind, is_settled in (("to the end", never), ("stopping", scorer.is_settled))
    }
    (whole, all_tokens), (stopped, tokens) = (counted(model, work) for work in works.values())
    assert scorer.score(examples, whole) == scorer.score(examples, stopped), (domain, name)
    return {
        "domain": domain,
        "model": name,
        "tokens stopping / to the end": tokens / all_tokens,
        "time to the end / stopping": ratio(interleave(works, ROUNDS), "to the end", "stopping"),
    }


def counted(model: PreTrainedModel, work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` gives, and how many tokens of responses the model computes for it."""
    counts: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: counts.append(len(inputs["input_ids"])), with_kwargs=True
    )
    done = work()
    hook.remove()
    return done, sum(counts)


def main() -> None:
    tokenizer = load_tokenizer(SCALE)
    table = [
        compare(domain, name, model, tokenizer) for name, model in models(tokenizer).items() for domain in DOMAINS
    ]
    speedups = {
        name: median(row["time to the end / stopping"] for row in table if row["model"] == name)
        for name in (ENDS, NEVER_ENDS)
    }
    goals = [
        goal(f"model that {NEVER_ENDS}: time to the end / stopping, median", speedups[NEVER_ENDS], "≥", 2.0),
        goal(f"model that {ENDS}: time stopping / to the end, median", 1 / speedups[ENDS], "≤", 1.05),
    ]
    report("generation", table, goals=goals, rounds=ROUNDS, max_new_tokens=MAX_NEW_TOKENS, num_rows=NUM_ROWS)
    for line in goals:
        print(line)


if __name__ == "__main__":
    main()
