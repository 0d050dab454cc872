"""Model cards: the README.md beside an adapter's files, so that they can be pushed to the hub as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from lori.base_models.resolve import BASE_MODELS, HUB_ID
from lori.choices.domains import DOMAINS
from lori.evaluation.intervals import QUANTILE

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2504.07448"
RECIPE = ("rank", "alpha", "learning_rate", "num_epochs", "batch_size", "max_length", "seed", "sparsity", "scope")
MERGED = ("weights", "density", "match_norms", "seed")
UNSCORED = "No score yet."
INTRODUCTION = {
    "adapter": "A PEFT adapter, trained by **{method}** on **{domain}**.",
    "merge": "One PEFT adapter of several: **{adapter_method}** adapters of {domains}, merged by **{method}**.",
    "full": "A whole model, trained by **{method}** on **{domain}**.",
}
LOAD = """\
```python
import mlflow
from peft import PeftModel
{imports}

base = {base}
adapter = PeftModel.from_pretrained(base, mlflow.artifacts.download_artifacts("{uri}"))
```"""


@dataclass(frozen=True)
class Card:
    """What a card tells. `kind` is a row of `INTRODUCTION`; `base_model` is `name@revision`; `uri` loads the adapter.

    `config` is the flattened config that made it, `scores` the metrics that its run has by now, in percent, each with
    its standard error as `<metric>_se`.
    """

    kind: str
    name: str
    uri: str
    base_model: str
    licence: str | None
    config: Mapping[str, Any]
    scores: Mapping[str, float]


def to_markdown(card: Card) -> str:
    """The README.md: the hub's YAML header, what the adapter is, its scores with 95 % intervals, how to load it."""
    parts = [
        f"---\n{_header(card)}\n---",
        f"# {card.name}",
        f"{INTRODUCTION[card.kind].format(**card.config)} See [LoRI]({PAPER}).",
        "## Made with",
        _table(("setting", "value"), _recipe(card)),
        "## Scores",
        _scores(card.scores),
        *([] if card.kind == "full" else ["## Load it", _snippet(card)]),
    ]
    return "\n\n".join(parts) + "\n"


def _header(card: Card) -> str:
    name, revision = _source(card)
    more: dict[str, Any] = {"base_model_revision": revision} if revision else {}
    data = ModelCardData(
        base_model=name,
        base_model_relation="merge" if card.kind == "merge" else "adapter",
        library_name="transformers" if card.kind == "full" else "peft",
        license=card.licence or "unknown",
        pipeline_tag="text-generation",
        tags=["lori", "lora", "arxiv:2504.07448"],
        **more,
    )
    return data.to_yaml()


def _source(card: Card) -> tuple[str, str | None]:
    """The hub's id of the base and its revision; of one that is no hub's, its name alone."""
    name, _, revision = card.base_model.partition("@")
    source = BASE_MODELS[name].source if name in BASE_MODELS else name
    return (source, revision) if HUB_ID.fullmatch(source) else (name, None)


def _recipe(card: Card) -> list[tuple[str, str]]:
    names = MERGED if card.kind == "merge" else RECIPE
    rows = [("base model", f"`{card.base_model}`")]
    return rows + [(name, _text(card.config[name])) for name in names if card.config.get(name) is not None]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _scores(scores: Mapping[str, float]) -> str:
    """A row a metric; the headline of each domain first."""
    headlines = [domain.headline for domain in DOMAINS.values()]
    measured = [name for name in scores if f"{name}_se" in scores]
    ordered = [name for name in headlines if name in measured]
    ordered += sorted(name for name in measured if name not in headlines)
    rows = [(f"`{name}`", f"{scores[name]:.1f}", interval(scores[name], scores[f"{name}_se"])) for name in ordered]
    return _table(("metric, percent", "score", "95 % interval"), rows) if rows else UNSCORED


def interval(score: float, error: float) -> str:
    """The normal 95 % interval of a percentage with that standard error."""
    low, high = max(0.0, score - QUANTILE * error), min(100.0, score + QUANTILE * error)
    return f"{low:.1f} to {high:.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


def _snippet(card: Card) -> str:
    name, revision = _source(card)
    if revision:
        imports = "from transformers import AutoModelForCausalLM"
        base = f'AutoModelForCausalLM.from_pretrained("{name}", revision="{revision}")'
    else:
        imports = "from lori.base_models.loading import load_base\nfrom lori.base_models.resolve import base_model"
        base = f'load_base(base_model("{name}"))'
    return LOAD.format(imports=imports, base=base, uri=card.uri)
