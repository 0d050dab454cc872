"""What each method trains, and that it reloads as vanilla PEFT."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lori.adapters.attach import (
    apply_adapter,
    attach,
    attach_trained,
    load_adapter,
    num_trainable,
    save_adapter,
    sparsify,
)
from lori.adapters.attached import b_shapes, lora_layers
from lori.adapters.checked_files import digest
from lori.adapters.layer import projection_a
from lori.adapters.masks import extract_masks, load_masks, random_masks
from lori.adapters.peft_files import LORA_A, LORA_B, open_adapter
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS
from lori.choices.methods import METHODS, method
from lori.config import MaskConfig
from lori.recipes.checked_profile import profile
from lori.recipes.configs import train_config

SCALE = BASE_MODELS["scale"]

TOKENS = torch.arange(3, 43).view(2, 20)
FACTOR_METHODS = [name for name, row in METHODS.items() if row.kind == "lora"]
BASE_AS_IT_WAS = [name for name in FACTOR_METHODS if name != "pissa"]  # of PiSSA: see test_baselines.py


def config_of(name, **changes):
    return replace(train_config(profile("smoke"), "lora", "nlu", seed=0), method=name, **changes)


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
        ("rslora", 32, 83_886_080),  # of the baselines that the paper has not, by what they share with its methods
        ("lora-fa", 32, 44_040_192),
    ],
)
def test_trainable_counts_on_llama_3_8b_are_the_papers(name, rank, num_in_paper, monkeypatch):
    monkeypatch.setattr(
        "lori.adapters.attach.projection_a", lambda _key, _module, shape: torch.empty(shape, device="meta")
    )
    shape = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        model = attach(LlamaForCausalLM(shape), config_of(name, rank=rank, alpha=2 * rank))
    assert num_trainable(model) == num_in_paper


@pytest.mark.parametrize("name", METHODS)
def test_an_untrained_method_is_the_base_model(name):
    model = attach(load_base(SCALE), config_of(name))
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, load_base(SCALE)(TOKENS).logits, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_adapter_gives_the_trained_models_logits(name, tmp_path):
    model = shake(attach(load_base(SCALE), config_of(name)))
    save_adapter(model, tmp_path, config_of(name))
    reloaded = apply_adapter(load_base(SCALE), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(TOKENS).logits, model(TOKENS).logits, atol=1e-4, rtol=1e-4)


def masked(name, model):
    """`model` as `name` trains it: LoRI-S with a random mask, the others as they are."""
    if not METHODS[name].mask_from:
        return model
    torch.manual_seed(2)
    return sparsify(
        model, {m: torch.rand(layer.lora_B["default"].weight.shape) < 0.1 for m, layer in lora_layers(model).items()}
    )


@pytest.mark.parametrize("name", BASE_AS_IT_WAS)
def test_vanilla_peft_gives_exactly_our_logits_of_what_we_save(name, tmp_path):
    model = shake(masked(name, attach(load_base(SCALE), config_of(name))))
    save_adapter(model, tmp_path, config_of(name))
    vanilla = PeftModel.from_pretrained(load_base(SCALE), str(tmp_path))
    with torch.no_grad():
        assert (vanilla(TOKENS).logits - model(TOKENS).logits).abs().max() == 0.0


def test_what_we_save_are_files_of_peft_alone(tmp_path):
    """No custom class in the settings, no index and no values in the tensors."""
    model = shake(masked("lori-s", attach(load_base(SCALE), config_of("lori-s"))))
    save_adapter(model, tmp_path, config_of("lori-s"))
    names = ["adapter_config.json", "adapter_model.safetensors", "lori_mask.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert not [key for key in settings if "custom" in key or "lori" in key]
    assert {name.rsplit(".", 2)[1] for name in load_file(tmp_path / "adapter_model.safetensors")} == {
        "lora_A",
        "lora_B",
    }


def test_the_mask_of_a_sparse_b_is_saved_beside_it(tmp_path):
    model = attach(load_base(SCALE), config_of("lori-s"))
    masks = random_masks(b_shapes(model), MaskConfig(0.9, "model"), seed=0)
    save_adapter(sparsify(model, masks), tmp_path, config_of("lori-s"))  # untrained: B is zero, its mask is not
    saved = load_masks(tmp_path)
    assert saved.keys() == masks.keys()
    assert all(torch.equal(saved[module], mask) for module, mask in masks.items())


# What PEFT 0.12 wrote, as the published LoRI adapters have it
PEFT_0_12 = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "scale",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 12,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 6,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}


def published(directory, model, *, added_rows):
    """A directory as the authors' code leaves it: PEFT 0.12's settings, and the embedding with rows added to it."""
    save_adapter(model, directory, config_of("lori-d"))
    tensors = load_file(directory / "adapter_model.safetensors")
    embedding = load_base(SCALE).get_input_embeddings().weight.detach()
    for name in ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"):
        tensors[name] = torch.cat([embedding, added_rows])
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(PEFT_0_12))
    return directory


def test_a_published_adapter_loads_without_its_embedding_of_a_padding_token(tmp_path):
    model = shake(attach(load_base(SCALE), config_of("lori-d")))
    width = load_base(SCALE).config.hidden_size
    loaded = load_adapter(load_base(SCALE), published(tmp_path, model, added_rows=torch.ones(1, width)))
    with torch.no_grad():
        assert (loaded(TOKENS).logits - model(TOKENS).logits).abs().max() < 1e-5


def test_an_adapter_whose_embedding_was_trained_is_refused(tmp_path):
    model = attach(load_base(SCALE), config_of("lori-d"))
    directory = published(tmp_path, model, added_rows=torch.ones(0, load_base(SCALE).config.hidden_size))
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"][5] += 1
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"also trained base_model\.model\.model\.embed_tokens\.weight"):
        load_adapter(load_base(SCALE), directory)


def test_the_metadata_say_where_a_comes_from_and_its_digest(tmp_path):
    save_adapter(attach(load_base(SCALE), config_of("lori-d", seed=3)), tmp_path, config_of("lori-d", seed=3))
    with open_adapter(tmp_path) as adapter:
        drawn = [projection_a("3/nlu", module, tuple(adapter.a(module).shape)) for module in adapter.modules]
        assert adapter.metadata["a_key"] == "3/nlu"
        assert adapter.metadata["a_sha256"] == digest(drawn)


def test_continual_learning_keeps_the_first_domains_a_and_says_so(tmp_path):
    save_adapter(attach(load_base(SCALE), config_of("lori-d", domain="safety")), tmp_path, config_of("lori-d"))
    second = attach_trained(load_base(SCALE), tmp_path, config_of("lori-d", domain="nlu"))
    save_adapter(second, tmp_path / "second", config_of("lori-d", domain="nlu"))
    with open_adapter(tmp_path) as first, open_adapter(tmp_path / "second") as after:
        assert after.metadata["domain"] == "nlu"
        assert after.metadata["a_key"] == first.metadata["a_key"] == "0/safety"
        assert after.metadata["a_sha256"] == first.metadata["a_sha256"]


def test_a_trained_a_has_no_seed_in_the_metadata(tmp_path):
    save_adapter(attach(load_base(SCALE), config_of("lora")), tmp_path, config_of("lora"))
    with open_adapter(tmp_path) as adapter:
        assert "a_key" not in adapter.metadata


@pytest.fixture
def saved(tmp_path):
    save_adapter(shake(attach(load_base(SCALE), config_of("lori-d"))), tmp_path / "adapter", config_of("lori-d"))
    return tmp_path / "adapter"


def edit(directory, change):
    """Rewrite the tensors, and keep the header's metadata."""
    path = directory / "adapter_model.safetensors"
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_an_edited_adapter_is_refused(factor, saved):
    name = f"base_model.model.model.layers.1.mlp.up_proj.lora_{factor}.weight"
    edit(saved, lambda tensors: tensors[name].__setitem__((0, 0), 1.0))
    with pytest.raises(ValueError, match=rf"changed after it was saved: its {factor}'s"):
        load_adapter(load_base(SCALE), saved)


