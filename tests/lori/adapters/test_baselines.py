"""Every method on a small random model: what trains, and what its files give again."""

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.baseline_models import (
    INNER,
    KEYS,
    LAYERS,
    SHAPES,
    TRAINED,
    TUNERS,
    assert_same_function,
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
    load_adapter,
    num_trainable,
    reset_b,
    save_adapter,
    sparsify,
)
from lori.adapters.attached import lora_layers
from lori.adapters.compact import save_compact
from lori.adapters.masks import extract_masks
from lori.adapters.merging import merge
from lori.choices.methods import METHODS, recipe_of
from lori.config import MaskConfig, MergeConfig

pytestmark = pytest.mark.usefixtures("quick_collections")


# What each trains (its paper): the end of a parameter's name
TRAINS = {
    "full": ("weight",),
    "lora": ("lora_A.default.weight", "lora_B.default.weight"),
    "rslora": ("lora_A.default.weight", "lora_B.default.weight"),
    "pissa": ("lora_A.default.weight", "lora_B.default.weight"),
    "dora": ("lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"),
    "lori-d": ("lora_B.default.weight",),
    "lori-s": ("lora_B.default.values",),
    "lora-fa": ("lora_B.default.weight",),
    "ia3": ("ia3_l.default",),
    "vera": ("vera_lambda_b.default", "vera_lambda_d.default"),
    "shira": ("shira_weight.default",),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_moves_what_the_methods_paper_trains_and_nothing_else(name):
    model = started(name)
    before = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    fit(model, name)
    moved = {n for n, t in [*model.named_parameters(), *model.named_buffers()] if not torch.equal(t, before[n])}
    assert moved == {n for n, _ in model.named_parameters() if n.endswith(TRAINS[recipe_of(name)])}


def test_the_number_of_trainable_parameters_is_the_papers():
    inputs, outputs = (LAYERS * sum(shape[side] for shape in SHAPES.values()) for side in (0, 1))
    r, num_linears = 2, LAYERS * len(SHAPES)
    expected = {
        "lora": r * (inputs + outputs),
        "rslora": r * (inputs + outputs),
        "pissa": r * (inputs + outputs),
        "shira": r * (inputs + outputs),
        "lora-fa": r * outputs,
        "lori-d": r * outputs,
        "ia3": LAYERS * (KEYS + KEYS + INNER),
        "vera": num_linears * r + outputs,
    }
    assert {name: num_trainable(started(name)) for name in expected} == expected


def test_vera_of_llama_2_7b_has_the_papers_1_4_million():
    """Rank 256, all linears but the head (2310.11454, instruction tuning)."""
    with torch.device("meta"):
        llama_2 = LlamaForCausalLM(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32))
        assert round(num_trainable(attach(llama_2, config_of("vera", rank=256))) / 1e6, 1) == 1.4


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_saved_gives_the_trained_model_again_attached_or_merged(name, tmp_path):
    model = saved(name, tmp_path)
    assert (logits(model) - logits(base())).abs().max() > 1e-2
    assert_same_function(apply_adapter(base(), tmp_path), model)
    if name != "full":
        assert_same_function(load_adapter(base(), tmp_path), model)
        assert_same_function(PeftModel.from_pretrained(base(), str(tmp_path)), model)


@pytest.mark.parametrize("name", TRAINED)
def test_continual_learning_goes_on_from_what_was_trained(name, tmp_path):
    first = saved(name, tmp_path / "first", domain="safety")
    second = attach_trained(base(), tmp_path / "first", config_of(name))
    assert_same_function(second, first)
    if METHODS[name].mask_from is None:  # else it has the second domain's mask
        assert num_trainable(second) == num_trainable(first)
    else:
        sparsify(
            second,
            {m: torch.ones_like(layer.lora_B["default"].weight) > 0 for m, layer in lora_layers(second).items()},
        )
    fit(second, name)
    assert (logits(second) - logits(first)).abs().max() > 1e-2
    save_adapter(second, tmp_path / "second", config_of(name))
    assert_same_function(apply_adapter(base(), tmp_path / "second"), second)


