"""Each baseline's own equation: what its paper writes, computed apart from PEFT."""

import json
import math
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.baseline_models import (
    INNER,
    PROJECTIONS,
    ROWS,
    WIDTH,
    base,
    config_of,
    fit,
    logits,
    saved,
    started,
    trained,
)
from lori.adapters.attach import (
    apply_adapter,
    attach,
    attach_trained,
    save_adapter,
)
from lori.adapters.peft_files import open_adapter
from lori.training.batches import collate
from lori.training.trainer import summed_token_loss

pytestmark = pytest.mark.usefixtures("quick_collections")


def mlp_and_attention(model):
    return model.model.layers[1].mlp, model.model.layers[1].self_attn


def test_ia3_scales_keys_values_and_inner_activations(tmp_path):
    saved("ia3", tmp_path)
    file = load_file(tmp_path / "adapter_model.safetensors")
    mlp, attention = mlp_and_attention(apply_adapter(base(), tmp_path))
    old_mlp, old_attention = mlp_and_attention(base())
    scales = {name.split(".")[-2]: tensor.flatten() for name, tensor in file.items() if "layers.1" in name}
    assert set(scales) == {"k_proj", "v_proj", "down_proj"}
    assert all((scale != 1).all() for scale in scales.values())
    for name in ("k_proj", "v_proj"):
        expected = scales[name][:, None] * getattr(old_attention, name).weight
        torch.testing.assert_close(getattr(attention, name).weight, expected)
    torch.testing.assert_close(mlp.down_proj.weight, old_mlp.down_proj.weight * scales["down_proj"])
    assert torch.equal(mlp.up_proj.weight, old_mlp.up_proj.weight)


def test_vera_scales_one_pair_of_random_matrices_for_all_layers(tmp_path):
    saved("vera", tmp_path, rank=5)
    file = load_file(tmp_path / "adapter_model.safetensors")
    a, b = file["base_model.vera_A"], file["base_model.vera_B"]
    assert (a.shape, b.shape) == ((5, INNER), (INNER, 5)), "the largest inputs and outputs"
    mlp, _ = mlp_and_attention(apply_adapter(base(), tmp_path))
    old, _ = mlp_and_attention(base())
    start = "base_model.model.model.layers.1.mlp.down_proj.vera_lambda_"
    scaled = file[start + "b"][:, None] * b[:WIDTH] @ (file[start + "d"][:, None] * a[:, :INNER])
    torch.testing.assert_close(mlp.down_proj.weight - old.down_proj.weight, scaled, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("name", "end"), [("vera", "vera_A"), ("shira", "up_proj.shira_indices")])
def test_what_is_random_is_the_seeds(name, end, tmp_path):
    drawn = []
    for run, seed in enumerate((0, 0, 1)):
        save_adapter(started(name, seed=seed), tmp_path / str(run), config_of(name, seed=seed))
        file = load_file(tmp_path / str(run) / "adapter_model.safetensors")
        drawn.append(next(tensor for key, tensor in sorted(file.items()) if key.endswith(end)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_shira_changes_as_many_entries_as_lora_has(tmp_path):
    saved("shira", tmp_path, rank=1)
    mlp, _ = mlp_and_attention(apply_adapter(base(), tmp_path))
    old, _ = mlp_and_attention(base())
    update = mlp.down_proj.weight - old.down_proj.weight
    assert int((update != 0).sum()) == WIDTH + INNER
    assert torch.linalg.matrix_rank(update) > 2, "high rank, with the parameters of rank 1"


def test_rslora_scales_by_alpha_over_the_root_of_the_rank(tmp_path):
    model = saved("rslora", tmp_path, rank=4, alpha=6)
    with open_adapter(tmp_path) as adapter:
        assert adapter.settings["use_rslora"] is True
        assert adapter.metadata["scaling"] == 6 / math.sqrt(4)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    merged = apply_adapter(base(), tmp_path).model.layers[0].mlp.up_proj
    update = 6 / math.sqrt(4) * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged.weight, layer.base_layer.weight + update)


def test_pissa_starts_from_the_largest_singular_values():
    layer = started("pissa").base_model.model.model.layers[0].mlp.up_proj
    weight = base().model.layers[0].mlp.up_proj.weight
    start = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # s = alpha / rank = 2
    torch.testing.assert_close(layer.base_layer.weight + start, weight, atol=1e-5, rtol=1e-5)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(start)[:2], values[:2])
    torch.testing.assert_close(torch.linalg.svdvals(layer.base_layer.weight)[:4], values[2:6])


def test_a_saved_pissa_is_pefts_own_conversion_to_lora(tmp_path):
    model = get_peft_model(
        base(),
        LoraConfig(
            r=2, lora_alpha=4, init_lora_weights="pissa", target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
        ),
    )
    model.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = "pissa"
    fit(model, "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(tmp_path / "peft"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    saved("pissa", tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / which / "adapter_model.safetensors") for which in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    settings = [json.loads((tmp_path / which / "adapter_config.json").read_text()) for which in ("ours", "peft")]
    for key in ("r", "lora_alpha", "init_lora_weights", "use_rslora"):
        assert settings[0][key] == settings[1][key]


def test_pissa_goes_on_from_the_very_a_and_b_that_it_had(tmp_path):
    first = saved("pissa", tmp_path)
    second = dict(
        attach_trained(base(), tmp_path, config_of("pissa", rank=7)).named_parameters()
    )  # 7: the file says 2
    assert all(torch.equal(parameter, second[key]) for key, parameter in first.named_parameters())


def test_lora_fas_steps_are_those_of_pefts_optimizer(monkeypatch):
    monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda: False)  # or it would multiply in bf16
    config = config_of("lora-fa", learning_rate=1e-3, rank=3)
    ours, theirs = started("lora-fa", rank=3), started("lora-fa", rank=3)
    fit(ours, "lora-fa", learning_rate=1e-3, rank=3)
    optimizer = create_lorafa_optimizer(theirs, config.rank, config.alpha, config.learning_rate)
    optimizer.param_groups[0]["eps"] = 1e-8
    for _ in range(3):
        theirs.zero_grad()
        (summed_token_loss(theirs, collate(ROWS, pad_token_id=0)) / len(ROWS)).backward()
        for parameter in theirs.parameters():
            if parameter.grad is not None:
                torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[key], atol=2e-5, rtol=0)  # steps are of 1e-3


def test_lora_fa_is_not_adam_on_lori_ds_gradient():
    """What the test above would not notice if A Aᵀ were a multiple of the identity."""
    assert (logits(trained("lora-fa", rank=3)) - logits(trained("lori-d", rank=3))).abs().max() > 1e-3


def test_ia3_finds_the_inner_activations_of_an_mlp_that_is_named_like_its_attention():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, that GPT-2's weights are transposed
        adapted = attach(model, config_of("ia3", projections=("c_attn", "c_proj", "c_fc")))
    vectors = {key.removesuffix(".ia3_l.default"): p.numel() for key, p in adapted.named_parameters() if "ia3" in key}
    start = "base_model.model.transformer.h.0"
    assert vectors == {f"{start}.attn.c_attn": 3 * 16, f"{start}.mlp.c_proj": 4 * 16}


def test_ia3_refuses_names_that_it_cannot_read():
    with pytest.raises(ValueError, match="none of up_proj, gate_proj is known as such"):
        attach(base(), config_of("ia3", projections=("up_proj", "gate_proj")))