def test_a_truncated_adapter_is_refused(saved):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is damaged"):
        load_adapter(load_base(SCALE), saved)


def test_damaged_settings_are_refused(saved):
    (saved / "adapter_config.json").write_text('{"peft_type": "LO')
    with pytest.raises(ValueError, match=r"adapter_config.json is damaged"):
        load_adapter(load_base(SCALE), saved)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no PEFT adapter: it has no adapter_config.json"):
        load_adapter(load_base(SCALE), tmp_path)


def narrower_base():
    config = LlamaConfig.from_pretrained("lori/scale_model")
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 96, 16
    return AutoModelForCausalLM.from_config(config)


def test_an_adapter_of_a_base_with_other_shapes_is_refused(saved):
    with pytest.raises(ValueError, match=r"is not an adapter of this base model: .*q_proj|down_proj"):
        load_adapter(narrower_base(), saved)


def test_training_goes_on_only_on_the_base_that_an_adapter_was_made_for(saved):
    with pytest.raises(ValueError, match=r"is an adapter of scale@\w+, not of elsewhere"):
        attach_trained(load_base(SCALE), saved, config_of("lori-d", base_model="elsewhere"))


def test_a_mask_of_another_adapter_is_refused(tmp_path):
    small = config_of("lori-d", rank=3, alpha=6)
    save_adapter(shake(attach(load_base(SCALE), small)), tmp_path, small)
    masks = extract_masks(tmp_path, MaskConfig(0.9, "model"))
    with pytest.raises(ValueError, match="made at another rank"):
        sparsify(attach(load_base(SCALE), config_of("lori-s")), masks)


