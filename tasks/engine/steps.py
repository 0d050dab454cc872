"""The kinds of results: one row a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lori.config import (
    CompareConfig,
    DataConfig,
    EvalConfig,
    InterferenceConfig,
    MaskConfig,
    MergeConfig,
    PublishedConfig,
    RandomMaskConfig,
    TrainConfig,
)

ONE, ALL = 1, None  # of the GPUs that a training may have
Inputs = Mapping[str, Any]  # by role: a `Cell`, or a list of them


@dataclass(frozen=True)
class Step:
    """A kind of result.

    `body` is `module:function` and is imported only where it runs: the driver then needs no torch to find a result
    in the cache. `version` is raised when the step's numbers change. `name` says for people what a cell is, from its
    config and its inputs. Of two waiting jobs the lower `turn` is first: what unlocks others goes before what nothing
    waits for. `gpus` is how many it computes on, `ALL` that it is started as one process for each GPU of the runtime.
    `forget`, `module:function` too, removes what was kept to go on from, once the result is saved.
    """

    body: str
    config: type
    version: int
    name: Callable[[Any, Inputs], str]
    turn: int
    gpus: int | None = 0
    forget: str | None = None


def _dataset(config: DataConfig, _: Inputs) -> str:
    return f"{config.domain} {config.split}" + ("" if config.num_rows is None else f"  {config.num_rows} rows")


def _mask(config: MaskConfig, inputs: Inputs) -> str:
    apart = f"  apart from {inputs['excluded'].name}" if "excluded" in inputs else ""
    return f"{inputs['adapter'].name}  sparsity {config.sparsity:g} {config.scope}{apart}"


def _train(config: TrainConfig, inputs: Inputs) -> str:
    first = f"{inputs['start_from'].name} → " if "start_from" in inputs else ""
    return f"{first}{config.method} {config.domain}  seed {config.seed}{_variant(config)}"


def _merge(config: MergeConfig, inputs: Inputs) -> str:
    methods = dict.fromkeys(adapter.config.method for adapter in inputs["adapters"])
    return f"{'+'.join(methods)} {config.method}  seed {config.seed}{_variant(config)}"


def _variant(config: TrainConfig | MergeConfig) -> str:
    return f"  {config.variant}" if config.variant else ""


def _evaluate(config: EvalConfig, inputs: Inputs) -> str:
    adapter, dataset = inputs["adapter"], inputs["dataset"].config
    split = "" if dataset.split == "test" else f" {dataset.split}"  # the test's is meant unless another is named
    return f"{adapter.name}  on {config.domain}{split}"


STEPS = {
    "dataset": Step("tasks.prepare_dataset:prepare_dataset", DataConfig, 2, _dataset, turn=0),
    "import": Step("tasks.import_adapter:import_adapter", PublishedConfig, 1, lambda config, _: config.name, turn=0),
    "mask": Step("tasks.extract_mask:extract_mask", MaskConfig, 2, _mask, turn=1),
    "random-mask": Step("tasks.extract_mask:draw_mask", RandomMaskConfig, 1, _mask, turn=1),
    "train": Step(
        "tasks.train:train_adapter", TrainConfig, 3, _train, turn=2, gpus=ALL, forget="tasks.train_callback:forget"
    ),
    "merge": Step("tasks.merge:merge_adapters", MergeConfig, 2, _merge, turn=3),
    "evaluate": Step(
        "tasks.evaluate:evaluate", EvalConfig, 2, _evaluate, turn=4, gpus=ONE, forget="tasks.evaluate:forget"
    ),
    "interference": Step(
        "tasks.measure_interference:measure_interference",
        InterferenceConfig,
        2,
        lambda config, _: f"{config.method}  seed {config.seed}",
        turn=5,
    ),
    "compare": Step("tasks.compare:compare_rows", CompareConfig, 2, lambda *_: "all rows", turn=5),
}
