"""Causal LMs of any family: which of their linears get an adapter, that it trains and reloads, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from bases import FAMILIES, GPT2_LIKE, LLAMA, LLAMA_LIKE, PAIRS, SIZES, config_of, write_base
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lori.adapters.attach import apply_adapter, attach, load_adapter, masks_of, save_adapter, sparsify
from lori.adapters.attached import lora_layers
from lori.adapters.masks import extract_masks
from lori.base_models.architecture import architecture
from lori.base_models.loading import check_base, load_base, load_tokenizer
from lori.base_models.resolve import BASE_MODELS, base_model
from lori.choices.domains import Example
from lori.config import EvalConfig, MaskConfig, TrainConfig, TrainRuntime
from lori.datasets.tokenise import tokenise
from lori.evaluation.generation import complete, prepare
from lori.training.trainer import train

TOKENS = torch.arange(10, 50).view(2, 20)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A folder with a base model of every family."""
    out = tmp_path_factory.mktemp("bases")
    for name in FAMILIES:
        write_base(out / name, config_of(name), **(GPT2_LIKE if name == "gpt2" else LLAMA_LIKE))
    return str(out)


def train_config(name, models_dir, method="lori-d"):
    base = base_model(name, models_dir).identity
    return TrainConfig(
        base_model=base,
        projections=base_model(base, models_dir).projections,
        method=method,
        domain="math",
        rank=4,
        alpha=8,
        learning_rate=0.01,
        num_epochs=1,
        batch_size=len(PAIRS),
        max_length=32,
        max_prompt_length=16,
        seed=0,
    )


@torch.no_grad()
def logits(model):
    return model.eval()(TOKENS).logits