def test_a_compiled_model_is_saved(tmp_path):
    model = torch.compile(attach(load_base(SCALE), config_of("lori-d")), backend="eager")
    save_adapter(model, tmp_path, config_of("lori-d"))
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_model_without_an_adapter_is_not_saved_as_one(tmp_path):
    with pytest.raises(ValueError, match="has no adapter to save"):
        save_adapter(load_base(SCALE), tmp_path / "adapter", config_of("lori-d"))
    assert not (tmp_path / "adapter").exists()


def test_a_dense_adapter_does_not_keep_the_mask_of_the_one_before(tmp_path):
    sparse = masked("lori-s", attach(load_base(SCALE), config_of("lori-s")))
    save_adapter(sparse, tmp_path, config_of("lori-s"))
    save_adapter(attach(load_base(SCALE), config_of("lori-d")), tmp_path, config_of("lori-d"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[]", r"is damaged: it holds no settings"),
        ('{"peft_type": "LORA", "r": 6}', r"lacks lora_alpha, target_modules"),
        ('{"peft_type": "IA3"}', r"is of a IA3 adapter"),
    ],
)
def test_settings_that_are_not_loras_are_refused(settings, message, saved):
    (saved / "adapter_config.json").write_text(settings)
    with pytest.raises(ValueError, match=message):
        load_adapter(load_base(SCALE), saved)


def test_an_edited_alpha_is_refused(saved):
    path = saved / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 12', '"lora_alpha": 120'))
    with pytest.raises(ValueError, match=r"gave a scaling of 2\.0"):
        load_adapter(load_base(SCALE), saved)


