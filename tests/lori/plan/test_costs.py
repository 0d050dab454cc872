"""What training takes: parameters as in the paper, memory and operations as torch counts them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from lori.adapters.attach import attach, num_trainable, save_adapter, sparsify
from lori.adapters.attached import b_shapes
from lori.adapters.masks import MASK_FILE, random_masks
from lori.base_models.resolve import LLAMA_PROJECTIONS
from lori.choices.methods import METHODS
from lori.config import MaskConfig, TrainConfig
from lori.plan.activations import Part, activation_bytes
from lori.plan.costs import Work, train_flops, train_memory
from lori.plan.sizes import Sizes, adapter_of, sizes_of
from lori.training.trainer import summed_token_loss

SHAPE_OF_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
BASES = {
    "llama-3-8b": LlamaConfig(**SHAPE_OF_8B, vocab_size=128_256, max_position_embeddings=8192),
    "mistral-7b": MistralConfig(**SHAPE_OF_8B, vocab_size=32_000),
}
DIMENSIONS: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
TINY = LlamaConfig(**DIMENSIONS)
GPT2_PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MASK = MaskConfig(sparsity=0.9, scope="model")
KIB = 1024


def config_of(method: str, rank: int = 4, dtype: str = "float32", **changes: Any) -> TrainConfig:
    return replace(
        TrainConfig(
            base_model="tiny",
            projections=LLAMA_PROJECTIONS,
            method=method,
            domain="math",
            rank=rank,
            alpha=2 * rank,
            learning_rate=1e-4,
            num_epochs=2,
            batch_size=4,
            max_length=512,
            max_prompt_length=256,
            seed=0,
            dtype=dtype,
        ),
        **changes,
    )


@cache
def sizes_of_base(name: str) -> Sizes:
    return sizes_of(BASES[name])


def mask_of(method: str) -> MaskConfig | None:
    return MASK if METHODS[method].mask_from else None


def attached(config: TrainConfig, base: PreTrainedConfig = TINY) -> torch.nn.Module:
    torch.manual_seed(0)
    dtype = torch.float32 if config.method == "full" else getattr(torch, config.dtype)
    model = attach(AutoModelForCausalLM.from_config(base).to(dtype).requires_grad_(False), config)
    return sparsify(model, random_masks(b_shapes(model), MASK, seed=0)) if mask_of(config.method) else model


@pytest.mark.parametrize(("base", "number"), [("llama-3-8b", 8_030_261_248), ("mistral-7b", 7_241_732_096)])
def test_a_base_has_as_many_parameters_as_is_published(base, number):
    assert sizes_of_base(base).num_parameters == number
    assert adapter_of(config_of("full"), sizes_of_base(base)).num_trainable == number


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("method", "at_32", "at_64"),
    [
        ("lora", 83_886_080, 167_772_160),
        ("dora", 85_262_336, 169_148_416),
        ("lori-d", 44_040_192, 88_080_384),
        ("lori-s", 4_404_019, 8_808_038),
    ],
)
def test_trainable_counts_are_the_papers(base, method, at_32, at_64):
    sizes = sizes_of_base(base)
    assert [adapter_of(config_of(method, r), sizes, mask_of(method)).num_trainable for r in (32, 64)] == [at_32, at_64]


def test_a_mask_by_layer_keeps_its_share_of_each_layer():
    kept = adapter_of(config_of("lori-s", 32), sizes_of_base("llama-3-8b"), MaskConfig(0.9, "layer")).num_kept
    assert kept == 32 * int((1 - 0.9) * (44_040_192 // 32))


@pytest.mark.parametrize("method", METHODS)
def test_counts_and_files_are_those_of_the_attached_method(method, tmp_path):
    config = config_of(method)
    model = attached(config)
    planned = adapter_of(config, sizes_of(TINY), mask_of(method))
    assert planned.num_trainable == num_trainable(model)
    save_adapter(model, tmp_path / "adapter", config)
    files = sorted((tmp_path / "adapter").glob("*.safetensors"))
    sizes = {path.name: sum(tensor.nbytes for tensor in load_file(path).values()) for path in files}
    assert sizes.pop(MASK_FILE, 0) == planned.mask_bytes
    if method != "full":
        assert sum(sizes.values()) == 4 * planned.num_saved


def test_a_method_that_needs_a_mask_is_not_planned_without():
    with pytest.raises(ValueError, match="lori-s trains inside a mask"):
        adapter_of(config_of("lori-s"), sizes_of(TINY))


def test_what_an_earlier_domain_left_outside_the_mask_is_kept_in_memory():
    sizes, config, part = sizes_of(TINY), config_of("lori-s"), Part(1, 8, 1, is_padded=False)

    def held(*, continues: bool) -> int:
        adapter = adapter_of(config, sizes, MASK, continues=continues)
        return train_memory(sizes, config, adapter, part, checkpointing=False, num_gpus=1).adapter

    assert held(continues=True) - held(continues=False) == 4 * sum(d_out * 4 for d_out, _ in sizes.linears.values())


@pytest.mark.parametrize(
    ("method", "measured_kib"),
    [
        (
            "lori-d",
            153.1,
        ),  # a layer of Llama-3-8B in bf16, its final norm included, 256 tokens, hooks on saved tensors
        ("lora", 249.1),  # under autocast, as training computes: without it PEFT keeps 305.5
    ],
)
def test_a_real_layer_keeps_what_was_measured(method, measured_kib):
    layer = replace(sizes_of_base("llama-3-8b"), num_layers=1)
    layer = replace(layer, linears={name: shape for name, shape in layer.linears.items() if ".layers.0." in name})
    kept = activation_bytes(
        layer, config_of(method, 32, "bfloat16"), Part(1, 256, 0, is_padded=False), checkpointing=False
    )
    assert kept / 256 / KIB == pytest.approx(measured_kib, rel=0.05)


def loss_of(model: torch.nn.Module, *, padded: bool, dtype: str) -> Callable[[], torch.Tensor]:
    tokens = torch.randint(3, 200, (2, 64), generator=torch.Generator().manual_seed(0))
    attention, labels = torch.ones_like(tokens), torch.full_like(tokens, -100)
    attention[1:, 50:] = 1 - int(padded)
    labels[:, 40:44] = 5
    batch = {"input_ids": tokens, "attention_mask": attention, "labels": labels}

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            return summed_token_loss(model, batch)

    return loss


def saved_bytes(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Of unique storages that autograd saves, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, or its address would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that are still there when `work` is done and its result is held, and the most on the way."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = work()
    results: Any = profile.profiler and profile.profiler.kineto_results
    now = most = 0
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del result
    return now, most


def allowed(config: TrainConfig, base: PreTrainedConfig = TINY, *, padded: bool = False, **how: bool) -> int:
    """What the plan says that is kept, with the logits of the 8 labels."""
    part = Part(2, 64, 8, is_padded=padded)
    kept = activation_bytes(sizes_of(base), config, part, checkpointing=how.get("checkpointing", False))
    return kept + 4 * 8 * base.get_text_config().vocab_size


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "lori-d", "full"])
def test_activations_are_what_autograd_saves(method, dtype, padded):
    config = config_of(method, dtype=dtype)
    model = attached(config).train()
    found = saved_bytes(model, loss_of(model, padded=padded, dtype=dtype))
    # Nothing before the first adapter needs a gradient: its norm keeps nothing, 1 % of three layers' tensors or more
    assert found == pytest.approx(allowed(config, padded=padded), rel=0.05)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].kind != "none"])
def test_activations_of_every_method_are_what_stays_allocated(method):
    config = config_of(method)
    found, _ = allocated(loss_of(attached(config).train(), padded=False, dtype="float32"))
    assert found == pytest.approx(allowed(config), rel=0.05)


@pytest.mark.parametrize(
    ("method", "checkpointing"),
    [*product(["lora", "dora", "lori-s", "full", "shira"], [False, True]), ("ia3", False), ("vera", False)],
)
def test_a_step_allocates_at_most_what_is_planned_and_not_much_less(method, checkpointing):
    config, part = config_of(method, dtype="bfloat16"), Part(2, 64, 8, is_padded=False)
    model = attached(config).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
    loss = loss_of(model, padded=False, dtype="bfloat16")
    loss().backward()  # gradients have their places
    _, found = allocated(lambda: loss().backward())
    adapter = adapter_of(config, sizes_of(TINY), mask_of(method))
    planned = train_memory(sizes_of(TINY), config, adapter, part, checkpointing=checkpointing, num_gpus=1)
    assert 0.75 < found / (planned.activations + planned.logits + planned.working) < 1.02


@pytest.mark.parametrize(
    ("base", "projections", "least", "most"),
    [
        (Qwen3Config(**DIMENSIONS, head_dim=16), LLAMA_PROJECTIONS, 0.85, 1.15),
        (GPT2Config(vocab_size=256, n_embd=128, n_layer=3, n_head=8, n_positions=64), GPT2_PROJECTIONS, 1 / 3, 1),
        (Gemma2Config(**DIMENSIONS, head_dim=16), LLAMA_PROJECTIONS, 1, 1.5),
    ],
    ids=["qwen3", "gpt2", "gemma2"],
)
def test_of_other_architectures_activations_are_a_guess_within_what_is_said(base, projections, least, most):
    config = config_of("lori-d", dtype="bfloat16", projections=projections)
    model = attached(config, base).eval()  # of GPT-2 without dropout, which the paper has none of
    found = saved_bytes(model, loss_of(model, padded=False, dtype="bfloat16"))
    assert least < found / allowed(config, base) < most


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", False), *product(["full", "lori-d"], [False, True])])
def test_operations_are_those_that_torch_counts(method, checkpointing):
    config = config_of(method)
    base = LlamaConfig(**{**DIMENSIONS, "attn_implementation": "eager"})  # of fused attention torch counts nothing
    model = attached(config, base).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
    loss = loss_of(model, padded=False, dtype="float32")
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    sizes, work = sizes_of(base), Work(num_tokens=128, num_positions=128, num_pairs=2 * 64**2, num_logits=8)
    planned = train_flops(sizes, config, adapter_of(config, sizes), work, checkpointing=checkpointing)
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.04)


def test_a_frozen_base_takes_two_thirds_of_the_operations_and_checkpointing_one_forward_more():
    sizes, work = sizes_of_base("llama-3-8b"), Work(1, 1, 0, 0)
    per_entry = [
        train_flops(sizes, config_of(name), adapter_of(config_of(name), sizes), work, checkpointing=checkpointing)
        / sizes.num_multiplied
        for name in ("full", "lori-d")
        for checkpointing in (False, True)
    ]
    down_proj = 32 * 4096 * 14336 / sizes.num_multiplied
    assert per_entry == pytest.approx([6, 8 - 2 * down_proj, 4, 6], rel=0.01)
