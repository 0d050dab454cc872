"""The one key: what changes it and what does not."""

from dataclasses import replace

import pytest

from lori.config import MaskConfig
from tasks.results import Handle, canonical, step_key

MASK = MaskConfig(sparsity=0.9, scope="model")
ADAPTER = Handle("adapter", "train-v1-abc", "lori-d-nlu", "run-1", "models:/m-1", "f00")


def test_a_key_is_pinned():
    """A refactor that changes keys throws away weeks of training: raise a step's version instead."""
    assert step_key("mask", 1, MASK, {"adapter": ADAPTER}) == "mask-v1-72a1c1c66fef17ae17b1026c6776f1d3"


@pytest.mark.parametrize(
    "other",
    [
        step_key("mask", 2, MASK, {"adapter": ADAPTER}),
        step_key("train", 1, MASK, {"adapter": ADAPTER}),
        step_key("mask", 1, replace(MASK, sparsity=0.8), {"adapter": ADAPTER}),
        step_key("mask", 1, MASK, {"adapter": replace(ADAPTER, key="train-v1-abd")}),
        step_key("mask", 1, MASK, {}),
    ],
)
def test_step_version_config_and_inputs_are_in_the_key(other):
    assert other != step_key("mask", 1, MASK, {"adapter": ADAPTER})


def test_where_a_handle_lies_and_what_it_measured_is_not_in_the_key():
    moved = replace(ADAPTER, run_id="run-2", uri="models:/m-2", metrics={"final_loss": 1.0}, sha256="f01")
    assert step_key("mask", 1, MASK, {"adapter": moved}) == step_key("mask", 1, MASK, {"adapter": ADAPTER})


def test_order_of_names_does_not_matter_and_order_of_lists_does():
    assert canonical({"b": 1, "a": (1, 2)}) == {"a": [1, 2], "b": 1}
    assert list(canonical({"b": 1, "a": 2})) == ["a", "b"]
    assert canonical([1, 2]) != canonical([2, 1])


def test_what_has_no_stable_text_is_refused():
    with pytest.raises(TypeError, match="set has no stable key"):
        canonical({"names": {"a", "b"}})
