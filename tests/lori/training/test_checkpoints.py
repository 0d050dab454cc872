"""A training goes on from its own checkpoints with the same bits, and from no other's."""

import pytest
import torch

from helpers.trainings import ROWS, Killed, config_of, dying, fit, some_masks, trained, without_times
from lori.adapters.attach import attach, sparsify
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS
from lori.config import TrainRuntime

SCALE = BASE_MODELS["scale"]


@pytest.mark.parametrize("name", ["lora", "lori-d", "lori-s", "full"])
def test_a_resumed_training_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path, monkeypatch):
    def run(checkpoint_dir):
        model = attach(load_base(SCALE), config_of(name))
        if name == "lori-s":
            sparsify(model, some_masks(model))
        runtime = TrainRuntime(micro_batch_tokens=14, checkpoint_dir=checkpoint_dir, checkpoint_every=2)
        return model, fit(model, name, batch_size=3, runtime=runtime)  # 8 rows, one a part: steps of 3, 3, 2 parts

    undisturbed, curve = run(None)
    place = tmp_path / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr("lori.training.trainer.summed_token_loss", dying(after=15))  # in the middle of the sixth step
        with pytest.raises(Killed):
            run(str(place))
    assert sorted(path.name for path in place.glob("checkpoint-*")) == ["checkpoint-4"], "only the newest is kept"
    resumed, resumed_curve = run(str(place))
    expected = trained(undisturbed)
    assert all(torch.equal(value, expected[parameter]) for parameter, value in trained(resumed).items())
    assert without_times(resumed_curve) == without_times(curve)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    runtime = TrainRuntime(checkpoint_dir=str(tmp_path), checkpoint_every=1)
    fit(attach(load_base(SCALE), config_of("lori-d")), "lori-d", runtime=runtime)
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(attach(load_base(SCALE), config_of("lori-d")), "lori-d", rows=ROWS[:-1], runtime=runtime)
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(attach(load_base(SCALE), config_of("lori-d")), "lori-d", learning_rate=0.5, runtime=runtime)


def test_checkpoints_of_another_start_are_refused(tmp_path):
    runtime = TrainRuntime(checkpoint_dir=str(tmp_path), checkpoint_every=1)
    first = attach(load_base(SCALE), config_of("lori-s"))
    masks = some_masks(first)
    fit(sparsify(first, masks), "lori-s", runtime=runtime)
    other_mask = {module: ~mask for module, mask in masks.items()}
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(
            sparsify(attach(load_base(SCALE), config_of("lori-s")), other_mask),
            "lori-s",
            runtime=runtime,
        )
    continued = attach(load_base(SCALE), config_of("lori-s", domain="safety"))  # as attach_trained: another A
    with pytest.raises(ValueError, match="checkpoints of another training"):
        fit(sparsify(continued, masks), "lori-s", runtime=runtime)


def test_a_damaged_note_beside_checkpoints_is_named(tmp_path):
    (tmp_path / "training.json").write_text("")
    with pytest.raises(ValueError, match=r"training.json is damaged"):
        fit(
            attach(load_base(SCALE), config_of("lori-d")),
            "lori-d",
            runtime=TrainRuntime(checkpoint_dir=str(tmp_path)),
        )