def test_an_adapter_is_saved_whole_or_not_at_all(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("lori.adapters.peft_files.json.dumps", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_adapter(attach(load_base(SCALE), config_of("lori-d")), saved, config_of("lori-d"))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_saved_adapter_names_its_base_and_no_folder_of_this_machine(tmp_path):
    save_adapter(attach(load_base(SCALE), config_of("lori-d")), tmp_path, config_of("lori-d"))
    assert (
        f'"base_model_name_or_path": "{config_of("lori-d").base_model}"'
        in (tmp_path / "adapter_config.json").read_text()
    )
    assert "/" not in config_of("lori-d").base_model


def test_the_update_is_alpha_over_rank_times_b_a():
    config = config_of("lori-d", rank=4, alpha=12)
    model = shake(attach(load_base(SCALE), config))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features)
    with torch.no_grad():
        expected = x @ (layer.weight + 12 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).T
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FACTOR_METHODS)
def test_lori_trains_b_alone_and_lora_both_factors(name):
    model = attach(load_base(SCALE), config_of(name))
    trainable = {parameter_name for parameter_name, p in model.named_parameters() if p.requires_grad}
    assert any(LORA_B in parameter for parameter in trainable)
    assert any(LORA_A in parameter for parameter in trainable) == (name in ("lora", "dora", "rslora", "pissa"))


def factor_as(model):
    return {name: p for name, p in model.named_parameters() if LORA_A in name}


def test_a_is_one_per_domain_and_seed_and_the_same_for_lori_d_and_lori_s():
    dense, sparse = (factor_as(attach(load_base(SCALE), config_of(name))) for name in ("lori-d", "lori-s"))
    other_domain = factor_as(attach(load_base(SCALE), config_of("lori-d", domain="math")))
    other_seed = factor_as(attach(load_base(SCALE), config_of("lori-d", seed=1)))
    for name, a in dense.items():
        assert torch.equal(a, sparse[name])
        assert not torch.equal(a, other_domain[name])
        assert not torch.equal(a, other_seed[name])
    assert len({a.flatten()[0].item() for a in dense.values()}) == len(dense), "modules must not share an A"


def test_shared_a_is_one_a_for_all_domains():
    first, second = (
        factor_as(attach(load_base(SCALE), config_of("lori-d", domain=domain, shared_a=True)))
        for domain in ("nlu", "math")
    )
    assert all(torch.equal(a, second[name]) for name, a in first.items())


def test_fresh_a_is_another_a_for_the_sparse_method_than_for_the_dense_one():
    dense, sparse, default = (
        factor_as(attach(load_base(SCALE), config_of(name, fresh_a=fresh)))
        for name, fresh in (("lori-d", True), ("lori-s", True), ("lori-d", False))
    )
    assert all(torch.equal(a, default[name]) for name, a in dense.items())
    assert not any(torch.equal(a, dense[name]) for name, a in sparse.items())


@pytest.mark.parametrize("name", ["lori-d", "lori-s"])
def test_set_adapter_and_is_trainable_leave_a_frozen(name, tmp_path):
    model = attach(load_base(SCALE), config_of(name))
    model.set_adapter("default")
    save_adapter(model, tmp_path, config_of(name))
    for trained in (model, attach_trained(load_base(SCALE), tmp_path, config_of(name))):
        trained.set_adapter("default")
        assert not any(a.requires_grad for a in factor_as(trained).values())
        assert any(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize("name", ["lora", "lori-d", "lori-s"])
def test_continual_learning_goes_on_from_the_first_domains_factors(name, tmp_path):
    first = shake(attach(load_base(SCALE), config_of(name, domain="safety")))
    save_adapter(first, tmp_path, config_of(name, domain="safety"))
    second = attach_trained(load_base(SCALE), tmp_path, config_of(name))
    after = dict(second.named_parameters())
    for parameter_name, before in first.named_parameters():
        if LORA_A in parameter_name or LORA_B in parameter_name:
            assert torch.equal(before, after[parameter_name])
            assert after[parameter_name].requires_grad == (LORA_B in parameter_name or name == "lora")


def test_continual_learning_of_full_goes_on_from_the_first_domains_weights(tmp_path):
    first = shake(attach(load_base(SCALE), config_of("full", domain="safety")))
    save_adapter(first, tmp_path, config_of("full", domain="safety"))
    second = attach_trained(load_base(SCALE), tmp_path, config_of("full"))
    after = dict(second.named_parameters())
    for name, before in first.named_parameters():
        assert torch.equal(before, after[name])
        assert after[name].requires_grad


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown method 'lorax'\. Known: base, full, lora"):
        method("lorax")
