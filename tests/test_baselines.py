"""Every method on a small random model: what trains, what its files give again, and each baseline's own equation."""

import gc
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

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
from lori.adapters.peft_files import open_adapter
from lori.base_models.loading import load_tokenizer
from lori.base_models.resolve import BASE_MODELS
from lori.choices.methods import METHODS, recipe_of
from lori.config import MaskConfig, MergeConfig, TrainConfig, TrainRuntime
from lori.training.batches import collate
from lori.training.trainer import summed_token_loss, train

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS, WIDTH, KEYS, INNER = 2, 16, 8, 24
SHAPES = {  # (d_in, d_out)
    "q_proj": (WIDTH, WIDTH),
    "k_proj": (WIDTH, KEYS),
    "v_proj": (WIDTH, KEYS),
    "o_proj": (WIDTH, WIDTH),
    "gate_proj": (WIDTH, INNER),
    "up_proj": (WIDTH, INNER),
    "down_proj": (INNER, WIDTH),
}
TOKENS = torch.arange(3, 33).view(3, 10)
ROWS = [
    {"input_ids": list(range(n, n + 10)), "labels": [-100] * 6 + list(range(n + 6, n + 10))} for n in range(4, 52, 6)
]
TRAINED = [name for name, row in METHODS.items() if row.kind != "none"]
TUNERS = ["ia3", "vera", "shira"]


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """accelerate collects garbage after every training: half a second, nearly all for what the imports left."""
    gc.freeze()
    yield
    gc.unfreeze()


def base(dtype=torch.float32):
    torch.set_num_threads(1)  # as load_base: the order of sums depends on it
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(shape).to(dtype).requires_grad_(False).eval()


def config_of(name, **changes):
    config = TrainConfig(
        base_model="tiny",
        projections=PROJECTIONS,
        method=name,
        domain="nlu",
        rank=2,
        alpha=4,
        learning_rate=1e-2,
        num_epochs=3,
        batch_size=8,
        max_length=16,
        max_prompt_length=8,
        seed=0,
    )
    return replace(config, **changes)


def fit(model, name, runtime=None, **changes):
    train(model, ROWS, config_of(name, **changes), tokenizer=load_tokenizer(BASE_MODELS["scale"]), runtime=runtime)
    return model


def started(name, model=None, **changes):
    """`model` before its first step; LoRI-S with a mask of every third entry."""
    attached = attach(base() if model is None else model, config_of(name, **changes))
    if METHODS[name].mask_from:
        bs = {module: layer.lora_B["default"].weight for module, layer in lora_layers(attached).items()}
        sparsify(attached, {module: torch.arange(b.numel()).view(b.shape) % 3 == 0 for module, b in bs.items()})
    return attached


def trained(name, **changes):
    return fit(started(name, **changes), name, **changes)


def saved(name, directory, **changes):
    model = trained(name, **changes)
    save_adapter(model, directory, config_of(name, **changes))
    return model


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def assert_same_function(first, second):
    torch.testing.assert_close(logits(first), logits(second), atol=2e-5, rtol=1e-5)


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
