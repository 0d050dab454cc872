"""What each method trains, and that it reloads as vanilla PEFT."""

import hashlib
import math
import struct
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from lori.methods import (
    LORA_A,
    LORA_B,
    METHODS,
    apply_adapter,
    attach,
    attach_trained,
    method,
    num_trainable,
    projection_a,
    save_adapter,
)
from lori.models import load_base
from lori.recipes import profile, train_config

TOKENS = torch.arange(3, 43).view(2, 20)
FACTOR_METHODS = [name for name, row in METHODS.items() if row.kind == "lora"]


def config_of(name, **changes):
    return replace(train_config(profile("smoke"), name, "nlu", seed=0), **changes)


def shake(model):
    """Random values in everything that trains, so that an adapter is not the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("name", "rank", "num_in_paper"),
    [
        ("lora", 32, 83_886_080),
        ("lora", 64, 167_772_160),
        ("dora", 32, 85_262_336),
        ("lori-d", 32, 44_040_192),
        ("lori-d", 64, 88_080_384),
    ],
)
def test_trainable_counts_on_llama_3_8b_are_the_papers(name, rank, num_in_paper, monkeypatch):
    monkeypatch.setattr("lori.methods.projection_a", lambda *, shape, **_: torch.empty(shape, device="meta"))
    shape = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        model = attach(LlamaForCausalLM(shape), config_of(name, rank=rank, alpha=2 * rank))
    assert num_trainable(model) == num_in_paper


@pytest.mark.parametrize("name", METHODS)
def test_an_untrained_method_is_the_base_model(name):
    model = attach(load_base("scale"), config_of(name))
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, load_base("scale")(TOKENS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_adapter_gives_the_trained_models_logits(name, tmp_path):
    model = shake(attach(load_base("scale"), config_of(name)))
    save_adapter(model, tmp_path, config_of(name))
    reloaded = apply_adapter(load_base("scale"), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(TOKENS).logits, model(TOKENS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FACTOR_METHODS)
def test_vanilla_peft_loads_what_we_save(name, tmp_path):
    model = shake(attach(load_base("scale"), config_of(name)))
    save_adapter(model, tmp_path, config_of(name))
    with torch.no_grad():
        vanilla = PeftModel.from_pretrained(load_base("scale"), str(tmp_path))(TOKENS).logits
        torch.testing.assert_close(vanilla, model(TOKENS).logits, atol=1e-5, rtol=0)


def test_a_saved_adapter_names_its_base_and_no_folder_of_this_machine(tmp_path):
    save_adapter(attach(load_base("scale"), config_of("lori-d")), tmp_path, config_of("lori-d"))
    assert (
        f'"base_model_name_or_path": "{config_of("lori-d").base_model}"'
        in (tmp_path / "adapter_config.json").read_text()
    )
    assert "/" not in config_of("lori-d").base_model


def test_the_update_is_alpha_over_rank_times_b_a():
    config = config_of("lori-d", rank=4, alpha=12)
    model = shake(attach(load_base("scale"), config))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features)
    with torch.no_grad():
        expected = x @ (layer.weight + 12 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).T
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FACTOR_METHODS)
def test_lori_trains_b_alone_and_lora_both_factors(name):
    model = attach(load_base("scale"), config_of(name))
    trainable = {parameter_name for parameter_name, p in model.named_parameters() if p.requires_grad}
    assert any(LORA_B in parameter for parameter in trainable)
    assert any(LORA_A in parameter for parameter in trainable) == (name in ("lora", "dora"))


def factor_as(model):
    return {name: p for name, p in model.named_parameters() if LORA_A in name}


def test_a_is_one_per_domain_and_seed_and_the_same_for_lori_d_and_lori_s():
    dense, sparse = (factor_as(attach(load_base("scale"), config_of(name))) for name in ("lori-d", "lori-s"))
    other_domain = factor_as(attach(load_base("scale"), config_of("lori-d", domain="math")))
    other_seed = factor_as(attach(load_base("scale"), config_of("lori-d", seed=1)))
    for name, a in dense.items():
        assert torch.equal(a, sparse[name])
        assert not torch.equal(a, other_domain[name])
        assert not torch.equal(a, other_seed[name])
    assert len({a.flatten()[0].item() for a in dense.values()}) == len(dense), "modules must not share an A"


def test_a_is_kaiming_uniform():
    a = projection_a(seed=0, domain="nlu", module="m", shape=(64, 400))
    bound = 1 / 400**0.5
    assert a.abs().max() <= bound
    assert abs(a.mean()) < 0.01 * bound
    assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)  # of a uniform on ±bound


def test_a_has_the_same_bits_everywhere():
    # In integers and doubles, each rounded to fp32 once: no numpy, no torch
    stream = hashlib.shake_256(b"3/math/model.layers.0.mlp.up_proj/2x5").digest(4 * 2 * 5)
    odd = [2 * (word >> 8) + 1 - 2**24 for word in struct.unpack("<10I", stream)]
    bound = struct.unpack("<f", struct.pack("<f", 1 / math.sqrt(5) / 2**24))[0]
    expected = struct.pack("<10f", *(value * bound for value in odd))
    a = projection_a(seed=3, domain="math", module="model.layers.0.mlp.up_proj", shape=(2, 5))
    assert a.numpy().tobytes() == expected
    assert hashlib.sha256(expected).hexdigest()[:16] == "eb705607eb409f69"


@pytest.mark.parametrize("name", ["lora", "lori-d", "lori-s"])
def test_continual_learning_goes_on_from_the_first_domains_factors(name, tmp_path):
    first = shake(attach(load_base("scale"), config_of(name, domain="safety")))
    save_adapter(first, tmp_path, config_of(name, domain="safety"))
    second = attach_trained(load_base("scale"), tmp_path, config_of(name))
    after = dict(second.named_parameters())
    for parameter_name, before in first.named_parameters():
        if LORA_A in parameter_name or LORA_B in parameter_name:
            assert torch.equal(before, after[parameter_name])
            assert after[parameter_name].requires_grad == (LORA_B in parameter_name or name == "lora")


def test_continual_learning_of_full_goes_on_from_the_first_domains_weights(tmp_path):
    first = shake(attach(load_base("scale"), config_of("full", domain="safety")))
    save_adapter(first, tmp_path, config_of("full", domain="safety"))
    second = attach_trained(load_base("scale"), tmp_path, config_of("full"))
    after = dict(second.named_parameters())
    for name, before in first.named_parameters():
        assert torch.equal(before, after[name])
        assert after[name].requires_grad


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown method 'lorax'\. Known: base, full, lora"):
        method("lorax")
