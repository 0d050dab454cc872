"""How a domain is learned: one row a method, and how to attach, save and load what it trains.

LoRI (paper, section 3): ΔW = alpha / rank · b @ a, with `a` (rank, in) drawn once and frozen, and `b` (out, rank)
trained from zero, all of it (LoRI-D) or where a mask allows it (LoRI-S).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lori.config import TrainConfig

LORA_A, LORA_B = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class Method:
    """What trains. `kind` is none, full or lora; `mask_from` names the method whose B gives the mask."""

    kind: str
    freeze_a: bool = False
    use_dora: bool = False
    mask_from: str | None = None


METHODS = {
    "base": Method("none"),
    "full": Method("full"),
    "lora": Method("lora"),
    "dora": Method("lora", use_dora=True),
    "lori-d": Method("lora", freeze_a=True),
    "lori-s": Method("lora", freeze_a=True, mask_from="lori-d"),
}


def method(name: str) -> Method:
    """The row of `METHODS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Known: {', '.join(METHODS)} (lori/methods.py).")
    return METHODS[name]


def projection_a(*, seed: int, domain: str, module: str, shape: tuple[int, int]) -> Float[Tensor, "rank d_in"]:
    """The random projection A of one linear: U(−1/√d_in, +1/√d_in), PEFT's kaiming-uniform with a = √5.

    The paper draws A per task and the authors never seed it. Here it is a function of its arguments alone: 24 bits of
    a SHAKE-256 stream are an odd integer below 2²⁴, exact in fp32, times the bound: one rounding, the same bits on
    every machine and in every release of torch and numpy.
    """
    stream = hashlib.shake_256(f"{seed}/{domain}/{module}/{shape[0]}x{shape[1]}".encode())
    words = np.frombuffer(stream.digest(4 * shape[0] * shape[1]), dtype="<u4") >> 8
    odd = 2 * words.astype(np.int64) + 1 - 2**24
    bound = np.float32(1 / np.sqrt(shape[1]) / 2**24)
    return torch.from_numpy(odd.astype(np.float32) * bound).view(shape)


def attach(model: PreTrainedModel, config: TrainConfig) -> nn.Module:
    """`model` with what `config.method` trains: B at zero, A from the seed, everything else frozen."""
    row = method(config.method)
    if row.kind != "lora":
        return model.requires_grad_(row.kind == "full")
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        use_dora=row.use_dora,
        target_modules=list(config.projections),
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora)
    peft_model.peft_config["default"].base_model_name_or_path = config.base_model  # not this machine's folder
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if LORA_A in name:
                rank, d_in = parameter.shape
                module = module_name(name)
                parameter.copy_(
                    projection_a(seed=config.seed, domain=config.domain, module=module, shape=(rank, d_in))
                )
    return _freeze_a(peft_model, row)


def attach_trained(model: PreTrainedModel, adapter_dir: Path, config: TrainConfig) -> nn.Module:
    """`model` with an adapter that goes on training (continual learning): its A, and its B not reset."""
    row = method(config.method)
    if row.kind != "lora":
        return apply_adapter(model, adapter_dir).requires_grad_(row.kind == "full")
    peft_model = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=True)
    return _freeze_a(peft_model, row)


def _freeze_a(model: PeftModel, row: Method) -> PeftModel:
    for name, parameter in model.named_parameters():
        if LORA_A in name and row.freeze_a:
            parameter.requires_grad_(False)
    return model


def module_name(parameter_name: str) -> str:
    """`model.layers.0.self_attn.q_proj` for the name of its A or B, in the model or in an adapter file."""
    for factor in (LORA_A, LORA_B):
        parameter_name = parameter_name.split(factor)[0]
    return parameter_name.removeprefix("base_model.model.")


def num_trainable(model: nn.Module) -> int:
    """Entries that gradient descent may move, before any mask."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save_adapter(model: nn.Module, directory: Path, config: TrainConfig) -> None:
    """Write what was trained: a PEFT directory, or for `full` the whole model; nothing for `base`."""
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        # "auto" would look the base model up on the hub to see whether its embedding was resized: ours never is
        model.save_pretrained(str(directory), save_embedding_layers=False)
        _sort_modules(directory / "adapter_config.json")
    elif method(config.method).kind == "full":
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(str(directory))


def _sort_modules(path: Path) -> None:
    """PEFT keeps the modules in a set, whose order differs between processes; one adapter must be the same bytes."""
    settings = json.loads(path.read_text())
    settings["target_modules"].sort()
    path.write_text(json.dumps(settings, indent=2, sort_keys=True))


def apply_adapter(model: PreTrainedModel, adapter_dir: Path) -> PreTrainedModel:
    """`model` with the adapter merged into its weights; which kind it is, its files say."""
    if (adapter_dir / "adapter_config.json").exists():
        return PeftModel.from_pretrained(model, str(adapter_dir)).merge_and_unload()
    if (adapter_dir / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(adapter_dir, dtype=torch.float32, device_map=model.device).eval()
    return model
