"""How a domain is learned: one row a method, and how to attach, sparsify, save and load what it trains.

LoRI (paper, section 3): ΔW = alpha / rank · b @ a, with `a` (rank, in) drawn once and frozen, and `b` (out, rank)
trained from zero, all of it (LoRI-D) or where a mask allows it (LoRI-S).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lori.adapters import (
    LORA_A,
    LORA_B,
    PREFIX,
    AdapterFile,
    check_digests,
    digest,
    is_first_process,
    module_name,
    open_adapter,
    write_adapter,
    written_whole,
)
from lori.config import TrainConfig
from lori.layer import LoriLinear, PlainLinear, SparseB, freeze_a, projection_a
from lori.masks import MASK_FILE, check_masks, save_masks

ADAPTER = "default"  # PEFT's name for the adapter in a model; a file has none


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


def a_key(config: TrainConfig) -> str:
    """What `projection_a` draws A from: seed and domain, so that LoRI-D and LoRI-S of a domain have the same A.

    `shared_a` leaves the domain out: one A for all. `fresh_a` draws another for the sparse method than for the dense
    one that gave its mask, as the authors' released code does.
    """
    domain = "" if config.shared_a else config.domain
    is_fresh = config.fresh_a and method(config.method).mask_from is not None
    return f"{config.seed}/{domain}/{config.method}" if is_fresh else f"{config.seed}/{domain}"


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
    peft_model = _wrap(model, lora, freeze=row.freeze_a)
    peft_model.peft_config[ADAPTER].base_model_name_or_path = config.base_model  # not this machine's folder
    key = a_key(config)
    with torch.no_grad():
        for module, layer in lora_layers(peft_model).items():
            a = _weight(layer.lora_A)
            a.copy_(projection_a(key, module, _shape(a)))
    return _with_origin(peft_model, {"a_key": key})


def _wrap(model: PreTrainedModel, lora: LoraConfig, *, freeze: bool) -> PeftModel:
    """PEFT's model; with a frozen A its plain linears are `LoriLinear`."""
    if freeze:
        # Of this object alone: no file will show it
        lora._register_custom_module({PlainLinear: LoriLinear})  # pyright: ignore[reportArgumentType]
    peft_model = get_peft_model(model, lora)
    assert isinstance(peft_model, PeftModel)
    if freeze:
        for layer in lora_layers(peft_model).values():
            freeze_a(layer, ADAPTER)  # those that PEFT made its own layers for, too: quantised, GPT-2's Conv1D
    return peft_model


def _with_origin(model: PeftModel, origin: dict[str, str]) -> PeftModel:
    """`model` that remembers where its A comes from, for the file's metadata."""
    model.origin = origin  # pyright: ignore[reportArgumentType]
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have an adapter, by module name."""
    return {name.removeprefix(PREFIX): layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _weight(factors: nn.ModuleDict) -> Tensor:
    weight = factors[ADAPTER].weight
    assert isinstance(weight, Tensor)
    return weight


def _shape(matrix: Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns


def b_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(d_out, rank) of every B, by module name."""
    return {module: _shape(_weight(layer.lora_B)) for module, layer in lora_layers(model).items()}


def sparsify(model: nn.Module, masks: Mapping[str, Bool[Tensor, "_out _rank"]]) -> nn.Module:
    """`model` with every B sparse, in place: only entries inside `masks` are stored and train; the others stay as is.

    Raises:
        ValueError: if `masks` are not of this model's B's.
    """
    check_masks(masks, b_shapes(model))
    for module, layer in lora_layers(model).items():
        layer.lora_B[ADAPTER] = SparseB(_weight(layer.lora_B), masks[module])
    return model


def masks_of(model: nn.Module) -> dict[str, Bool[Tensor, "_out _rank"]]:
    """The masks of sparse B's; empty if B is dense."""
    bs = {module: layer.lora_B[ADAPTER] for module, layer in lora_layers(model).items()}
    return {module: b.mask for module, b in bs.items() if isinstance(b, SparseB)}


def load_adapter(model: PreTrainedModel, adapter_dir: Path, config: TrainConfig | None = None) -> PeftModel:
    """`model` with the LoRA adapter of `adapter_dir`; with `config` it goes on training as `config.method` does.

    Adapters of PEFT 0.12 load, and so do files that hold the base's embedding with some rows added (a `<PAD>` token):
    no such row is needed here, and the embedding is left out.

    Raises:
        ValueError: if the files are damaged or edited, or do not fit `model`.
    """
    with open_adapter(adapter_dir) as adapter:
        check_digests(adapter)
        _check_base(adapter, config)
        lora = LoraConfig.from_pretrained(str(adapter_dir))
        assert isinstance(lora, LoraConfig)
        lora.inference_mode = config is None
        lora.base_model_name_or_path = None  # PEFT would warn that it takes the base's own name, which may be a folder
        peft_model = _wrap(model, lora, freeze=config is not None and method(config.method).freeze_a)
        _load_factors(peft_model, adapter)
        peft_model.peft_config[ADAPTER].base_model_name_or_path = adapter.settings.get("base_model_name_or_path")
        key = adapter.metadata.get("a_key")
    return _with_origin(peft_model.eval(), {"a_key": key} if key else {})


