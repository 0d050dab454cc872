"""A merge that cannot be is refused by name, and leaves what was there."""

import pytest
import torch

from helpers.merge_inputs import COLUMN, ROW, make_adapter, merge_of, products, written
from lori.adapters.attach import apply_adapter
from lori.adapters.merging import merge
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS

SCALE = BASE_MODELS["scale"]


def cut(directory):
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return directory


FIT = {"p": (ROW, COLUMN)}
LONE_A, LONE_BIAS = "base_model.model.q.lora_A.weight", "base_model.model.p.bias"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda out: written(out, FIT, base_model_name_or_path="tall"), r"good of 'scale@\w+', \S*/bad of 'tall'"),
        (lambda out: written(out, FIT, bias="all"), r"bad has bias, which a merge of factors would lose"),
        (lambda out: written(out, FIT, lora_bias=True), r"bad has lora_bias"),
        (lambda out: written(out, FIT, modules_to_save=["lm_head"]), r"bad has modules_to_save"),
        (lambda out: written(out, FIT, kasa_config={"beta": 1}), r"bad has kasa_config"),
        (lambda out: written(out, FIT, tensors={LONE_BIAS: torch.ones(2)}), r"bad has base_model.model.p.bias"),
        (lambda out: written(out, FIT, peft_type="LOHA"), r"bad/adapter_config.json is of a LOHA adapter"),
        (lambda out: written(out, FIT, tensors={LONE_A: ROW}), r"bad is damaged: \S*q.lora_A.weight lacks"),
        (lambda out: written(out, {"p": (ROW, torch.ones(2, 3))}), r"bad: A \[1, 2\] and B \[2, 3\] of p do not fit"),
        (
            lambda out: written(out, {"p": (ROW, torch.ones(3, 1))}),
            r"bad was made for another base model than \S*good",
        ),
        (lambda out: written(out, {"p": (ROW, COLUMN / 0)}), r"bad: p has NaN or infinite entries"),
        (lambda out: written(out, {"p": (ROW * -torch.inf, COLUMN)}), r"bad: p has NaN or infinite entries"),
        (lambda out: cut(written(out, FIT)), r"bad/adapter_model.safetensors is damaged"),
        (lambda out: out, r"bad holds neither an adapter \(adapter_config.json\) nor a model"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_named_and_nothing_is_written(bad, message, tmp_path):
    directories = [written(tmp_path / "good", FIT), bad(tmp_path / "bad")]
    with pytest.raises(ValueError, match=message):
        merge(directories, merge_of("concat", [1.0, 1.0]), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"good", "bad"}


def test_a_failed_merge_leaves_an_older_one_as_it_was(tmp_path):
    out = written(tmp_path / "out", FIT)
    before = {path: path.read_bytes() for path in out.iterdir()}
    late = written(tmp_path / "late", {"p": (ROW, COLUMN), "q": (ROW, torch.nan * COLUMN)})
    with pytest.raises(ValueError, match="late: q has NaN"):
        merge([late], merge_of("concat", [1.0]), out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    merge([out], merge_of("concat", [0.5]), out)  # an adapter may be its own merge's place
    torch.testing.assert_close(products(out)["p"], COLUMN @ ROW)


def test_svd_of_models_without_factors_is_refused(tmp_path):
    directory = make_adapter(tmp_path / "model", "full", "nlu")
    with pytest.raises(ValueError, match=r"svd needs the low-rank factors that \S*/model lacks"):
        merge([directory], merge_of("svd", [1.0]), tmp_path / "out")


def test_a_damaged_model_or_one_of_another_shape_is_refused(tmp_path):
    directory = make_adapter(tmp_path / "model", "full", "nlu")
    wider = apply_adapter(load_base(SCALE), directory)
    wider.resize_token_embeddings(wider.config.vocab_size + 8)
    wider.save_pretrained(str(tmp_path / "wider"))
    with pytest.raises(ValueError, match=r"wider was made for another base model than scale"):
        merge([directory, tmp_path / "wider"], merge_of("linear", [1.0, 1.0]), tmp_path / "out")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        merge([directory], merge_of("linear", [1.0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
