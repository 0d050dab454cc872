"""An adapter that is damaged, edited or of another base is refused; one is saved whole or not at all."""

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.smoke_adapters import config_of, shake
from lori.adapters.attach import (
    attach,
    attach_trained,
    load_adapter,
    save_adapter,
    sparsify,
)
from lori.adapters.masks import extract_masks
from lori.base_models.loading import load_base
from lori.base_models.resolve import BASE_MODELS
from lori.config import MaskConfig

SCALE = BASE_MODELS["scale"]


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


def test_a_model_without_an_adapter_is_not_saved_as_one(tmp_path):
    with pytest.raises(ValueError, match="has no adapter to save"):
        save_adapter(load_base(SCALE), tmp_path / "adapter", config_of("lori-d"))
    assert not (tmp_path / "adapter").exists()


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