def step(model, config, tokenizer):
    """Train one step; the names of the parameters that it moved."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, tokenise(PAIRS, tokenizer, config), config, tokenizer=tokenizer)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_of_the_layers_gets_an_adapter_and_nothing_else(name, families):
    _, projections, num_linears = FAMILIES[name]
    assert set(base_model(name, families).projections) == set(projections)
    model = attach(load_base(base_model(name, families)), train_config(name, families))
    assert len(lora_layers(model)) == num_linears * SIZES["num_hidden_layers"]
    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    assert not embeddings & {id(layer) for layer in lora_layers(model).values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_starts_as_the_base_and_trains_its_b_alone(name, families, tmp_path):
    config, tokenizer = train_config(name, families), load_tokenizer(base_model(name, families))
    base = logits(load_base(base_model(name, families)))
    model = attach(load_base(base_model(name, families)), config)
    assert torch.equal(logits(model), base)
    assert step(model, config, tokenizer) == {key for key in model.state_dict() if ".lora_B." in key}
    save_adapter(model, tmp_path / "dense", config)

    masks = extract_masks(tmp_path / "dense", MaskConfig(0.75, "model"))
    config = replace(config, method="lori-s")
    sparse = sparsify(attach(load_base(base_model(name, families)), config), masks)
    assert torch.equal(logits(sparse), base)
    assert all(".lora_B." in key for key in step(sparse, config, tokenizer))
    for module, layer in lora_layers(sparse).items():
        assert not layer.lora_B["default"].weight[~masks[module]].any()
    save_adapter(sparse, tmp_path / "sparse", config)
    assert masks_of(sparse).keys() == masks.keys()

    trained = logits(sparse)
    assert (trained - base).abs().max() > 0.01
    assert torch.equal(logits(load_adapter(load_base(base_model(name, families)), tmp_path / "sparse")), trained)
    merged = logits(apply_adapter(load_base(base_model(name, families)), tmp_path / "sparse"))
    torch.testing.assert_close(merged, trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_the_check(name, families):
    check_base(base_model(name, families))


def test_a_model_of_images_too_is_adapted_in_its_language_model_alone(tmp_path):
    text, vision = config_of("gemma3").to_dict(), {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision["num_attention_heads"] = 2
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, architectures=["Gemma3ForConditionalGeneration"]
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = architecture(tmp_path).projections
    adapted = {name for name, _ in model.named_modules() if any(f".{name}".endswith(f".{end}") for end in found)}
    assert len(adapted) == 7 * SIZES["num_hidden_layers"]
    assert all(".language_model.layers." in name for name in adapted)


def test_the_papers_base_has_the_papers_projections(tmp_path):
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8}
    LlamaConfig(**shape, vocab_size=128256, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    assert architecture(tmp_path).projections == LLAMA == BASE_MODELS["llama-3-8b"].projections
    assert BASE_MODELS["mistral-7b"].projections == LLAMA


NOT_CAUSAL = r"of no causal language model but of "
EXPERTS = r"only \d% of the layers' weights are linears, as in a mixture of experts.*Choose a dense model"
REFUSED = {
    "bert": (transformers.BertConfig(architectures=["BertForMaskedLM"]), NOT_CAUSAL + "BertForMaskedLM"),
    "t5": (transformers.T5Config(architectures=["T5ForConditionalGeneration"]), NOT_CAUSAL + "T5ForConditional"),
    "no head": (LlamaConfig(architectures=["LlamaModel"]), NOT_CAUSAL + "LlamaModel"),
    "mixtral": (transformers.MixtralConfig(**SIZES, architectures=["MixtralForCausalLM"]), EXPERTS),
    "qwen3-moe": (transformers.Qwen3MoeConfig(**SIZES, architectures=["Qwen3MoeForCausalLM"]), EXPERTS),
    "mamba": (transformers.MambaConfig(architectures=["MambaForCausalLM"]), "PEFT can't adapt .*incompatible"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_adapter_cant_learn_is_refused(name, tmp_path):
    config, message = REFUSED[name]
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        check_base(base_model("model", str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}},
            "'own' needs code of its own, which is never run",
        ),
        ({"model_type": "own"}, "architecture 'own' is unknown to transformers"),
        ({"quantization_config": {"quant_method": "gptq"}}, "weights are quantised, and merging needs whole ones"),
    ],
)
def test_a_config_that_cant_be_built_is_refused(changes, message, tmp_path):
    written = {**config_of("llama").to_dict(), "architectures": ["LlamaForCausalLM"], **changes}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        check_base(base_model(str(tmp_path)))


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged .*download it again"):
        check_base(base_model(str(tmp_path)))


@pytest.mark.parametrize("name", ["gpt2", "opt", "mistral", "gemma2"])
def test_a_padded_batch_generates_what_each_prompt_does_alone(name, families):
    """Padding on the left moves no position: with learned ones it would show."""
    model, tokenizer = load_base(base_model(name, families)), load_tokenizer(base_model(name, families))
    rows = [Example(str(n), "", "one two " * n + "three", "", None) for n in (1, 3, 9, 2)]
    config = EvalConfig(
        "math", 1, 0.0, 1.0, max_new_tokens=8, batch_size=4, max_length=60, max_prompt_length=30, seed=0
    )
    alone = replace(config, batch_size=1)
    together, apart = (
        complete(model, tokenizer, prepare(model, tokenizer, rows, how), how, lambda *_: False)
        for how in (config, alone)
    )
    assert together == apart
    assert len({texts[0] for texts in together}) > 1


def test_dropout_is_off_while_it_trains(families):
    """Or what is drawn would depend on how a batch is cut into parts."""
    tokenizer = load_tokenizer(base_model("gpt2", families))
    assert AutoConfig.from_pretrained(f"{families}/gpt2").resid_pdrop > 0
    config, trained = train_config("gpt2", families), []
    for micro_batch_tokens in (4096, 1):
        model = attach(load_base(base_model("gpt2", families)), config)
        train(
            model,
            tokenise(PAIRS, tokenizer, config),
            config,
            tokenizer=tokenizer,
            runtime=TrainRuntime(micro_batch_tokens=micro_batch_tokens),
        )
        trained.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    for name, b in trained[0].items():
        # As a whole: where a gradient is nearly zero, Adam makes a whole step of the sign of its rounding
        assert (b - trained[1][name]).norm() < 0.2 * b.norm()  # with dropout it is 0.8 and more
