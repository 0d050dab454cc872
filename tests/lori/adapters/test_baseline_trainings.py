"""How every method trains: in bf16, with gradient checkpointing, and on from a checkpoint."""

import pytest
import torch

from helpers.baseline_models import ROWS, TRAINED, TUNERS, base, config_of, fit, logits, started, trained
from lori.adapters.attach import (
    load_adapter,
    save_adapter,
)
from lori.config import TrainRuntime
from lori.training.batches import collate
from lori.training.trainer import summed_token_loss

pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "full"])
def test_an_adapter_on_a_bf16_base_is_kept_and_learns_in_fp32(name, tmp_path):
    model = started(name, base(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if not p.requires_grad} >= {torch.bfloat16}
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    fit(model, name, dtype="bfloat16", num_epochs=2, learning_rate=1e-4)
    after = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in after} == {torch.float32}
    assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True))
    save_adapter(model, tmp_path, config_of(name, dtype="bfloat16"))
    off = (logits(load_adapter(base(torch.bfloat16), tmp_path)) - logits(model)).abs().max()
    assert off < 0.05 * logits(model).abs().max(), "bf16 has 8 bits"


def test_full_fine_tuning_in_bf16_keeps_fp32_weights_and_computes_in_bf16():
    model = started("full")
    computed = []
    hook = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *call: computed.append(call[2].dtype))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    fit(model, "full", dtype="bfloat16", learning_rate=1e-6, num_epochs=1)
    hook.remove()
    assert set(computed) == {torch.bfloat16}
    weight, old = model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.float32
    step = (weight - old).abs()
    assert ((step > 0) & (step < 2e-6)).float().mean() > 0.9, "steps far below a bf16's last bit are not lost"
    assert logits(model).dtype == torch.float32, "nothing of autocast is left in the model"


def test_full_fine_tuning_in_bf16_is_the_plain_loop_under_autocast():
    ours, reference = started("full"), started("full")
    fit(ours, "full", dtype="bfloat16", learning_rate=1e-3)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = summed_token_loss(reference, collate(ROWS, pad_token_id=0)) / len(ROWS)
        loss.backward()
        for parameter in reference.parameters():
            torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
    expected = dict(reference.named_parameters())
    agree = [(p - expected[key]).abs() < 1e-4 for key, p in ours.named_parameters()]
    assert (
        torch.cat([a.flatten() for a in agree]).float().mean() > 0.99
    )  # Adam's first steps are ±lr, whatever the sign's size


def test_weights_in_bf16_do_not_train_themselves():
    with pytest.raises(ValueError, match="What trains is kept in float32"):
        fit(started("full", base(torch.bfloat16)), "full", dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in TRAINED), ("full", "bfloat16"), ("lori-s", "bfloat16")]
)
def test_gradient_checkpointing_changes_no_bit(name, dtype):
    results = []
    for is_checkpointed in (False, True):
        model, calls = started(name), []
        inner = next(module for key, module in model.named_modules() if key.endswith("layers.1.mlp.act_fn"))
        inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        runtime = TrainRuntime(gradient_checkpointing=is_checkpointed)
        fit(model, name, runtime, dtype=dtype)
        results.append(([p.detach() for p in model.parameters()], len(calls), model))
    (plain, num_plain, _), (checkpointed, num_checkpointed, model) = results
    assert all(torch.equal(new, old) for new, old in zip(checkpointed, plain, strict=True))
    assert num_checkpointed == 2 * num_plain == 6, "three steps, each layer's forward twice"
    assert not model.is_activation_checkpointing
    assert not model.get_input_embeddings()._forward_hooks


class Killed(RuntimeError):
    """Stands for the end of the process."""


@pytest.mark.parametrize("name", ["rslora", "pissa", "lora-fa", *TUNERS])
def test_a_resumed_training_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path, monkeypatch):
    undisturbed = trained(name)
    runtime = TrainRuntime(checkpoint_dir=str(tmp_path / "checkpoints"), checkpoint_every=1)
    calls = iter(range(2))

    def dies_in_the_third_step(model, batch):
        if next(calls, None) is None:
            raise Killed
        return summed_token_loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr("lori.training.trainer.summed_token_loss", dies_in_the_third_step)
        with pytest.raises(Killed):
            fit(started(name), name, runtime)
    resumed = dict(fit(started(name), name, runtime).named_parameters())
    assert all(torch.equal(parameter, resumed[key]) for key, parameter in undisturbed.named_parameters())