def _load_factors(model: PeftModel, adapter: AdapterFile) -> None:
    wanted = adapter_tensors(model)
    found = {name: adapter.file.get_tensor(name) for name in adapter.file.keys() if ".lora_" in name}  # noqa: SIM118
    for name in sorted(wanted.keys() | found.keys()):
        there, here = (tuple(d[name].shape) if name in d else "none" for d in (found, wanted))
        if there != here:
            raise ValueError(
                f"{adapter.directory} is not an adapter of this base model: {name} is {there} there and {here} here."
            )
    for name in adapter.extras:
        if ".lora_" not in name:
            _check_untrained(model, adapter, name)
    set_peft_model_state_dict(model, found)


def _check_untrained(model: PeftModel, adapter: AdapterFile, name: str) -> None:
    """An embedding or head in an adapter file, if the base's rows in it are the base's own.

    Raises:
        ValueError: if they are not: it was trained, and leaving it out would change the model.
    """
    saved, own = adapter.file.get_tensor(name), dict(model.get_base_model().named_parameters(remove_duplicate=False))
    parameter = own.get(name.removeprefix(PREFIX))
    if parameter is None or not torch.equal(saved[: len(parameter)], parameter.detach().cpu().to(saved.dtype)):
        raise ValueError(f"{adapter.directory} also trained {name}, which is no LoRA factor: it can't be loaded here.")


def _check_base(adapter: AdapterFile, config: TrainConfig | None) -> None:
    made_for = adapter.settings.get("base_model_name_or_path")
    if config is not None and made_for != config.base_model:
        raise ValueError(f"{adapter.directory} is an adapter of {made_for}, not of {config.base_model}.")


def num_trainable(model: nn.Module) -> int:
    """Entries that gradient descent may move; of a sparse B, those that its mask keeps."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """What PEFT saves of the adapter, by PEFT's names."""
    # Of a sharded base, PEFT would gather every weight on the way
    factors = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    # "auto" would ask the hub whether the base's embedding was resized: ours never is
    return get_peft_model_state_dict(model, state_dict=factors, save_embedding_layers=False)


def save_adapter(model: nn.Module, directory: Path, config: TrainConfig) -> None:
    """Write what was trained: a PEFT directory, or for `full` the whole model; nothing for `base`.

    The mask of sparse B's lies beside them: a kept entry may be 0, so B alone does not show it. The file's metadata
    say how it was made, with the digests of its A's and B's. Under torchrun every process calls this.

    Raises:
        ValueError: if `model` has no adapter although `config.method` trains one.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    kind = method(config.method).kind
    if isinstance(model, PeftModel):
        tensors = adapter_tensors(model)
        settings = {**model.peft_config[ADAPTER].to_dict(), "inference_mode": True}
        with written_whole(directory) as partial:
            write_adapter(partial, tensors, settings, _metadata(tensors, model, config))
            masks = masks_of(model)
            if masks:
                save_masks(masks, partial)
        if not masks and is_first_process():
            (directory / MASK_FILE).unlink(missing_ok=True)  # an older adapter's
    elif kind == "lora":
        raise ValueError(f"This model has no adapter to save: attach {config.method} to it first (lori.attach).")
    elif kind == "full":
        assert isinstance(model, PreTrainedModel)
        with written_whole(directory) as partial:
            model.save_pretrained(str(partial))


def _metadata(tensors: Mapping[str, Tensor], model: PeftModel, config: TrainConfig) -> dict[str, Any]:
    digests = {
        name: digest(tensors[key] for key in sorted(tensors, key=module_name) if factor in key)
        for name, factor in (("a_sha256", LORA_A), ("b_sha256", LORA_B))
    }
    origin = model.origin if method(config.method).freeze_a else {}  # a trained A is not the seed's
    lora = model.peft_config[ADAPTER]
    assert isinstance(lora, LoraConfig)
    scaling = lora.lora_alpha / lora.r if not (lora.use_rslora or lora.rank_pattern or lora.alpha_pattern) else None
    made = {"method": config.method, "domain": config.domain, "seed": config.seed, "scaling": scaling}
    return {**made, **origin, **digests}


def apply_adapter(model: PreTrainedModel, adapter_dir: Path) -> PreTrainedModel:
    """`model` with the adapter merged into its weights; which kind it is, its files say."""
    if (adapter_dir / "adapter_config.json").exists():
        return load_adapter(model, adapter_dir).merge_and_unload()
    if (adapter_dir / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(adapter_dir, dtype=torch.float32, device_map=model.device).eval()
    return model


def attach_trained(model: PreTrainedModel, adapter_dir: Path, config: TrainConfig) -> nn.Module:
    """`model` with an adapter that goes on training (continual learning): its A, and its B not reset."""
    row = method(config.method)
    if row.kind != "lora":
        return apply_adapter(model, adapter_dir).requires_grad_(row.kind == "full")
    return load_adapter(model, adapter_dir, config)