def test_a_trained_a_is_taken_over_frozen_and_its_b_is_not(tmp_path):
    lora = saved("lora", tmp_path)
    model = reset_b(attach_trained(base(), tmp_path, config_of("lori-s-trained-a")))
    assert torch.equal(logits(model), logits(base()))
    bs = {module: layer.lora_B["default"].weight for module, layer in lora_layers(model).items()}
    sparsify(model, {module: torch.arange(b.numel()).view(b.shape) % 3 == 0 for module, b in bs.items()})
    fit(model, "lori-s-trained-a")
    for module, layer in lora_layers(model).items():
        assert torch.equal(layer.lora_A["default"].weight, lora_layers(lora)[module].lora_A["default"].weight)
        assert layer.lora_B["default"].rest is None  # zeros outside the mask: nothing of LoRA's B is left
    assert not torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize(("first", "second"), [("vera", "lora"), ("lora", "ia3"), ("shira", "vera")])
def test_an_adapter_goes_on_only_as_its_own_kind(first, second, tmp_path):
    save_adapter(started(first), tmp_path, config_of(first))
    with pytest.raises(ValueError, match=f"holds a {first} adapter, which {second} can't go on from"):
        attach_trained(base(), tmp_path, config_of(second))


def test_pissa_goes_on_only_from_pissa(tmp_path):
    save_adapter(started("lora"), tmp_path, config_of("lora"))
    with pytest.raises(ValueError, match="is no adapter of pissa, which goes on from its own alone"):
        attach_trained(base(), tmp_path, config_of("pissa"))


@pytest.mark.parametrize("name", TUNERS)
def test_an_adapter_of_another_base_is_refused(name, tmp_path):
    save_adapter(started(name), tmp_path, config_of(name))
    with pytest.raises(ValueError, match="is an adapter of tiny, not of elsewhere"):
        attach_trained(base(), tmp_path, config_of(name, base_model="elsewhere"))
    wider = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2))
    with pytest.raises(ValueError, match="is not an adapter of this base model"):
        load_adapter(wider, tmp_path)


@pytest.mark.parametrize("name", TUNERS)
def test_an_edited_adapter_is_refused(name, tmp_path):
    save_adapter(started(name), tmp_path, config_of(name))
    path = tmp_path / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="was changed after it was saved"):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is not of the ia3 adapter"),
        ('{"peft_type": "X"}', "is damaged"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused(settings, message, tmp_path):
    save_adapter(started("ia3"), tmp_path, config_of("ia3"))
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(ValueError, match=rf"adapter_config.json {message}"):
        load_adapter(base(), tmp_path)


def test_an_adapter_of_another_tool_loads_without_a_digest(tmp_path):
    model = trained("ia3")
    model.save_pretrained(str(tmp_path))
    assert_same_function(load_adapter(base(), tmp_path), model)


@pytest.mark.parametrize("name", TUNERS)
def test_what_needs_factors_says_that_there_are_none(name, tmp_path):
    save_adapter(started(name), tmp_path / "adapter", config_of(name))
    for needs in (
        lambda: extract_masks(tmp_path / "adapter", MaskConfig(0.9, "model")),
        lambda: save_compact(tmp_path / "adapter", tmp_path / "file", dtype="float32"),
        lambda: merge(
            [tmp_path / "adapter"], MergeConfig("tiny", "concat", (1.0,), 1.0, 0, False), tmp_path / "merged"
        ),
        lambda: sparsify(started(name), {"model.layers.0.mlp.up_proj": torch.ones(2, 2, dtype=torch.bool)}),
    ):
        with pytest.raises(ValueError, match=f"{name.upper()} adapter; only LORA has the factors|the adapter 0"):
            needs()


@pytest.mark.parametrize("name", ["rslora", "pissa", "lora-fa"])
def test_adapters_with_factors_merge_to_the_sum_of_their_updates(name, tmp_path):
    domains = ("nlu", "math")
    for domain in domains:
        saved(name, tmp_path / domain, domain=domain, num_epochs=2 if domain == "nlu" else 4)
    config = MergeConfig("tiny", "concat", (0.5, 0.25), density=1.0, seed=0, match_norms=False)
    merge([tmp_path / domain for domain in domains], config, tmp_path / "merged")
    start = base().state_dict()
    nlu, math_, merged = (apply_adapter(base(), tmp_path / d).state_dict() for d in (*domains, "merged"))
    for key, weight in start.items():
        torch.testing.assert_close(
            merged[key], weight + 0.5 * (nlu[key] - weight) + 0.25 * (math_[key] - weight), atol=1e-5, rtol=1e-5
        )
