"""The kinds of results: one row a step."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Step:
    """A kind of result.

    `body` is `module:function` and is imported only where it runs: the driver then needs no torch to find a result
    in the cache. `version` is raised when the step's numbers change. Of two waiting jobs the lower `turn` is first:
    what unlocks others goes before what nothing waits for. `gpus` is how many it computes on, `ALL` that it is
    started as one process for each of the runtime's `num_gpus`.
    """

    body: str
    config: type
    version: int
    turn: int
    gpus: int | None = 0


STEPS = {
    "dataset": Step("tasks.prepare_dataset:prepare_dataset", DataConfig, version=2, turn=0),
    "import": Step("tasks.import_adapter:import_adapter", PublishedConfig, version=1, turn=0),
    "mask": Step("tasks.extract_mask:extract_mask", MaskConfig, version=2, turn=1),
    "random-mask": Step("tasks.extract_mask:draw_mask", RandomMaskConfig, version=1, turn=1),
    "train": Step("tasks.train:train_adapter", TrainConfig, version=3, turn=2, gpus=ALL),
    "merge": Step("tasks.merge:merge_adapters", MergeConfig, version=2, turn=3),
    "evaluate": Step("tasks.evaluate:evaluate", EvalConfig, version=2, turn=4, gpus=ONE),
    "interference": Step("tasks.measure_interference:measure_interference", InterferenceConfig, version=2, turn=5),
    "compare": Step("tasks.compare:compare_rows", CompareConfig, version=2, turn=5),
}
